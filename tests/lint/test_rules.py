"""Rules of this project that linters do not check. Each search first shows that it finds what it looks for."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed import manifests, pins

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
# Each version of a role has to agree with a set of Go modules, so that the tests install what users install.
PINS = {
    "keda_version": "keda",
    "ingress_gateway_api_version": "gateway-api",
    "ingress_envoy_gateway_version": "envoy-gateway",
    "gitops_argocd_version": "argocd",
    "gitops_flux_version": "flux",
}


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


def configurations(tree: Path) -> list[Path]:
    """Return the files that a tree's kustomization puts into ConfigMaps."""
    generators = load(tree / "kustomization.yaml").get("configMapGenerator", ())
    return [tree / file.rpartition("=")[2] for generator in generators for file in generator.get("files", ())]


# --- linters


def test_no_linter_is_told_to_skip_a_rule() -> None:
    ansible_lint = load(ROOT / ".ansible-lint")
    assert not {"skip_list", "warn_list", "mock_modules", "mock_roles"} & set(ansible_lint)
    assert ansible_lint["profile"] == "production"
    assert ansible_lint["offline"] is True
    off = [rule for rule, setting in load(ROOT / ".yamllint")["rules"].items() if setting in (False, "disable")]
    assert off == ["comments-indentation"]


NOQA = re.compile(r"#\s*noqa(?P<rules>:?\s*[\w\[\]-]+(?:,\s*[\w\[\]-]+)*)?(?P<reason>[^\n]*)")


def bare_exceptions(files: dict[str, str]) -> list[str]:
    """Return ``path: line`` of each `noqa` without a rule, or without a reason in brackets or after a dash."""
    return [
        f"{path}: {found[0]}"
        for path, text in files.items()
        for found in NOQA.finditer(text)
        if not found["rules"] or len(found["reason"].strip("() ")) < 4
    ]


def test_each_exception_has_its_reason() -> None:
    assert bare_exceptions({"x": "a = 1  # " + "noqa: S310"})
    assert bare_exceptions({"x": "a = 1  # " + "noqa"})
    assert not bare_exceptions({"x": "a = 1  # " + "noqa: S310 (an address of our own)"})
    sources = texts(".py", ".yml")
    del sources["tests/lint/test_rules.py"]
    assert bare_exceptions(sources) == []


def test_yml_is_ansible_and_yaml_is_kubernetes() -> None:
    def kinds(text: str) -> set[bool]:
        documents = [document for document in yaml.safe_load_all(text) if document]
        return {isinstance(document, dict) and "apiVersion" in document for document in documents}

    assert kinds("apiVersion: v1\nkind: Pod") == {True}
    assert kinds("- hosts: all") == {False}
    # A program's configuration in a tree is the content of a ConfigMap, and not an object.
    data = {str(path.relative_to(ROOT)) for tree in ROOT.glob("clusters/*/rendered") for path in configurations(tree)}
    # Tools give these their names. Helm's templates are no YAML before they are rendered.
    named = ("hack/chart/", "charts/", "changelogs/", ".pre-commit-config.yaml")
    objects = {path: text for path, text in texts(".yaml").items() if not path.startswith(named)}
    assert [path for path, text in objects.items() if path not in data and kinds(text) - {True}] == []
    assert [path for path, text in texts(".yml").items() if kinds(text) - {False}] == []


# --- roles


def versions() -> dict[str, tuple[str, str]]:
    """Return the value of each version variable of the roles' defaults, and the line above it."""
    found = {}
    for file in ROOT.glob("roles/*/defaults/**/*.yml"):
        lines = file.read_text().splitlines()
        for above, line in zip(["", *lines], lines, strict=False):
            if match := re.match(r'(\w+_version): "?([^"\s{]+)"?', line):
                found[match[1]] = (match[2], above)
    return found


def test_renovate_finds_each_version() -> None:
    (manager,) = json.loads((ROOT / "renovate.json").read_text())["customManagers"]
    (files,), (pattern,) = manager["managerFilePatterns"], manager["matchStrings"]
    pattern = pattern.replace("(?<", "(?P<")
    line = "# renovate: datasource=docker depName=a/b\na_image: docker.io/a/b:1.2\n"
    assert re.search(pattern, line).group("datasource", "depName", "currentValue") == ("docker", "a/b", "1.2")
    defaults = [path for path in texts() if re.search(files.strip("/"), path)]
    found = {each["currentValue"] for path in defaults for each in re.finditer(pattern, (ROOT / path).read_text())}
    assert len(versions()) >= 5
    assert {version for version, _ in versions().values()} <= found


def test_each_version_stands_once() -> None:
    files = {
        path: text
        for path, text in texts().items()
        if path.startswith(("roles/", "playbooks/", "plugins/", "inventories/", "Makefile"))
        # Prose may name versions, and versions.yml is the table of versions.
        and not path.endswith(("README.md", "argument_specs.yml", "versions.yml"))
    }
    # A comment or a docstring may name the version on which a fact was seen.
    files = {path: re.sub(r'""".*?"""', "", re.sub(r"#.*", "#", text), flags=re.DOTALL) for path, text in files.items()}
    for name, (version, _) in versions().items():
        number = version.removeprefix("v")
        places = [place for place in mentions(files, [number]) if not re.search(rf"\d{re.escape(number)}", place)]
        owner = [place for place in places if "/defaults/" in place]
        assert (name, places) == (name, owner[:1])


@pytest.mark.parametrize(("variable", "module_set"), PINS.items())
def test_what_tests_install_is_what_users_install(variable: str, module_set: str) -> None:
    assert versions()[variable][0].removeprefix("v") == pins.versions()[module_set].removeprefix("v")


def test_every_pinned_release_has_an_offline_manifest() -> None:
    assert {
        component: variable.replace("_version", "_manifest") for variable, component in PINS.items()
    } == manifests.VARIABLES


def kinds() -> set[tuple[str, str]]:
    """Return the (group, kind) of every object that a tree may hold."""
    heads = re.compile(r"^apiVersion: (?:([a-z0-9.-]+)/)?v\w+\nkind: (\w+)$", re.MULTILINE)
    templates = (ROOT / "roles/nativelink/templates").rglob("*.yaml.j2")
    found = {head for path in templates for head in heads.findall(path.read_text())}
    return found - {("kustomize.config.k8s.io", "Kustomization")} | {("", "ConfigMap")}  # which kustomize makes


def test_the_engine_may_apply_all_that_is_rendered_and_nothing_else() -> None:
    listed = load(ROOT / "roles/gitops/vars/main.yml")["__gitops_kinds"]
    allowed = {(each["group"], each["kind"]) for each in listed}
    assert ("monitoring.coreos.com", "ServiceMonitor") in allowed
    assert allowed == kinds()


# --- scripts


@pytest.mark.parametrize("script", [".ci/run", "hack/venv", "hack/newest-python", "hack/link", "hack/sanity"])
def test_scripts_are_valid_and_may_be_run(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_shared_code_is_in_no_folder_of_tests() -> None:
    taken = re.compile(r"^\s*(from|import) tests\b", re.MULTILINE)
    files = texts(".py")
    assert taken.search(files["tests/e2e/engines/test_engines.py"])
    assert [path for path, text in files.items() if not path.startswith("tests/") and taken.search(text)] == []
