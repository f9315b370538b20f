"""Tests of the images without a cluster: their names."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from testbed import build, components, manifests, pins
from testkit.trees import ROOT, VERSION


@pytest.fixture
def unbuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put empty files in place of the binaries, because the names do not depend on them."""
    for name in build.PROGRAMS:
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("TESTBED_BIN", str(tmp_path))


def references(component: str) -> set[str]:
    return {image.reference for image in components.images_of(component)}


def test_an_image_has_the_version_that_its_name_says(unbuilt: None) -> None:
    otelcol = pins.module_set("collector").requires["go.opentelemetry.io/collector/otelcol"].removeprefix("v")
    assert references("collector") == {f"docker.io/otel/opentelemetry-collector-contrib:{otelcol}"}
    assert pins.module_set("prometheus").version == "v0.316.0"
    assert references("prometheus") == {"quay.io/prometheus/prometheus:v3.16.0"}
    read, built = pins.module_set("flux").requires, pins.module_set("flux-controllers").requires
    for name in ("source-controller", "kustomize-controller", "helm-controller"):
        assert built[f"github.com/fluxcd/{name}"] == read[f"github.com/fluxcd/{name}"]


def test_helm_is_the_one_that_argo_cd_calls() -> None:
    modules = pins.module_set("argocd")
    text = (manifests.source(modules, modules.main) / "hack" / "tool-versions.sh").read_text()
    assert re.findall(r"^HELM_VERSION=(\S+)$", text, re.MULTILINE) == [pins.versions()["helm"].removeprefix("v")]


def test_envoy_is_the_one_that_envoy_gateway_starts(unbuilt: None) -> None:
    modules = pins.module_set("envoy-gateway")
    source = (manifests.source(modules, modules.main) / "api" / "v1alpha1" / "shared_types.go").read_text()
    (version,) = re.findall(r'DefaultEnvoyProxyImage += "docker.io/envoyproxy/envoy:distroless-v([\d.]+)@', source)
    assert f"docker.io/envoyproxy/envoy:distroless-v{version}" in references("envoy-gateway")


def test_make_lists_the_images_to_mirror(tmp_path: Path) -> None:
    (tmp_path / "release.yaml").write_text('spec:\n  containers:\n    - image: "example.com/engine:v1"\n')
    command = ["make", "-s", "images", f"RELEASES={tmp_path}/release.yaml"]
    env = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}  # those of `make test`
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=env)
    listed = done.stdout.splitlines()
    assert "example.com/engine:v1" in listed
    assert f"ghcr.io/tracemachina/nativelink:{VERSION}" in listed
    assert "docker.io/library/buildpack-deps:bookworm" in listed
    assert listed == sorted(set(listed))
