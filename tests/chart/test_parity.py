"""The chart makes the same objects as the tree, and its files in ConfigMaps byte for byte."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render, tree
from ansible_collections.nativelink.gitops.plugins.plugin_utils.context import context
from hypothesis import example, given, settings

from hack.chart import values
from testkit.inventories import ACCESS, AZURE, inventories
from testkit.trees import Object, documents, kustomized, values_of
from tests.chart.conftest import CHART, Cluster, Done, Helm

Template = Callable[..., Done]
Objects = dict[tuple[str, str, str], Object]
CLASS = {"nativelink_cas_storage_class": "gp3"}
REFERENCE = {name: {**cluster, **CLASS} for name, cluster in values.reference().items()}


def named(objects: list[Object]) -> Objects:
    """Return objects by kind, namespace and name."""
    names = [(item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]) for item in objects]
    return dict(zip(names, objects, strict=True))


def of_the_tree(cluster: Cluster, folder: Path) -> Objects:
    tree.write(folder, render.tree(cluster))
    return named(kustomized(folder))


def of_the_chart(template: Template, cluster: Cluster, chart: Path = CHART) -> Objects:
    done = template(cluster, chart)
    assert (done.returncode, done.stderr) == (0, "")
    return named(documents(done.stdout))


@pytest.mark.parametrize("name", ["dev", "staging", "prod"])
def test_the_values_file_of_a_committed_inventory(name: str, helm: Helm, tmp_path: Path) -> None:
    done = helm("template", name, CHART, "-n", "nativelink", "-f", CHART / f"values-{name}.yaml", "--skip-tests")
    assert named(documents(done.stdout)) == of_the_tree(REFERENCE[name], tmp_path / name), done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trees") / "tree"


@settings(max_examples=120)
@example(ACCESS)
@example(AZURE)
@given(inventories())
def test_a_generated_inventory(template: Template, folder: Path, variables: dict[str, Any]) -> None:
    cluster = values_of(
        **{**variables, "nativelink_cas_storage_class": variables.get("nativelink_cas_storage_class") or "gp3"}
    )
    assert of_the_chart(template, cluster) == of_the_tree(cluster, folder)


def test_the_examples_have_each_feature_and_its_opposite() -> None:
    """A formula that no example exercises could differ in the two languages."""
    examples = [*REFERENCE.values(), values_of(**ACCESS), values_of(**AZURE)]
    seen = {each for cluster in examples for each in context(cluster).features.items()}

    @settings(max_examples=200, database=None, derandomize=True)
    @given(inventories())
    def collect(variables: dict[str, Any]) -> None:
        seen.update(context(values_of(**variables)).features.items())

    collect()
    names = {name for name, _ in seen} - {"always"}
    assert [name for name in names if not {(name, True), (name, False)} <= seen] == []


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("templates/cas/_cas.json5.tpl", "verify_hash: true", "verify_hash: false"),
        ("templates/cas/statefulset.yaml", "podManagementPolicy: Parallel", "podManagementPolicy: OrderedReady"),
        ("templates/_context.tpl", "div $values.startupTimeout", "add $values.startupTimeout"),
        ("files/monitoring.yaml", "> 0.05", "> 0.06"),
    ],
)
def test_a_difference_is_seen(file: str, old: str, new: str, template: Template, tmp_path: Path) -> None:
    chart = shutil.copytree(CHART, tmp_path / "nativelink")
    text = (chart / file).read_text()
    assert old in text
    (chart / file).write_text(text.replace(old, new))
    assert of_the_chart(template, REFERENCE["prod"], chart) != of_the_tree(REFERENCE["prod"], tmp_path / "tree")
