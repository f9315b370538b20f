"""The chart under the linters of the Helm community. For each of them a test shows that it finds what it looks for."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed import build, manifests, pins
from tests.lint.test_versions import ROOT, default

CHART = ROOT / "charts/nativelink"
SIZES = ("dev", "staging", "prod")
# Components that define kinds of which the chart has objects.
COMPONENTS = ("keda", "gateway-api", "envoy-gateway", "prometheus-operator")
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def tools() -> Mapping[str, Path]:
    return build.programs("chart")


@pytest.fixture
def environment(tools: Mapping[str, Path], tmp_path: Path) -> dict[str, str]:
    """Return an environment with Helm and yamale, which chart-testing runs, and no settings of the user."""
    path = os.pathsep.join([str(tools["helm"].parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PATH": path} | build.helm_home(tmp_path)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a copy of the chart, which a test may spoil."""
    return shutil.copytree(CHART, tmp_path / "charts/nativelink")


def run(*command: str | Path, environment: Mapping[str, str] = os.environ, stdin: str = "") -> Done:
    return subprocess.run(command, cwd=ROOT, env=environment, input=stdin, capture_output=True, text=True, check=False)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path} has no {old}"
    path.write_text(text.replace(old, new))


# --- chart-testing and helm lint


def chart_testing(chart: Path, size: str, ct: Path, environment: Mapping[str, str]) -> Done:
    """Run chart-testing, which runs `helm lint` with the values of a size.

    It stops reading what the programs that it runs print when they end, and can lose it. `commands` finds them.
    """
    modules = pins.module_set("chart-testing")
    schema = manifests.source(modules, modules.main) / "etc/chart_schema.yaml"
    command = [ct, "lint", f"--charts={chart}", f"--chart-yaml-schema={schema}"]
    # These two ask a Git hosting service who the maintainers are, and the main branch for the last version.
    command += ["--validate-maintainers=false", "--check-version-increment=false"]
    command += ["--validate-yaml=false"]  # yamllint runs on the whole repository, and is stricter there
    command += ["--debug"]  # print the commands that it runs
    values = chart / f"values-{size}.yaml"
    return run(*command, f"--helm-lint-extra-args=--strict --values={values}", environment=environment)


def commands(done: Done) -> list[list[str]]:
    """Return the commands that chart-testing ran, in their order. If one failed, it is the last."""
    return [shlex.split(line) for line in re.findall(r"^>>> (.+)$", done.stdout, re.MULTILINE)]


