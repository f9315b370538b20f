"""What the inventory would change in a running CAS, against the committed tree."""

from __future__ import annotations

import copy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from nativelink_gitops.changes import breaking_changes, notices, refused

from tests.preflight.runs import faults, inventory, playbook, sound

COMMITTED: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "StatefulSet",
    "metadata": {"name": "nativelink-cas", "namespace": "nativelink", "labels": {"app": "cas"}},
    "spec": {
        "replicas": 3,
        "serviceName": "nativelink-cas-headless",
        "podManagementPolicy": "Parallel",
        "selector": {"matchLabels": {"app": "cas"}},
        "template": {"spec": {"containers": [{"name": "cas", "image": "one"}]}},
        "volumeClaimTemplates": [
            {
                "metadata": {"name": "data"},
                "spec": {
                    "accessModes": ["ReadWriteOnce"],
                    "storageClassName": "gp3",
                    "resources": {"requests": {"storage": "200Gi"}},
                },
            }
        ],
    },
}
ORPHAN = "delete the StatefulSet with `kubectl -n nativelink delete statefulset nativelink-cas --cascade=orphan`, sync"
FLUSH = "accept a cache flush: delete the StatefulSet and its PersistentVolumeClaims, sync"


def changed(path: str, value: object) -> dict[str, Any]:
    """COMMITTED with another value at a dotted path."""
    found = copy.deepcopy(COMMITTED)
    *parents, last = path.split(".")
    where: Any = found
    for key in parents:
        where = where[int(key) if key.isdigit() else key]
    where[last] = value
    return found


def git(folder: Path, *arguments: str) -> None:
    user = ["-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *user, *arguments], cwd=folder, check=True, capture_output=True)


def write(clusters: Path, cluster: str, statefulset: dict[str, Any]) -> None:
    file = clusters / cluster / "rendered/cas/statefulset.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(statefulset))


@pytest.fixture
def clusters(tmp_path: Path) -> Path:
    """A folder of trees, one of them committed."""
    git(tmp_path, "init", "--quiet")
    write(tmp_path / "sub/clusters", "prod", COMMITTED)
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "trees")
    return tmp_path / "sub/clusters"


def lines(clusters: Path, rendered: dict[str, Any], *allowed: str, cluster: str = "prod") -> list[str]:
    values = {"nativelink_clusters_dir": str(clusters), "nativelink_allow_changes": list(allowed)}
    changes = breaking_changes({cluster: values}, lambda _: rendered)
    return [str(fault) for fault in refused({cluster: values}, changes)]


