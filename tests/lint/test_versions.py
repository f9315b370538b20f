"""Each version is defined in one place. Every other place that needs the version is compared with that one."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
# The pages that show what a user gets today. Others state the version on which a fact was seen.
PAGES = [
    "README.md",
    "docs/index.md",
    "docs/air-gapped.md",
    *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs/tutorials").glob("*.md")),
]
NAMES = {
    "keda": ("keda", "keda_version"),
    "gateway-api": ("ingress", "ingress_gateway_api_version"),
    "envoy-gateway": ("ingress", "ingress_envoy_gateway_version"),
    "Envoy Gateway": ("ingress", "ingress_envoy_gateway_version"),
    "NativeLink": ("nativelink", "nativelink_version"),
    "Kubernetes": ("preflight", "preflight_minimum_kubernetes"),
}
SHOWN = re.compile(rf"\b({'|'.join(NAMES)}) v?(\d+(?:\.\d+)+)")


def default(role: str, variable: str) -> str:
    texts = (path.read_text() for path in (ROOT / "roles" / role / "defaults").rglob("*.yml"))
    (found,) = (defaults[variable] for defaults in map(yaml.safe_load, texts) if variable in defaults)
    return str(found).removeprefix("v")


def outdated(text: str) -> list[str]:
    """Return the versions in a page that are not the defaults of the roles."""
    return [found[0] for found in SHOWN.finditer(text) if found[2] != default(*NAMES[found[1]])]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_the_versions_that_are_installed(page: str) -> None:
    assert outdated((ROOT / page).read_text()) == []


def test_an_outdated_page_is_found() -> None:
    assert outdated("keda 2.0.1: installed, on Kubernetes 1.29") == ["keda 2.0.1", "Kubernetes 1.29"]
    assert len(SHOWN.findall((ROOT / "README.md").read_text())) >= 5, "the README shows versions"


def test_the_project_has_one_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((ROOT / "galaxy.yml").read_text())["version"] == version
    tarballs = re.findall(r"nativelink-gitops-(\S+?)\.tar\.gz", (ROOT / "execution-environment.yml").read_text())
    assert tarballs == [version, version]
    assert yaml.safe_load((ROOT / "charts/nativelink/Chart.yaml").read_text())["version"] == version


def test_the_chart_installs_the_versions_of_the_roles() -> None:
    chart = yaml.safe_load((ROOT / "charts/nativelink/Chart.yaml").read_text())
    assert chart["appVersion"] == f"v{default('nativelink', 'nativelink_version')}"
    # Without "-0" Helm would refuse the versions of cloud providers, such as v1.31.4-eks-1a2b3c.
    assert chart["kubeVersion"] == f">={default('preflight', 'preflight_minimum_kubernetes')}.0-0"


def test_the_collection_requires_what_its_plugins_import() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    required = (ROOT / "meta/requirements.txt").read_text().split()
    assert required == [package for package in project if not package.startswith("ansible")]
    assert [name.partition(">")[0] for name in required] == ["cryptography", "kubernetes", "kubernetes-validate"]
