"""Rules of this project that linters do not check. Each search first shows that it finds what it looks for."""

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
# The names are in pieces, so that this file does not contain them.
REGISTRIES = (
    ("pypi", "org"),
    ("python" + "hosted", "org"),
    ("proxy", "golang", "org"),
    ("sum", "golang", "org"),
    ("registry", "npmjs", "org"),
    ("galaxy", "ansible", "com"),
)


def committed() -> list[Path]:
    """Return every file that is, or is about to be, in Git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in sorted(set(names)) if (ROOT / name).is_file()]


def texts(*suffixes: str) -> dict[str, str]:
    """Return the text files with one of the suffixes (all, if none is given), by path."""
    found = {}
    for path in committed():
        if not suffixes or path.name.endswith(suffixes):
            try:
                found[str(path.relative_to(ROOT))] = path.read_text()
            except UnicodeDecodeError:
                continue
    return found


def mentions(files: dict[str, str], words: Iterable[str]) -> list[str]:
    """Return ``path:line: word`` of each place that has one of the words."""
    return [
        f"{path}:{number}: {word}"
        for path, text in files.items()
        for word in words
        if word in text
        for number, line in enumerate(text.splitlines(), 1)
        if word in line
    ]


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


# --- words that committed files must not contain


def test_no_file_names_a_package_registry() -> None:
    words = [".".join(parts) for parts in REGISTRIES]
    assert mentions({"x": f"a\nindex = https://{words[0]}/simple\n"}, words) == [f"x:2: {words[0]}"]
    assert mentions(texts(), words) == []


def test_no_file_names_a_path_of_this_machine() -> None:
    words = [f"{ROOT}/", f"{Path.home()}/"]
    assert mentions({"x": f"see {ROOT}/Makefile"}, words[:1]) == [f"x:1: {ROOT}/"]
    assert mentions(texts(), words) == []


# --- linters


def test_no_linter_is_told_to_skip_a_rule() -> None:
    ansible_lint = load(ROOT / ".ansible-lint")
    assert not {"skip_list", "warn_list", "mock_modules", "mock_roles"} & set(ansible_lint)
    assert ansible_lint["profile"] == "production"
    assert ansible_lint["offline"] is True
    off = [rule for rule, setting in load(ROOT / ".yamllint")["rules"].items() if setting in (False, "disable")]
    assert off == ["comments-indentation"]


def test_yml_is_ansible_and_yaml_is_kubernetes() -> None:
    def kinds(text: str) -> set[bool]:
        documents = [document for document in yaml.safe_load_all(text) if document]
        return {isinstance(document, dict) and "apiVersion" in document for document in documents}

    assert kinds("apiVersion: v1\nkind: Pod") == {True}
    assert kinds("- hosts: all") == {False}
    # Tools give these their names, Helm's templates are no YAML, and trees also hold configurations of programs.
    named = ("hack/chart/", "charts/", "clusters/", "changelogs/", ".pre-commit-config.yaml")
    objects = {path: text for path, text in texts(".yaml").items() if not path.startswith(named)}
    assert [path for path, text in objects.items() if kinds(text) - {True}] == []
    assert [path for path, text in texts(".yml").items() if kinds(text) - {False}] == []


# --- roles


def kinds() -> set[tuple[str, str]]:
    """Return the (group, kind) of every object that a tree may hold."""
    heads = re.compile(r"^apiVersion: (?:([a-z0-9.-]+)/)?v\w+\nkind: (\w+)$", re.MULTILINE)
    templates = (ROOT / "roles/nativelink/templates").rglob("*.yaml.j2")
    trees = [path for path in templates if path.parent.name != "grow"]  # which a playbook applies
    found = {head for path in trees for head in heads.findall(path.read_text())}
    return found - {("kustomize.config.k8s.io", "Kustomization")} | {("", "ConfigMap")}  # which kustomize makes


def test_the_engine_may_apply_all_that_is_rendered_and_nothing_else() -> None:
    listed = load(ROOT / "roles/gitops/vars/main.yml")["__gitops_kinds"]
    allowed = {(each["group"], each["kind"]) for each in listed}
    assert ("monitoring.coreos.com", "ServiceMonitor") in allowed
    assert allowed == kinds()


def test_shared_code_is_in_no_folder_of_tests() -> None:
    taken = re.compile(r"^\s*(from|import) tests\b", re.MULTILINE)
    files = texts(".py")
    assert taken.search(files["tests/e2e/engines/test_engines.py"])
    assert [path for path, text in files.items() if not path.startswith("tests/") and taken.search(text)] == []
