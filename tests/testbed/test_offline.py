"""The release manifests that `make bootstrap` prepares are those that the clusters of its inventory install."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from testbed import build, cache, pins

ROOT = Path(__file__).parents[2]
KEDA, GATEWAY_API, ENVOY_GATEWAY = "keda_manifest", "ingress_gateway_api_manifest", "ingress_envoy_gateway_manifest"
ARGOCD, FLUX = "gitops_argocd_manifest", "gitops_flux_manifest"
LOCAL = ("-i", "inventories/local")
# Each cluster has another engine. A variable that only this inventory has names one of them.
TWO = """
all:
  vars: {engine: argocd, ingress_provider: existing, keda_install: existing}
  hosts:
    one: {gitops_provider: "{{ engine }}"}
    two: {gitops_provider: flux}
"""
BROKEN = 'all: {hosts: {one: {keda_install: "{{ nowhere }}"}}}'


def run(target: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ".ci/offline.py", str(target), *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ((), {KEDA, GATEWAY_API, ENVOY_GATEWAY, ARGOCD, FLUX}),
        ((*LOCAL, "--check", "--tags", "keda"), {KEDA, GATEWAY_API, ENVOY_GATEWAY}),
        ((*LOCAL, "-e", "gitops_provider=flux"), {KEDA, GATEWAY_API, ENVOY_GATEWAY, FLUX}),
        ((*LOCAL, "-e", "gitops_provider=argocd gitops_install=existing"), {KEDA, GATEWAY_API, ENVOY_GATEWAY}),
        ((*LOCAL, "-e", "ingress_provider=nginx keda_install=existing"), set()),
        ((*LOCAL, "-e", "ingress_gateway_api_install=existing"), {KEDA, ENVOY_GATEWAY}),
        (("-i", "two.yml"), {ARGOCD, FLUX}),
        (("-i", "two.yml", "--limit", "one"), {ARGOCD}),
        # The playbook reports the errors of these.
        (("-i", "broken.yml"), set()),
        ((*LOCAL, "--limit", "other"), set()),
    ],
)
def test_only_manifests_that_are_installed_are_named(
    tmp_path: Path, arguments: tuple[str, ...], wanted: set[str]
) -> None:
    for name, text in (("two.yml", TWO), ("broken.yml", BROKEN)):
        (tmp_path / name).write_text(text)
    paths = [str(tmp_path / each) if each.endswith(".yml") else each for each in arguments]
    target = tmp_path / "new" / "variables.yml"
    done = run(target, *paths)
    assert done.returncode == 0, done.stderr
    variables = yaml.safe_load(target.read_text())
    assert variables.pop("keda_wait_for_metrics_api") is False
    assert set(variables) == wanted
    assert all(Path(path).is_file() for path in variables.values())


def test_nothing_else_is_made_in_an_empty_cache(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name, path in build.binaries(build.CLUSTER_SETS | build.HELM_SET).items():
        (tmp_path / "bin" / name).symlink_to(path)
    folder = tmp_path / "nativelink-gitops"
    folder.mkdir()
    (folder / "go").symlink_to(cache.root() / "go")  # the toolchain, if PATH has none
    environment = {"XDG_CACHE_HOME": str(tmp_path), "TESTBED_BIN": str(tmp_path / "bin")}

    done = run(tmp_path / "variables.yml", *LOCAL, **environment)
    again = run(tmp_path / "variables.yml", *LOCAL, **environment)

    versions = pins.versions()
    keda, gateway_api, envoy_gateway = versions["keda"], versions["gateway-api"], versions["envoy-gateway"]
    assert [line for line in done.stderr.splitlines() if "making" in line] == [
        f"[1/3] making the manifest of keda {keda} (some seconds)",
        f"[2/3] making the manifest of gateway-api {gateway_api} (some seconds)",
        f"[3/3] making the manifest of envoy-gateway {envoy_gateway} (about a minute, most of it for Helm)",
    ]
    assert "making" not in again.stderr
    assert (done.returncode, again.returncode) == (0, 0)
    assert {path.name for path in folder.glob("manifests/*/*.yaml")} == {
        f"keda-{keda}.yaml",
        f"gateway-api-{gateway_api}.yaml",
        f"envoy-gateway-{envoy_gateway}.yaml",
    }


def test_a_manifest_that_cannot_be_made_is_reported_without_a_traceback(tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path), "TESTBED_BIN": str(tmp_path)}
    done = run(tmp_path / "variables.yml", *LOCAL, **environment)
    assert done.returncode == 1
    missing = "kube-apiserver, kube-controller-manager, kube-scheduler, kubectl"
    assert done.stderr.splitlines()[-1] == f"testbed: TESTBED_BIN={tmp_path} has no executable {missing}"
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "variables.yml").exists()


def test_make_bootstrap_passes_its_arguments_on() -> None:
    def lines(*arguments: str) -> list[str]:
        command = ["make", "--dry-run", "--no-print-directory", "--old-file=venv", "bootstrap", *arguments]
        # This make must not get the variables of an outer make.
        environment = {
            name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "INVENTORY", "ARGS"}
        }
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    assert lines("ARGS=--limit local")[-2:] == [
        "python .ci/offline.py .testbed/manifests.yml -i inventories/local --limit local",
        "ansible-playbook -i inventories/local -e @.testbed/manifests.yml playbooks/bootstrap.yml --limit local",
    ]
    assert lines("INVENTORY=inventories/reference") == [
        "ansible-playbook -i inventories/reference  playbooks/bootstrap.yml "
    ]
