"""Words that documents, descriptions of variables and messages avoid, because other readers stumble over them."""

import ast
import re

from tests.lint.test_rules import texts

# By pattern: what to write.
WORDS = {
    r"for ?ever": "permanently, never",
    r"at once": "immediately, together, in parallel",
    r"anew": "again",
    r"nobody|everybody": "no one, everyone",
    r"tak(e|es|en|ing)( \w+){0,2} out": "remove",
    r"stop the bleeding": "mitigate",
    r"without a word": "silently",
    r"patient(ly)?": "with retries",
    r"(is|are|was|stays) away": "is down",
    r"gets? ready": "becomes ready",
    r"(begins?|begun|began) again": "starts again",
    r"in (the )?place of": "instead of",
    r"may not": "cannot, must not",
    r"(is|are|by|for|of|than|with|beside) what": "a noun",
    r"whoever": "everyone who",
    r"besides?": "next to, in addition to",
    r"lets? in": "admits",
    r"(seen|source|arithmetic)\)": "a row of docs/evidence.md",
    r"\d+ %": "5%",
}
AVOIDED = re.compile(rf"(?<!\w)(?:{'|'.join(WORDS)})(?!\w)", re.IGNORECASE)
CODE = re.compile(r"^ *```.*?^ *```$|`[^`]*`|[COV]\([^)]*\)", re.DOTALL | re.MULTILINE)
PROSE = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/", "roles/")


def strings(code: str) -> str:
    """Return the texts in Python code, without docstrings."""
    tree = ast.parse(code)
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in said)
    return " | ".join(node.value for node in found if isinstance(node.value, str))


def test_prose_avoids_words_that_readers_stumble_over() -> None:
    assert [m[0] for m in AVOIDED.finditer("At once 5 % are gone, for\never. It may notice.")] == ["At once", "5 %"]
    assert AVOIDED.search(CODE.sub("", "It says `for ever`.")) is None
    assert strings('"""Nobody."""\nproblem = f"nobody {name}"') == "nobody "
    files = {name: text for name, text in texts(".md", "argument_specs.yml").items() if name.startswith(PROSE)}
    files |= {name: strings(text) for name, text in texts(".py").items() if name.startswith("plugins/plugin_utils")}
    found = []
    for name, text in files.items():
        prose = " ".join(CODE.sub("", text).split())
        found += [f"{name}: {prose[max(0, m.start() - 40) : m.end() + 20]}" for m in AVOIDED.finditer(prose)]
    assert found == []


def test_pages_have_the_commands_of_a_site_and_not_those_of_a_checkout() -> None:
    checkout = re.compile(r"ansible-playbook .*playbooks/|\bINVENTORY=")
    assert checkout.search("ansible-playbook -i inventories/a playbooks/render.yml")
    assert [name for name, text in texts(".md").items() if name.startswith("docs/") and checkout.search(text)] == []
