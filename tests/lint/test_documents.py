"""The rules for Markdown, and for the documentation site. Each check first shows that it finds what it looks for."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from hack import docs_hooks
from tests.lint.test_rules import ROOT, texts

LINKS = re.compile(r"\]\(([^)\s]+)\)")
PAGES = re.compile(r"\bdocs/[\w/-]+\.md(?:#[\w-]+)?")
FENCES = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)

# A selector has no place to break a line.
PROMQL = re.compile(r"^```promql.*?^```$", re.DOTALL | re.MULTILINE)


def blank(found: re.Match[str]) -> str:
    """Return as many empty lines as the match has."""
    return "\n" * found[0].count("\n")


# --- Markdown


def test_lines_have_at_most_120_characters() -> None:
    longer = re.compile(r"^.{121,}$", re.MULTILINE)
    assert longer.findall(f"{'ä' * 120}\n{'x' * 121}\n") == ["x" * 121]
    pages = texts(".md")
    del pages["CHANGELOG.md"]  # antsibull-changelog does not wrap
    prose = {name: PROMQL.sub(blank, text) for name, text in pages.items()}
    assert {name: found for name, text in prose.items() if (found := longer.findall(text))} == {}


def dead_links(files: dict[str, str]) -> list[str]:
    """Return ``file: target`` of each relative link in Markdown whose file or heading does not exist.

    Messages and comments in other files name pages from the root folder.
    """

    def anchors(path: Path) -> set[str]:
        headings = re.findall(r"^#+ (.+)$", FENCES.sub(blank, path.read_text()), re.MULTILINE)
        return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}

    dead = []
    for name, text in files.items():
        markdown = name.endswith(".md")
        found = LINKS.findall(FENCES.sub(blank, text)) if markdown else PAGES.findall(text)
        for target in found:
            if "://" in target:
                continue
            path, _, anchor = target.partition("#")
            folder = (ROOT / name).parent if markdown else ROOT
            file = folder / path if path else ROOT / name
            if not file.exists() or (anchor and anchor not in anchors(file)):
                dead.append(f"{name}: {target}")
    return dead


def test_links_lead_somewhere_and_messages_name_pages_that_exist() -> None:
    # The name is in pieces, so that this file does not contain it.
    nowhere = "docs/" + "nowhere.md"
    links = "[a](nowhere.md) [b](README.md#no-heading) [c](LICENSE) [d](docs/how-to.md#add-a-pool)"
    found = dead_links({"README.md": links, "a/b.py": f'"see {nowhere}", "see docs/changes.md"'})
    assert found == ["README.md: nowhere.md", "README.md: README.md#no-heading", f"a/b.py: {nowhere}"]
    assert dead_links(texts()) == []


# --- the site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NATIVELINK_GITOPS": ""}
    subprocess.run([sys.executable, "-m", "mkdocs", "build", "-d", folder], cwd=ROOT, env=environment, check=True)
    return folder


# The addresses from which a browser loads something to show a page. A link that a reader may follow is not one.
LOADED = re.compile(r"""<(?!a\s)[^>]*\s(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)""")


def test_a_browser_loads_nothing_from_the_network(site: Path) -> None:
    assert LOADED.findall('<script src="//a/b.js"></script>\n<a\nhref="https://c">d</a><img src=a//b>') == ["//a/b.js"]
    pages = {str(page.relative_to(site)): page.read_text() for page in sorted(site.rglob("*.html"))}
    assert len(pages) > 20
    assert {name: found for name, text in pages.items() if (found := LOADED.findall(text))} == {}
    # The theme fetches a program for diagrams in the text from a CDN, so that diagrams are pictures.
    assert [name for name, text in pages.items() if 'class="mermaid"' in text] == []


def test_a_link_out_of_the_folder_becomes_a_path_or_leads_to_the_repository(site: Path) -> None:
    assert "<code>testbed/README.md</code>" in (site / "gitops.html").read_text()
    page = SimpleNamespace(file=SimpleNamespace(src_uri="a/b.md"))
    config = SimpleNamespace(repo_url="https://git.example.com/x")
    found = docs_hooks.on_page_markdown("[c](../../d.md#e) [f](../g.md)", page=page, config=config)
    assert found == "[c](https://git.example.com/x/blob/main/d.md) [f](../g.md)"


def test_the_name_of_a_variable_is_a_link_to_its_place(site: Path) -> None:
    link = '<a href="../variables.html#nativelink_max_open_files"><code>nativelink_max_open_files</code></a>'
    assert link not in (page := (site / "alerts/NativeLinkUploadErrors.html").read_text()), "it is in a link already"
    assert '<a href="../variables.html#nativelink_metrics"><code>nativelink_metrics</code></a>' in page
    assert 'id="nativelink_metrics"' in (site / "variables.html").read_text()


def test_the_page_of_an_alert_is_in_the_navigation_and_has_a_callout(site: Path) -> None:
    page = (site / "alerts/NativeLinkCASDiskFull.html").read_text()
    assert re.search(r'md-nav__link--active">\s*<span class="md-ellipsis">\s*NativeLinkCASDiskFull', page)
    assert '<div class="admonition warning">' in (site / "helm.html").read_text()


# --- the pages of alerts

PARTS = ["Confirm", "Mitigate", "Prevent"]


def incomplete(pages: dict[str, str]) -> list[str]:
    """Return the pages of alerts, by name, whose title is not their name, or that do not have the three parts."""
    headings = {name: re.findall(r"^##? (.+)$", FENCES.sub(blank, text), re.MULTILINE) for name, text in pages.items()}
    return [name for name, found in headings.items() if found != [name, *PARTS]]


def test_pages_of_alerts_have_the_same_parts() -> None:
    parts = "".join(f"## {part}\n\n" for part in PARTS)
    assert incomplete({"A": f"# A\n\n{parts}", "B": f"# A\n\n{parts}", "C": "# C\n\n## Confirm\n"}) == ["B", "C"]
    pages = {path.stem: path.read_text() for path in sorted((ROOT / "docs/alerts").glob("NativeLink*.md"))}
    assert incomplete(pages) == []


# --- the page of messages


def said() -> str:
    """Return the strings of the plugins, with ``…`` for expressions, and the roles' tasks."""
    found = []
    for name, text in texts(".py", ".yml", ".sh").items():
        if not name.startswith(("plugins/", "roles/", "playbooks/")):
            continue
        if not name.endswith(".py"):
            found.append(re.sub(r"\{\{.*?\}\}", "…", text, flags=re.DOTALL))
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant):
                found.append(str(node.value))
    return "\n".join(" ".join(text.split()) for text in found)


def unsaid(page: str, code: str) -> list[str]:
    """Return the messages of a page that are not in the code. Kubernetes' own messages are marked, and left out."""
    heads = re.findall(r"^- `([^`]+)`(.*)$", page, re.MULTILINE)
    ours = [head for head, rest in heads if "Kubernetes' own words" not in rest]
    return [head for head in ours if not all(part.strip(" ;") in code for part in head.split("…"))]


def test_the_documented_messages_are_those_of_the_code() -> None:
    code = said()
    assert unsaid("- `the cluster has no StorageClass`\n- `it … drizzles`\n", code) == ["it … drizzles"]
    page = (ROOT / "docs/messages.md").read_text()
    assert page.count("\n- `") > 20
    assert unsaid(page, code) == []
