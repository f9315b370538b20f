"""The changes that the inventory would make to a running CAS or Redis, against the committed tree."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils.change_guard import breaking_changes, notices, refused

from testkit.inventories import minimal, write_inventory
from testkit.playbooks import run_playbook
from testkit.repository import git

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
REDIS: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "StatefulSet",
    "metadata": {"name": "nativelink-redis", "namespace": "nativelink"},
    "spec": {
        "replicas": 1,
        "serviceName": "nativelink-redis",
        "volumeClaimTemplates": [
            {
                "metadata": {"name": "data"},
                "spec": {"storageClassName": "gp3", "resources": {"requests": {"storage": "10Gi"}}},
            }
        ],
    },
}
CAS_FILE = "cas/statefulset.yaml"
REDIS_FILE = "scheduler/redis-statefulset.yaml"


def changed(path: str, value: object, before: dict[str, Any] = COMMITTED) -> dict[str, Any]:
    """Return `before` with another value at a dotted path."""
    found = copy.deepcopy(before)
    *parents, last = path.split(".")
    where: Any = found
    for key in parents:
        where = where[int(key) if key.isdigit() else key]
    where[last] = value
    return found


def write(clusters: Path, cluster: str, statefulset: dict[str, Any], template: str = CAS_FILE) -> None:
    file = clusters / cluster / "rendered" / template
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(statefulset))


@pytest.fixture
def clusters(tmp_path: Path) -> Path:
    """Return a folder of trees, one of which is committed."""
    git(tmp_path, "init", "--quiet")
    write(tmp_path / "sub/clusters", "prod", COMMITTED)
    write(tmp_path / "sub/clusters", "prod", REDIS, REDIS_FILE)
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "trees")
    return tmp_path / "sub/clusters"


def values_of(clusters: Path, *allowed: str, revision: str = "HEAD") -> dict[str, Any]:
    return {
        "nativelink_clusters_dir": str(clusters),
        "nativelink_base_revision": revision,
        "nativelink_allow_changes": list(allowed),
    }


def lines(
    clusters: Path, rendered: dict[str, Any] | None, *allowed: str, cluster: str = "prod", template: str = CAS_FILE
) -> list[str]:
    """Return the findings when `template` becomes `rendered`, and the other StatefulSet stays as it is."""
    values = values_of(clusters, *allowed)
    trees = {CAS_FILE: COMMITTED, REDIS_FILE: REDIS, template: rendered}
    changes = breaking_changes({cluster: values}, lambda _, template: trees[template])
    return [str(fault) for fault in refused({cluster: values}, changes)]


CLAIM = "spec.volumeClaimTemplates.0.spec"
CASES = {
    "cas_replicas": (
        changed("spec.replicas", 5),
        "prod: nativelink_cas_replicas: 3 shards in the committed tree would become 5, which moves the keys: "
        "cached results are lost, and the scheduler and all workers, which address the shards, are replaced; "
        "accept a cache flush: add cas_replicas to nativelink_allow_changes for that time, render and push",
    ),
    "cas_volume_size": (
        changed(f"{CLAIM}.resources.requests.storage", "400Gi"),
        "prod: nativelink_cas_volume_size: 200Gi in the committed tree would become 400Gi, and a StatefulSet "
        "cannot change it; add cas_volume_size to nativelink_allow_changes for that time, render, suspend the GitOps "
        "engine, grow each PersistentVolumeClaim to 400Gi, delete the StatefulSet with --cascade=orphan, push, "
        "resume the engine (commands: docs/changes.md)",
    ),
    "cas_storage_class": (
        changed(f"{CLAIM}.storageClassName", "io2"),
        "prod: nativelink_cas_storage_class: gp3 in the committed tree would become io2, and a volume cannot "
        "change its class; accept a cache flush: add cas_storage_class to nativelink_allow_changes for that time, "
        "render, suspend the GitOps engine, delete the StatefulSet and its PersistentVolumeClaims, push, "
        "resume the engine (commands: docs/changes.md)",
    ),
    "cas_immutable": (
        changed("spec.serviceName", "nativelink-cas"),
        "prod: rendered/cas/statefulset.yaml: serviceName of the StatefulSet would change, and the API server refuses "
        "that; add cas_immutable to nativelink_allow_changes for that time, render, suspend the GitOps engine, "
        "delete the StatefulSet with --cascade=orphan, push, resume the engine (commands: docs/changes.md)",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_breaking_change_is_refused_unless_it_is_allowed_by_name(clusters: Path, name: str) -> None:
    rendered, line = CASES[name]

    assert lines(clusters, rendered) == [line]
    assert lines(clusters, rendered, *(other for other in CASES if other != name)) == [line]
    assert lines(clusters, rendered, name) == []


def test_a_permission_that_outlived_its_change_is_noticed(clusters: Path) -> None:
    values = values_of(clusters, "cas_replicas", "cas_immutable")
    trees = {CAS_FILE: changed("spec.replicas", 5), REDIS_FILE: REDIS}
    changes = breaking_changes({"prod": values}, lambda _, template: trees[template])
    assert notices(values, changes["prod"]) == [
        "nativelink_allow_changes: cas_immutable is allowed, and nothing changes it; take it out"
    ]


def test_a_volume_does_not_shrink(clusters: Path) -> None:
    assert lines(clusters, changed(f"{CLAIM}.resources.requests.storage", "100Gi")) == [
        "prod: nativelink_cas_volume_size: 200Gi in the committed tree would become 100Gi, and a volume cannot shrink; "
        "accept a cache flush: add cas_volume_size to nativelink_allow_changes for that time, render, suspend the "
        "GitOps engine, delete the StatefulSet and its PersistentVolumeClaims, push, resume the engine "
        "(commands: docs/changes.md)"
    ]


def test_a_cas_in_another_namespace_has_new_volumes(clusters: Path) -> None:
    assert lines(clusters, changed("metadata.namespace", "builds")) == [
        "prod: nativelink_namespace: the CAS would move from nativelink to builds, where its volumes are new: "
        "the cache is lost; "
        "accept a cache flush: add cas_immutable to nativelink_allow_changes for that time, run bootstrap and push"
    ]


REDIS_CASES = {
    "grows": (
        changed(f"{CLAIM}.resources.requests.storage", "20Gi", REDIS),
        "prod: nativelink_redis_volume_size: 10Gi in the committed tree would become 20Gi, and a StatefulSet cannot "
        "change it; add redis_immutable to nativelink_allow_changes for that time, render, suspend the GitOps engine, "
        "grow each PersistentVolumeClaim to 20Gi, delete the StatefulSet with --cascade=orphan, push, "
        "resume the engine (commands: docs/changes.md)",
    ),
    "shrinks": (
        changed(f"{CLAIM}.resources.requests.storage", "5Gi", REDIS),
        "prod: nativelink_redis_volume_size: 10Gi in the committed tree would become 5Gi, and a volume cannot shrink; "
        "accept that the queue is lost and its builds start again: add redis_immutable to nativelink_allow_changes for "
        "that time, render, suspend the GitOps engine, delete the StatefulSet and its PersistentVolumeClaims, push, "
        "resume the engine (commands: docs/changes.md)",
    ),
    "class": (
        changed(f"{CLAIM}.storageClassName", "io2", REDIS),
        "prod: nativelink_redis_storage_class: gp3 in the committed tree would become io2, and a volume cannot change "
        "its class; accept that the queue is lost and its builds start again: add redis_immutable to "
        "nativelink_allow_changes for that time, render, suspend the GitOps engine, delete the StatefulSet and its "
        "PersistentVolumeClaims, push, resume the engine (commands: docs/changes.md)",
    ),
    "service": (
        changed("spec.serviceName", "redis", REDIS),
        "prod: rendered/scheduler/redis-statefulset.yaml: serviceName of the StatefulSet would change, and the API "
        "server refuses that; add redis_immutable to nativelink_allow_changes for that time, render, suspend the "
        "GitOps engine, delete the StatefulSet with --cascade=orphan, push, resume the engine "
        "(commands: docs/changes.md)",
    ),
}


@pytest.mark.parametrize("name", REDIS_CASES)
def test_an_immutable_field_of_redis_is_refused_unless_it_is_allowed(clusters: Path, name: str) -> None:
    rendered, line = REDIS_CASES[name]

    assert lines(clusters, rendered, template=REDIS_FILE) == [line]
    assert lines(clusters, rendered, *CASES, template=REDIS_FILE) == [line]
    assert lines(clusters, rendered, "redis_immutable", template=REDIS_FILE) == []


def test_size_and_class_of_redis_have_a_line_each(clusters: Path) -> None:
    both = changed(f"{CLAIM}.storageClassName", "io2", REDIS_CASES["grows"][0])
    assert [line.split(": ")[1] for line in lines(clusters, both, template=REDIS_FILE)] == [
        "nativelink_redis_storage_class",
        "nativelink_redis_volume_size",
    ]


def test_redis_may_go_or_move(clusters: Path) -> None:
    assert lines(clusters, None, template=REDIS_FILE) == []
    assert lines(clusters, changed("metadata.namespace", "builds", REDIS), template=REDIS_FILE) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.podManagementPolicy", "OrderedReady"),
        ("spec.selector", {"matchLabels": {"app": "other"}}),
        (f"{CLAIM}.accessModes", ["ReadWriteMany"]),
        ("spec.volumeClaimTemplates.0.metadata", {"name": "cache"}),
    ],
)
def test_other_immutable_fields_are_refused(clusters: Path, path: str, value: object) -> None:
    (line,) = lines(clusters, changed(path, value))
    assert f"{path.split('.')[1]} of the StatefulSet would change" in line


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
def test_a_field_that_can_be_updated_is_not_a_breaking_change(clusters: Path, path: str, value: object) -> None:
    assert lines(clusters, changed(path, value)) == []


def test_the_committed_file_counts_and_not_the_one_on_disk(clusters: Path) -> None:
    write(clusters, "prod", changed("spec.replicas", 5))
    assert lines(clusters, COMMITTED) == []
    assert len(lines(clusters, changed("spec.replicas", 5))) == 1


def test_the_base_revision_counts_and_not_the_last_commit(clusters: Path) -> None:
    git(clusters, "tag", "three")
    write(clusters, "prod", changed("spec.replicas", 5))
    git(clusters, "commit", "--quiet", "--all", "--message", "five")

    def found(revision: str) -> list[str]:
        values = {"prod": values_of(clusters, revision=revision)}
        changes = breaking_changes(values, lambda _, template: trees[template])
        return [str(fault) for fault in refused(values, changes)]

    trees = {CAS_FILE: changed("spec.replicas", 5), REDIS_FILE: REDIS}
    assert found("HEAD") == []
    assert [line.split(":")[1] for line in found("three")] == [" nativelink_cas_replicas"]
    assert found("four") == [
        f"prod: nativelink_base_revision: is four, which Git does not know in {clusters}; "
        "fetch it, or write another branch, tag or commit"
    ]


def test_a_tree_that_was_never_committed_has_no_breaking_changes(clusters: Path, tmp_path: Path) -> None:
    write(clusters, "dev", changed("spec.replicas", 5))
    assert lines(clusters, COMMITTED, cluster="dev") == []

    fresh = tmp_path / "fresh"
    fresh.mkdir()
    git(fresh, "init", "--quiet")  # without a commit there is no HEAD
    write(fresh, "dev", changed("spec.replicas", 5))
    assert lines(fresh, COMMITTED, cluster="dev") == []


def test_the_file_counts_outside_of_git(tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    write(outside, "dev", COMMITTED)
    assert lines(outside, COMMITTED, cluster="dev") == []
    assert len(lines(outside, changed("spec.replicas", 5), cluster="dev")) == 1


def test_a_new_cluster_has_no_breaking_changes(clusters: Path) -> None:
    assert lines(clusters, COMMITTED, cluster="new") == []
    assert lines(clusters / "nowhere", COMMITTED, cluster="new") == []


BROKEN = {
    "markers": ("<<<<<<< HEAD\nkind: StatefulSet\n=======\n>>>>>>> other\n", "has conflict markers of a merge"),
    "syntax": ("kind: [", "is not valid YAML"),
    "bytes": (b"kind: \xff\xfe\n", "is not valid YAML"),
    "two documents": ("kind: StatefulSet\n---\nkind: StatefulSet\n", "is not valid YAML"),
    "empty": ("# nothing\n", "is empty"),
    "a list": ("- kind: StatefulSet\n", "holds a list instead of an object"),
    "a text": ("StatefulSet\n", "holds a plain value instead of an object"),
    "another kind": ("kind: Deployment\n", "is of the kind Deployment instead of StatefulSet"),
    "no kind": ("spec: {}\n", "is of the kind None instead of StatefulSet"),
    "no spec": ("kind: StatefulSet\nmetadata: {}\n", "is not a complete StatefulSet"),
    "no size": (
        yaml.safe_dump(changed(f"{CLAIM}.resources.requests.storage", "big")),
        "is not a complete StatefulSet",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("committed", [True, False], ids=["in Git", "on disk"])
def test_a_broken_statefulset_is_named_and_refuses_nothing(
    clusters: Path, tmp_path_factory: pytest.TempPathFactory, name: str, committed: bool
) -> None:
    text, problem = BROKEN[name]
    folder = clusters if committed else tmp_path_factory.mktemp("outside")
    write(folder, "prod", COMMITTED)
    (folder / "prod/rendered" / CAS_FILE).write_bytes(text if isinstance(text, bytes) else text.encode())
    if committed:
        git(clusters, "commit", "--quiet", "--all", "--message", "broken")
    values = values_of(folder, "cas_replicas")
    changes = breaking_changes({"prod": values}, lambda _, template: {CAS_FILE: COMMITTED, REDIS_FILE: REDIS}[template])

    assert refused({"prod": values}, changes) == []
    assert notices(values, changes["prod"]) == [
        f"rendered/cas/statefulset.yaml: the committed file {problem}, so that breaking changes cannot be found; "
        "rendering repairs it: compare the new file with the running StatefulSet before you push"
    ]


def test_rendering_repairs_a_broken_statefulset(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    hosts = {"one": minimal("one", tmp_path / "clusters")}
    assert run_playbook("render", write_inventory(tmp_path, hosts)).status == 0
    file = tmp_path / "clusters/one/rendered" / CAS_FILE
    whole = file.read_text()
    file.write_text(f"<<<<<<< HEAD\n{whole}=======\n{whole}>>>>>>> other\n")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "broken")

    run = run_playbook("render", write_inventory(tmp_path, hosts))

    assert run.status == 0, run.output
    assert "rendered/cas/statefulset.yaml: the committed file has conflict markers of a merge" in run.output
    assert file.read_text() == whole


def test_the_playbook_refuses_the_changes_of_all_clusters_at_once(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    hosts = {name: minimal(name, tmp_path / "clusters") for name in ("one", "two")}
    hosts["two"] |= {"nativelink_scheduler_backend": "redis"}
    assert run_playbook("render", write_inventory(tmp_path, hosts)).status == 0
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "trees")
    assert run_playbook("check_inventory", write_inventory(tmp_path, hosts)).status == 0
    tree = {path: path.read_bytes() for path in (tmp_path / "clusters").rglob("*") if path.is_file()}

    hosts["one"] |= {"nativelink_cas_replicas": 4}
    hosts["two"] |= {"nativelink_cas_volume_size": "400Gi", "nativelink_redis_volume_size": "20Gi"}
    run = run_playbook("render", write_inventory(tmp_path, hosts))

    assert run.status == 2
    assert [line.split(": ")[:2] for line in run.findings] == [
        ["one", "nativelink_cas_replicas"],
        ["two", "nativelink_cas_volume_size"],
        ["two", "nativelink_redis_volume_size"],
    ]
    assert tree == {path: path.read_bytes() for path in (tmp_path / "clusters").rglob("*") if path.is_file()}

    hosts["one"] |= {"nativelink_allow_changes": ["cas_replicas"]}
    hosts["two"] |= {"nativelink_allow_changes": ["cas_volume_size", "redis_immutable"]}
    assert run_playbook("render", write_inventory(tmp_path, hosts)).status == 0