@pytest.mark.parametrize("size", SIZES)
def test_chart_testing_and_helm_lint_accept_the_chart(
    size: str, tools: Mapping[str, Path], environment: dict[str, str]
) -> None:
    done = chart_testing(CHART, size, tools["ct"], environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All charts linted successfully" in done.stdout
    yamale, lint = commands(done)[-2:]
    assert (yamale[0], lint[0]) == ("yamale", "helm")
    assert "1 chart(s) linted, 0 chart(s) failed" in run(*lint, environment=environment).stdout


@pytest.mark.parametrize(
    ("file", "old", "new", "program", "message"),
    [
        ("Chart.yaml", "keywords:", "keyword:", "yamale", "keyword: Unexpected element"),
        ("values-dev.yaml", "storageClass:", "storageClas:", "helm", "additional properties 'storageClas' not allowed"),
    ],
)
def test_chart_testing_refuses_a_mistake(
    file: str,
    old: str,
    new: str,
    program: str,
    message: str,
    copy: Path,
    tools: Mapping[str, Path],
    environment: dict[str, str],
) -> None:
    replace(copy / file, old, new)
    done = chart_testing(copy, "dev", tools["ct"], environment)
    assert done.returncode == 1
    assert "failed linting charts" in done.stdout
    *_, failed = commands(done)
    assert failed[0] == program
    assert message in run(*failed, environment=environment).stdout


# --- helm-docs


def outdated(chart: Path, helm_docs: Path) -> bool:
    """Tell whether helm-docs would write another README."""
    done = run(helm_docs, "--chart-search-root", chart, "--dry-run")
    assert done.returncode == 0, done.stderr
    return done.stdout != (chart / "README.md").read_text()


def test_the_readme_is_current(copy: Path, tools: Mapping[str, Path]) -> None:
    assert not outdated(CHART, tools["helm-docs"]), "run `make generate`"
    replace(copy / "values.yaml", "# -- ", "# -- Really: ")
    assert outdated(copy, tools["helm-docs"])


# --- kubeconform


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a custom resource as kubeconform needs it to find unknown keys."""
    new = dict(schema)
    if "properties" in schema:
        new["properties"] = {name: closed(value) for name, value in schema["properties"].items()}
        new.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            new[key] = closed(schema[key])
    return new


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a schema of each kind: those of the oldest supported Kubernetes, and of the components."""
    folder = tmp_path_factory.mktemp("schemas")

    def write(kind: str, group: str, version: str, schema: dict[str, Any]) -> None:
        name = "-".join(filter(None, (kind, group.partition(".")[0], version))).lower()
        (folder / f"{name}.json").write_text(json.dumps(schema))

    package = find_spec("kubernetes_validate")
    assert package is not None
    assert package.origin is not None
    minor = default("preflight", "preflight_minimum_kubernetes")
    shipped = Path(package.origin).parent / f"kubernetes-json-schema/v{minor}.0-local-strict/_definitions.json"
    types = json.loads(shipped.read_text())["$defs"]
    # The shipped file names an address on the internet as its own, to which references would then lead.
    (folder / "types.json").write_text(json.dumps({"$defs": types}))
    for name, schema in types.items():
        for kind in schema.get("x-kubernetes-group-version-kind", ()):
            write(kind["kind"], kind["group"], kind["version"], {"$ref": f"types.json#/$defs/{name}"})
    for component in COMPONENTS:
        for item in yaml.load_all(manifests.path(component).read_text(), yaml.CSafeLoader):
            if item and item["kind"] == "CustomResourceDefinition":
                names, group = item["spec"]["names"], item["spec"]["group"]
                for version in item["spec"]["versions"]:
                    write(names["kind"], group, version["name"], closed(version["schema"]["openAPIV3Schema"]))
    return folder


def conformity(objects: str, schemas: Path, kubeconform: Path) -> Done:
    location = f"{schemas}/{{{{ .ResourceKind }}}}{{{{ .KindSuffix }}}}.json"
    return run(kubeconform, "-strict", "-summary", "-schema-location", location, "-", stdin=objects)


@pytest.mark.parametrize("size", SIZES)
def test_kubeconform_accepts_the_objects(
    size: str, tools: Mapping[str, Path], environment: dict[str, str], schemas: Path
) -> None:
    command = [tools["helm"], "template", size, CHART, "--namespace=nativelink", f"--values={CHART}/values-{size}.yaml"]
    rendered = run(*command, environment=environment)
    assert rendered.returncode == 0, rendered.stderr
    done = conformity(rendered.stdout, schemas, tools["kubeconform"])
    assert done.returncode == 0, done.stdout
    valid = re.search(r"Valid: (\d+), Invalid: 0, Errors: 0, Skipped: 0$", done.stdout.strip())
    assert valid, done.stdout
    assert int(valid[1]) > 30


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {port: []}", "'port' not allowed"),
        ("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {}", "missing properties"),
        ("apiVersion: keda.sh/v1alpha1\nkind: ScaledObject\nmetadata: {name: a}\nspec: {minimum: 1}", "'minimum'"),
        ("apiVersion: example.com/v1\nkind: Stranger\nmetadata: {name: a}", "could not find schema for Stranger"),
    ],
)
def test_kubeconform_refuses_a_mistake(given: str, message: str, tools: Mapping[str, Path], schemas: Path) -> None:
    done = conformity(given, schemas, tools["kubeconform"])
    assert done.returncode == 1
    assert message in done.stdout
