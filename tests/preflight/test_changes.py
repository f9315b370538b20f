"""The changes that the inventory would make to a running CAS or Redis, against the committed tree."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render, tree
from ansible_collections.nativelink.gitops.plugins.plugin_utils.change_guard import breaking_changes, notices, refused

from testkit.inventories import minimal, write_inventory
from testkit.playbooks import run_playbook
from testkit.repository import git
from testkit.trees import committed, values_of

CAS_FILE, REDIS_FILE = "cas/statefulset.yaml", "scheduler/redis-statefulset.yaml"
CAS, REDIS = (yaml.safe_load(committed("staging")[file]) for file in (CAS_FILE, REDIS_FILE))


def changed(path: str, value: object, before: dict[str, Any] = CAS) -> dict[str, Any]:
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
    if template == CAS_FILE:
        sharded = values_of(nativelink_cas_replicas=statefulset["spec"]["replicas"])
        shards = render.tree(sharded)["cas/cas.json5"] if store(statefulset) == "volumes" else ""
        file.with_name("cas.json5").write_text(shards)


def store(cas: dict[str, Any]) -> str:
    return str(cas["metadata"]["annotations"].get("nativelink-gitops/store", "volumes"))


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "trees")


@pytest.fixture
def clusters(tmp_path: Path) -> Path:
    """Return a folder of trees, one of which is committed."""
    git(tmp_path, "init", "--quiet")
    write(tmp_path / "sub/clusters", "prod", CAS)
    write(tmp_path / "sub/clusters", "prod", REDIS, REDIS_FILE)
    commit(tmp_path)
    return tmp_path / "sub/clusters"


def findings(
    clusters: Path,
    cas: dict[str, Any] = CAS,
    redis: dict[str, Any] | None = REDIS,
    *,
    cluster: str = "prod",
    allowed: tuple[str, ...] = (),
    revision: str = "HEAD",
    layout_from: int = 0,
) -> tuple[list[str], list[str]]:
    """Return the findings and the notices when these StatefulSets are rendered."""
    trees = {CAS_FILE: cas, REDIS_FILE: redis}
    values = {
        "nativelink_clusters_dir": str(clusters),
        "nativelink_base_revision": revision,
        "nativelink_allow_changes": list(allowed),
        "nativelink_cas_store": store(cas),
        "nativelink_cas_replicas": cas["spec"].get("replicas", 1),
        "nativelink_cas_shards": 0,
        "nativelink_cas_layout_from": layout_from,
    }
    changes = breaking_changes({cluster: values}, lambda _, template: trees[template])
    return [str(fault) for fault in refused({cluster: values}, changes)], notices(values, changes.get(cluster, ()))


def lines(clusters: Path, *trees: Any, **more: Any) -> list[str]:
    return findings(clusters, *trees, **more)[0]


CLAIM = "spec.volumeClaimTemplates.0.spec"
STORAGE, CLASS = f"{CLAIM}.resources.requests.storage", f"{CLAIM}.storageClassName"
FLUSH, QUEUE = "accept a cache flush: ", "accept that the queue is lost and its builds start again: "
ORPHAN, VOLUMES = (
    "delete the StatefulSet with --cascade=orphan",
    "delete the StatefulSet and its PersistentVolumeClaims",
)
STORE = "metadata.annotations.nativelink-gitops/store"
CHANGES = ("cas_replicas", "cas_store", "cas_volume_size", "cas_storage_class", "cas_immutable", "redis_immutable")


def by_hand(name: str, *steps: str, accept: str = "") -> str:
    """Return the remedy of a change that needs the engine suspended."""
    return (
        f"{accept}add {name} to nativelink_allow_changes for that time, render, suspend the GitOps engine, "
        f"{', '.join(steps)}, push, resume the engine (commands: docs/changes.md)"
    )


def becomes(before: str, after: str) -> str:
    return f"{before} in the committed tree would become {after}"


PLAYBOOK = (
    "add cas_volume_size to nativelink_allow_changes for that time, render, run nativelink.gitops.grow and push "
    "(docs/changes.md)"
)
KEYS = (
    "cached results are lost unless nativelink.gitops.grow copies them (docs/grow.md), and the scheduler and all "
    "workers, which address the shards, are replaced"
)
CASES = [
    (
        *("cas_store", STORE, "object_store"),
        f"nativelink_cas_store: {becomes('volumes', 'object_store')}, which is still empty; "
        f"copy it first (docs/object-store.md), or {FLUSH}add cas_store to nativelink_allow_changes for that time, "
        "render and push",
    ),
    (
        *("cas_replicas", "spec.replicas", 5),
        f"nativelink_cas_replicas: {becomes('3 shards', '5')}, which moves 73% of the keys: {KEYS}; "
        "set nativelink_cas_layout_from to 3, which moves 40%; "
        "add cas_replicas to nativelink_allow_changes for that time, render and push",
    ),
    (
        *("cas_immutable", "metadata.namespace", "builds"),
        "nativelink_namespace: the CAS would move from nativelink to builds, where its volumes are new: the cache is "
        f"lost; {FLUSH}add cas_immutable to nativelink_allow_changes for that time, run bootstrap and push",
    ),
]
# What StatefulSets do not allow: the size and class of volumes, and all that is immutable.
SETS = {
    "cas": (CAS_FILE, "50Gi", "400Gi", "40Gi", FLUSH, "cas_volume_size", "cas_storage_class", "cas_immutable"),
    "redis": (REDIS_FILE, "10Gi", "20Gi", "5Gi", QUEUE, *["redis_immutable"] * 3),
}
for of, (file, before, more, less, accept, size, storage_class, other) in SETS.items():
    CASES += [
        (
            *(size, STORAGE, more),
            f"nativelink_{of}_volume_size: {becomes(before, more)}, and a StatefulSet cannot change it; "
            + (PLAYBOOK if of == "cas" else by_hand(size, f"grow each PersistentVolumeClaim to {more}", ORPHAN)),
        ),
        (
            *(size, STORAGE, less),
            f"nativelink_{of}_volume_size: {becomes(before, less)}, and a volume cannot shrink; "
            + by_hand(size, VOLUMES, accept=accept),
        ),
        (
            *(storage_class, CLASS, "io2"),
            f"nativelink_{of}_storage_class: {becomes('gp3', 'io2')}, and a volume cannot change its class; "
            + by_hand(storage_class, VOLUMES, accept=accept),
        ),
        (
            *(other, "spec.serviceName", "other"),
            f"rendered/{file}: serviceName of the StatefulSet would change, and the API server refuses that; "
            + by_hand(other, ORPHAN),
        ),
    ]


@pytest.mark.parametrize(("name", "path", "value", "line"), CASES)
def test_a_breaking_change_is_refused_unless_it_is_allowed_by_name(
    clusters: Path, name: str, path: str, value: object, line: str
) -> None:
    trees = [CAS, changed(path, value, REDIS)] if name == "redis_immutable" else [changed(path, value), REDIS]
    assert lines(clusters, *trees) == [f"prod: {line}"]
    assert lines(clusters, *trees, allowed=tuple({*CHANGES} - {name})) == [f"prod: {line}"]
    assert lines(clusters, *trees, allowed=(name,)) == []


def test_the_share_of_the_keys_that_move_is_named(clusters: Path) -> None:
    allow = "add cas_replicas to nativelink_allow_changes for that time, render and push"
    assert lines(clusters, changed("spec.replicas", 4), layout_from=3) == [
        f"prod: nativelink_cas_replicas: {becomes('3 shards', '4')}, which moves 25% of the keys: {KEYS}; {allow}"
    ]
    assert lines(clusters, layout_from=1) == [
        f"prod: nativelink_cas_layout_from: {becomes('3 shards', '3')}, which moves 67% of the keys: {KEYS}; {allow}"
    ]
    assert lines(clusters, layout_from=3) == []


def test_a_permission_that_outlived_its_change_is_noticed(clusters: Path) -> None:
    line = "nativelink_allow_changes: cas_immutable is allowed, but no longer needed; remove it"
    allowed = ("cas_replicas", "cas_immutable")
    assert findings(clusters, changed("spec.replicas", 5), allowed=allowed) == ([], [line])


def test_size_and_class_of_redis_have_a_line_each(clusters: Path) -> None:
    both = changed(CLASS, "io2", changed(STORAGE, "20Gi", REDIS))
    assert [line.split(": ")[1] for line in lines(clusters, CAS, both)] == [
        "nativelink_redis_storage_class",
        "nativelink_redis_volume_size",
    ]


def test_pods_in_front_of_a_bucket_may_be_as_many_as_are_needed(clusters: Path) -> None:
    bucket = changed(STORE, "object_store")
    write(clusters, "prod", bucket)
    commit(clusters)
    assert lines(clusters, changed("spec.replicas", 5, bucket)) == []
    autoscaled = copy.deepcopy(bucket)
    del autoscaled["spec"]["replicas"]
    assert lines(clusters, autoscaled) == []
    assert [line.split(":")[1] for line in lines(clusters, CAS)] == [" nativelink_cas_store"]


def test_redis_may_go_or_move(clusters: Path) -> None:
    assert lines(clusters, CAS, None) == []
    assert lines(clusters, CAS, changed("metadata.namespace", "builds", REDIS)) == []


REFUSED = {
    "spec.podManagementPolicy": "OrderedReady",
    "spec.selector": {"matchLabels": {"app": "other"}},
    f"{CLAIM}.accessModes": ["ReadWriteMany"],
    "spec.volumeClaimTemplates.0.metadata": {"name": "cache"},
}
TAKEN = {
    "spec.template.spec.containers.0.image": "two",
    "metadata.labels": {"more": "x"},
    "spec.persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete"},
    "spec.minReadySeconds": 5,
    STORAGE: "51200Mi",
}


@pytest.mark.parametrize("path", [*REFUSED, *TAKEN])
def test_other_fields_are_refused_if_they_are_immutable(clusters: Path, path: str) -> None:
    said = [
        line.partition(" of the StatefulSet")[0] for line in lines(clusters, changed(path, (REFUSED | TAKEN)[path]))
    ]
    assert said == ([f"prod: rendered/{CAS_FILE}: {path.split('.')[1]}"] if path in REFUSED else [])


def test_the_committed_file_counts_and_not_the_one_on_disk(clusters: Path) -> None:
    write(clusters, "prod", changed("spec.replicas", 5))
    assert lines(clusters) == []
    assert len(lines(clusters, changed("spec.replicas", 5))) == 1


def test_the_base_revision_counts_and_not_the_last_commit(clusters: Path) -> None:
    git(clusters, "tag", "three")
    write(clusters, "prod", changed("spec.replicas", 5))
    commit(clusters)
    now, three, four = (
        lines(clusters, changed("spec.replicas", 5), revision=revision) for revision in ("HEAD", "three", "four")
    )
    assert now == []
    assert [line.split(":")[1] for line in three] == [" nativelink_cas_replicas"]
    assert four == [
        f"prod: nativelink_base_revision: is four, which Git does not know in {clusters}; "
        "fetch it, or write another branch, tag or commit"
    ]


def test_a_tree_that_was_never_committed_has_no_breaking_changes(clusters: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    git(fresh, "init", "--quiet")  # without a commit there is no HEAD
    for folder in (clusters, fresh):
        write(folder, "dev", changed("spec.replicas", 5))
        assert lines(folder, cluster="dev") == []
    for folder in (clusters, clusters / "nowhere"):
        assert lines(folder, cluster="new") == []


def test_the_file_counts_outside_of_git(tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    write(outside, "dev", CAS)
    assert lines(outside, cluster="dev") == []
    assert len(lines(outside, changed("spec.replicas", 5), cluster="dev")) == 1


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
    "no size": (yaml.safe_dump(changed(STORAGE, "big")), "is not a complete StatefulSet"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("committed", [True, False], ids=["in Git", "on disk"])
def test_a_broken_statefulset_is_named_and_refuses_nothing(
    clusters: Path, tmp_path_factory: pytest.TempPathFactory, name: str, committed: bool
) -> None:
    text, problem = BROKEN[name]
    folder = clusters if committed else tmp_path_factory.mktemp("outside")
    write(folder, "prod", CAS)
    (folder / "prod/rendered" / CAS_FILE).write_bytes(text if isinstance(text, bytes) else text.encode())
    if committed:
        commit(clusters)
    line = (
        f"rendered/cas/statefulset.yaml: the committed file {problem}, so that breaking changes cannot be found; "
        "rendering repairs it: compare the new file with the running StatefulSet before you push"
    )
    assert findings(folder, allowed=("cas_replicas",)) == ([], [line])


def test_the_playbook_refuses_the_changes_of_all_clusters_at_once_and_repairs_a_broken_file(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    hosts = {name: minimal(name, tmp_path / "clusters") for name in ("one", "two", "broken")}
    hosts["two"] |= {"nativelink_scheduler_backend": "redis"}
    for name, variables in hosts.items():
        tree.write(tmp_path / "clusters" / name, render.tree(values_of(name, **variables)))
    file = tmp_path / "clusters/broken/rendered" / CAS_FILE
    text = file.read_text()
    file.write_text(f"<<<<<<< HEAD\n{text}=======\n{text}>>>>>>> other\n")
    commit(tmp_path)

    hosts["one"] |= {"nativelink_cas_replicas": 4}
    hosts["two"] |= {"nativelink_cas_volume_size": "400Gi", "nativelink_redis_volume_size": "20Gi"}
    run = run_playbook("render", write_inventory(tmp_path, hosts))
    assert run.status == 2
    assert [line.split(": ")[:2] for line in run.findings] == [
        ["one", "nativelink_cas_replicas"],
        ["two", "nativelink_cas_volume_size"],
        ["two", "nativelink_redis_volume_size"],
    ]
    assert git(tmp_path, "status", "--porcelain", "clusters") == ""

    hosts["one"] |= {"nativelink_allow_changes": ["cas_replicas"]}
    hosts["two"] |= {"nativelink_allow_changes": ["cas_volume_size", "redis_immutable"]}
    run = run_playbook("render", write_inventory(tmp_path, hosts))
    assert run.status == 0, run.output
    assert "rendered/cas/statefulset.yaml: the committed file has conflict markers of a merge" in run.output
    assert file.read_text() == text
    assert "replicas: 4" in (tmp_path / "clusters/one/rendered" / CAS_FILE).read_text()