CLAIM = "spec.volumeClaimTemplates.0.spec"
CASES = {
    "cas_replicas": (
        changed("spec.replicas", 5),
        "prod: nativelink_cas_replicas: 3 shards in the committed tree would become 5, which moves the keys: "
        "cached results are lost; accept a cache flush, and add cas_replicas to nativelink_allow_changes for that time",
    ),
    "cas_volume_size": (
        changed(f"{CLAIM}.resources.requests.storage", "400Gi"),
        "prod: nativelink_cas_volume_size: 200Gi in the committed tree would become 400Gi, and a StatefulSet "
        f"cannot change it; grow each PersistentVolumeClaim to 400Gi, {ORPHAN}, "
        "and add cas_volume_size to nativelink_allow_changes for that time",
    ),
    "cas_storage_class": (
        changed(f"{CLAIM}.storageClassName", "io2"),
        "prod: nativelink_cas_storage_class: gp3 in the committed tree would become io2, and a volume cannot "
        f"change its class; {FLUSH}, and add cas_storage_class to nativelink_allow_changes for that time",
    ),
    "cas_immutable": (
        changed("spec.serviceName", "nativelink-cas"),
        "prod: nativelink_cas_replicas: serviceName of the CAS StatefulSet would change, and the API server "
        f"refuses that; {ORPHAN}, and add cas_immutable to nativelink_allow_changes for that time",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_breaking_change_is_refused_unless_it_is_allowed_by_name(clusters: Path, name: str) -> None:
    rendered, line = CASES[name]

    assert lines(clusters, rendered) == [line]
    assert lines(clusters, rendered, *(other for other in CASES if other != name)) == [line]
    assert lines(clusters, rendered, name) == []


def test_a_permission_that_outlived_its_change_is_noticed(clusters: Path) -> None:
    values = {"nativelink_clusters_dir": str(clusters), "nativelink_allow_changes": ["cas_replicas", "cas_immutable"]}
    changes = breaking_changes({"prod": values}, lambda _: changed("spec.replicas", 5))
    assert notices(values, changes["prod"]) == [
        "nativelink_allow_changes: cas_immutable is allowed, and nothing changes it; take it out"
    ]


def test_a_volume_does_not_shrink(clusters: Path) -> None:
    assert lines(clusters, changed(f"{CLAIM}.resources.requests.storage", "100Gi")) == [
        "prod: nativelink_cas_volume_size: 200Gi in the committed tree would become 100Gi, and a volume cannot shrink; "
        f"{FLUSH}, and add cas_volume_size to nativelink_allow_changes for that time"
    ]


def test_another_namespace_is_another_cas(clusters: Path) -> None:
    assert lines(clusters, changed("metadata.namespace", "builds")) == [
        "prod: nativelink_namespace: the CAS would move from nativelink to builds, where its volumes are new: "
        "the cache is lost; accept a cache flush, and add cas_immutable to nativelink_allow_changes for that time"
    ]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.podManagementPolicy", "OrderedReady"),
        ("spec.selector", {"matchLabels": {"app": "other"}}),
        (f"{CLAIM}.accessModes", ["ReadWriteMany"]),
        ("spec.volumeClaimTemplates.0.metadata", {"name": "cache"}),
    ],
)
def test_whatever_else_is_immutable_is_refused(clusters: Path, path: str, value: object) -> None:
    (line,) = lines(clusters, changed(path, value))
    assert f"{path.split('.')[1]} of the CAS StatefulSet would change" in line


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.template.spec.containers.0.image", "two"),
        ("metadata.labels", {"app": "cas", "more": "x"}),
        ("spec.persistentVolumeClaimRetentionPolicy", {"whenDeleted": "Delete"}),
        ("spec.minReadySeconds", 5),
        (f"{CLAIM}.resources.requests.storage", "204800Mi"),
    ],
)
def test_what_can_be_updated_is_no_breaking_change(clusters: Path, path: str, value: object) -> None:
    assert lines(clusters, changed(path, value)) == []


def test_what_is_committed_counts_and_not_what_lies_on_disk(clusters: Path) -> None:
    write(clusters, "prod", changed("spec.replicas", 5))
    assert lines(clusters, COMMITTED) == []
    assert len(lines(clusters, changed("spec.replicas", 5))) == 1


def test_the_file_counts_where_nothing_is_committed(clusters: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    write(clusters, "dev", changed("spec.replicas", 5))
    assert len(lines(clusters, COMMITTED, cluster="dev")) == 1

    outside = tmp_path_factory.mktemp("outside")
    write(outside, "dev", COMMITTED)
    assert lines(outside, COMMITTED, cluster="dev") == []
    assert len(lines(outside, changed("spec.replicas", 5), cluster="dev")) == 1


def test_a_new_cluster_has_nothing_to_break(clusters: Path) -> None:
    assert lines(clusters, COMMITTED, cluster="new") == []
    assert lines(clusters / "nowhere", COMMITTED, cluster="new") == []


def test_the_playbook_refuses_it_for_all_clusters_at_once(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    hosts = {name: sound(name, tmp_path / "clusters") for name in ("one", "two")}
    assert playbook("render", inventory(tmp_path, hosts)).returncode == 0
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "trees")
    assert playbook("check_inventory", inventory(tmp_path, hosts)).returncode == 0
    tree = {path: path.read_bytes() for path in (tmp_path / "clusters").rglob("*") if path.is_file()}

    hosts["one"] |= {"nativelink_cas_replicas": 4}
    hosts["two"] |= {"nativelink_cas_volume_size": "400Gi"}
    run = playbook("render", inventory(tmp_path, hosts))

    assert run.returncode == 2
    assert [line.split(": ")[:2] for line in faults(run)] == [
        ["one", "nativelink_cas_replicas"],
        ["two", "nativelink_cas_volume_size"],
    ]
    assert tree == {path: path.read_bytes() for path in (tmp_path / "clusters").rglob("*") if path.is_file()}

    hosts["one"] |= {"nativelink_allow_changes": ["cas_replicas"]}
    hosts["two"] |= {"nativelink_allow_changes": ["cas_volume_size"]}
    assert playbook("render", inventory(tmp_path, hosts)).returncode == 0
