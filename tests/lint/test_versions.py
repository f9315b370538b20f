"""Each version is defined in one place. Every other place that needs the version is compared with that one."""

import hashlib
import json
import re
import tomllib

import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils import digests, specs

from testbed import manifests, pins
from tests.lint.test_rules import ROOT, mentions, texts

# Versions are numbers here, without a v, which only some projects write.
VERSIONS = {
    name: str(version).removeprefix("v") for name, version in specs.defaults().items() if name.endswith("_version")
}
MINIMUM = str(specs.defaults()["preflight_minimum_kubernetes"])
# The sets of Go modules with which versions of the roles agree, so that the tests install what users install.
PINS = {
    "keda_version": "keda",
    "ingress_gateway_api_version": "gateway-api",
    "ingress_envoy_gateway_version": "envoy-gateway",
    "gitops_argocd_version": "argocd",
    "gitops_flux_version": "flux",
}
# The pages that show what a user gets today. Others state the version on which a fact was seen.
PAGES = ("README.md", "docs/index.md", "docs/air-gapped.md", "docs/tutorials/")
NAMES = {
    **{name: VERSIONS[variable] for variable, name in PINS.items()},
    "Envoy Gateway": VERSIONS["ingress_envoy_gateway_version"],
    "NativeLink": VERSIONS["nativelink_version"],
    "Kubernetes": MINIMUM,
}
SHOWN = re.compile(rf"\b({'|'.join(NAMES)}) v?(\d+(?:\.\d+)+)")


def outdated(text: str) -> list[str]:
    """Return the versions in a page that are not the defaults of the roles."""
    return [found[0] for found in SHOWN.finditer(text) if found[2] != NAMES[found[1]]]


def test_pages_show_the_versions_that_are_installed() -> None:
    assert outdated("keda 2.0.1: installed, on Kubernetes 1.29") == ["keda 2.0.1", "Kubernetes 1.29"]
    pages = {path: text for path, text in texts(".md").items() if path.startswith(PAGES)}
    assert {path: found for path, text in pages.items() if (found := outdated(text))} == {}
    assert len(SHOWN.findall(pages["README.md"])) >= 5, "the README shows versions"


def test_renovate_finds_each_version() -> None:
    manager, _ = json.loads((ROOT / "renovate.json").read_text())["customManagers"]
    (files,), (pattern,) = manager["managerFilePatterns"], manager["matchStrings"]
    pattern = pattern.replace("(?<", "(?P<")
    line = "# renovate: datasource=docker depName=a/b\na_image: docker.io/a/b:1.2\n"
    assert re.search(pattern, line).group("datasource", "depName", "currentValue") == ("docker", "a/b", "1.2")
    defaults = [text for path, text in texts().items() if re.search(files.strip("/"), path)]
    found = {each["currentValue"].removeprefix("v") for text in defaults for each in re.finditer(pattern, text)}
    assert set(VERSIONS.values()) <= found


@pytest.mark.parametrize("name", ["renovate.json", "roles/site/templates/renovate.json.j2"])
def test_renovate_finds_each_digest(name: str) -> None:
    settings = json.loads((ROOT / name).read_text())
    manager, rule = settings["customManagers"][1], settings["packageRules"][0]
    (files,), (pattern,) = manager["managerFilePatterns"], manager["matchStrings"]
    assert re.search(files.strip("/"), "inventories/farm/host_vars/dev/digests.yml")
    assert rule["matchFileNames"] == ["inventories/**/digests.yml"]
    text = digests.text_of(
        {"a_image_digest": f"sha256:{'0' * 64} # mirror:5000/a/b:1.2", "b_digest": f"sha256:{'f' * 64} # b:x"}
    )
    found = re.finditer(pattern.replace("(?<", "(?P<"), text)
    assert [each.group("depName", "currentValue", "currentDigest") for each in found] == [
        ("mirror:5000/a/b", "1.2", f"sha256:{'0' * 64}"),
        ("b", "x", f"sha256:{'f' * 64}"),
    ]


def test_each_release_has_a_checksum_that_renovate_finds() -> None:
    manager, _ = json.loads((ROOT / "renovate.json").read_text())["customManagers"]
    (pattern,) = manager["matchStrings"]
    text = "".join(path.read_text() for path in ROOT.glob("roles/*/defaults/**/*.yml"))
    found = {
        each["depName"]: (each["datasource"], each["currentDigest"])
        for each in re.finditer(pattern.replace("(?<", "(?P<"), text)
    }
    releases = {"kedacore/keda", "kubernetes-sigs/gateway-api", "envoyproxy/gateway", "fluxcd/flux2"}
    attached = {name: digest for name, (source, digest) in found.items() if source == "github-release-attachments"}
    assert attached.keys() == releases
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in attached.values())
    assert found["argoproj/argo-cd"] == ("github-releases", None)  # its manifest is a file of the repository


def test_the_checksum_of_argo_cds_manifest_is_that_of_its_go_module() -> None:
    modules = pins.module_set("argocd")
    manifest = manifests.source(modules, modules.main) / "manifests" / "core-install.yaml"
    wanted = specs.written()["gitops_argocd_manifest_sha256"]
    assert hashlib.sha256(manifest.read_bytes()).hexdigest() == wanted


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
    for name, number in VERSIONS.items():
        places = [place for place in mentions(files, [number]) if not re.search(rf"\d{re.escape(number)}", place)]
        owner = [place for place in places if "/defaults/" in place]
        assert (name, places) == (name, owner[:1])


def test_what_tests_install_is_what_users_install() -> None:
    pinned = {name: pins.versions()[name].removeprefix("v") for name in PINS.values()}
    assert pinned == {name: VERSIONS[variable] for variable, name in PINS.items()}
    assert {name: variable.replace("_version", "_manifest") for variable, name in PINS.items()} == manifests.VARIABLES


def test_the_project_and_its_chart_have_one_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((ROOT / "galaxy.yml").read_text())["version"] == version
    tarballs = re.findall(r"nativelink-gitops-(\S+?)\.tar\.gz", (ROOT / "execution-environment.yml").read_text())
    assert tarballs == [version, version]
    chart = yaml.safe_load((ROOT / "charts/nativelink/Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, f"v{VERSIONS['nativelink_version']}")
    # Without "-0" Helm would refuse the versions of cloud providers, such as v1.31.4-eks-1a2b3c.
    assert chart["kubeVersion"] == f">={MINIMUM}.0-0"


def test_the_collection_requires_what_its_plugins_import() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    required = (ROOT / "meta/requirements.txt").read_text().split()
    assert required == [package for package in project if not package.startswith("ansible")]
    names = ["cryptography", "grpcio", "kubernetes", "kubernetes-validate", "protobuf"]
    assert [name.partition(">")[0] for name in required] == names
