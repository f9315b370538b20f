"""The objects of the role gitops in the cluster."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest

Kubectl = Callable[..., Any]

REPOSITORY = "https://git.example.com/builds.git"


@pytest.mark.parametrize(
    ("kind", "namespace", "name"),
    [
        ("statefulset", "argocd", "argocd-application-controller"),
        ("deployment", "argocd", "argocd-repo-server"),
        ("deployment", "flux-system", "source-controller"),
        ("deployment", "flux-system", "kustomize-controller"),
    ],
)
def test_the_engines_are_ready(kubectl: Kubectl, kind: str, namespace: str, name: str) -> None:
    assert kubectl("get", kind, name, f"--namespace={namespace}")["status"]["readyReplicas"] == 1


def test_application(kubectl: Kubectl) -> None:
    found = kubectl("get", "application.argoproj.io", "nativelink-molecule", "--namespace=argocd")
    assert "finalizers" not in found["metadata"]
    source = {"repoURL": REPOSITORY, "targetRevision": "main", "path": "clusters/molecule"}
    assert found["spec"]["source"] == source
    assert found["spec"]["project"] == "nativelink-molecule"
    assert "ServerSideApply=true" in found["spec"]["syncPolicy"]["syncOptions"]


def test_project(kubectl: Kubectl) -> None:
    spec = kubectl("get", "appproject", "nativelink-molecule", "--namespace=argocd")["spec"]
    assert spec["sourceRepos"] == [REPOSITORY]
    assert [each["namespace"] for each in spec["destinations"]] == ["nativelink", "nativelink-workers"]
    assert spec.get("clusterResourceWhitelist", []) == []


def test_credentials_of_argocd(kubectl: Kubectl) -> None:
    found = kubectl("get", "secret", "nativelink-molecule-repository", "--namespace=argocd")
    assert found["metadata"]["labels"]["argocd.argoproj.io/secret-type"] == "repository"
    data = {key: base64.b64decode(value).decode() for key, value in found["data"].items()}
    assert len(data.pop("password")) == 20
    assert data == {"type": "git", "url": REPOSITORY, "project": "nativelink-molecule", "username": "deployer"}


def test_git_repository(kubectl: Kubectl) -> None:
    spec = kubectl("get", "gitrepository", "nativelink-flux", "--namespace=flux-system")["spec"]
    assert (spec["url"], spec["ref"], spec["secretRef"]) == (REPOSITORY, {"branch": "main"}, {"name": "repository"})


def test_kustomization(kubectl: Kubectl) -> None:
    kind = "kustomization.kustomize.toolkit.fluxcd.io"
    spec = kubectl("get", kind, "nativelink-flux", "--namespace=flux-system")["spec"]
    assert spec["path"] == "./clusters/molecule"
    assert spec["deletionPolicy"] == "Orphan"
    assert spec["prune"] is True
    assert spec["serviceAccountName"] == "nativelink-flux"
    assert "postBuild" not in spec


def allowed(kubectl: Kubectl, namespace: str) -> dict[str, str]:
    """Return the permissions of Flux in a namespace: verbs by resource."""
    account = "system:serviceaccount:flux-system:nativelink-flux"
    table = kubectl("auth", "can-i", "--list", f"--namespace={namespace}", f"--as={account}")
    return {line.split()[0]: line.rpartition("[")[2].rstrip("]") for line in table.splitlines()[1:]}


@pytest.mark.parametrize("namespace", ["nativelink", "nativelink-workers"])
def test_flux_may_change_what_the_tree_holds(kubectl: Kubectl, namespace: str) -> None:
    rights = allowed(kubectl, namespace)
    for kind in ("statefulsets.apps", "scaledobjects.keda.sh", "networkpolicies.networking.k8s.io"):
        assert rights[kind] == "get list watch create update patch delete"
    assert rights["pods"] == "get list watch"


# Certificates only with nativelink_mutual_tls_issuer.
@pytest.mark.parametrize(
    "kind", ["secrets", "namespaces", "roles.rbac.authorization.k8s.io", "certificates.cert-manager.io", "*.*"]
)
def test_flux_has_no_other_permissions(kubectl: Kubectl, kind: str) -> None:
    assert kind not in allowed(kubectl, "nativelink")


def test_flux_has_no_permissions_in_other_namespaces(kubectl: Kubectl) -> None:
    assert "configmaps" not in allowed(kubectl, "default")
