"""Rendering says which pods a push replaces, and what that costs."""

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render
from ansible_collections.nativelink.gitops.plugins.plugin_utils.rollouts import rollouts

from testkit.inventories import minimal, write_inventory
from testkit.playbooks import Run, run_playbook
from testkit.repository import git
from testkit.trees import values_of

A, B = ({"name": name, "platform_properties": {"pool": name}} for name in "ab")
CAS = "CAS: its pods restart one after another; the cache on their volumes stays"
SCHEDULER = "scheduler: restarts; running actions start again, and clients wait"
REDIS = "Redis: restarts; no action begins or ends until it is back, and the queue on its volume stays"
COLLECTOR = "collector: restarts; the autoscalers keep all workers until it is back"
# The longest action (1 h), the upload timeout (10 min) and the margin (5 min).
# The scheduler ends what workers run, so they have nothing to finish.
WITH_SCHEDULER = ["pool a: its workers are replaced", "pool b: its workers are replaced"]
POOL = "pool {}: its workers are replaced; running actions finish first, within 1h15m"


def tree(*pools: dict[str, Any], **variables: Any) -> dict[str, str]:
    return render.tree(values_of(nativelink_worker_pools=list(pools or (A, B)), **variables))


@pytest.mark.parametrize(
    ("variables", "lines"),
    [
        ({}, []),
        ({"nativelink_cas_resources": {"requests": {"cpu": "3", "memory": "9Gi"}, "limits": {"memory": "9Gi"}}}, [CAS]),
        # Only the ConfigMap of the CAS differs.
        ({"nativelink_cas_store_size": "70%"}, [CAS]),
        ({"nativelink_scheduler_max_job_retries": 5}, [SCHEDULER]),
        ({"nativelink_log_level": "debug"}, [CAS, SCHEDULER, *WITH_SCHEDULER]),
        ({"nativelink_version": "v1.3.2"}, [CAS, SCHEDULER, *WITH_SCHEDULER]),
        ({"nativelink_metrics_interval": 4}, [SCHEDULER, COLLECTOR]),
        ({"nativelink_collector_image": "registry.example.com/collector"}, [COLLECTOR]),
        ({"nativelink_workers_namespace": "elsewhere"}, [POOL.format("a"), POOL.format("b")]),
        # No pod has any of these.
        ({"nativelink_client_peers": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}, []),
        ({"nativelink_hostname": "other.example.com"}, []),
        ({"nativelink_dashboards": True}, []),
    ],
)
def test_only_the_pods_that_change_are_replaced(variables: dict[str, Any], lines: list[str]) -> None:
    assert rollouts(tree(), tree(**variables)) == lines


def test_the_share_of_the_keys_that_move_is_told() -> None:
    def line(share: int) -> str:
        moved = f"{share}% of the keys move to other pods"
        return f"cache: {moved}; nativelink.gitops.grow copies what they name (docs/grow.md)"

    four = {"nativelink_cas_replicas": 4, "nativelink_cas_layout_from": 3}
    assert rollouts(tree(), tree(**four)) == [CAS, SCHEDULER, *WITH_SCHEDULER, line(25)]
    assert line(50) in rollouts(tree(), tree(nativelink_cas_replicas=4))
    assert rollouts(tree(), tree(**four, nativelink_cas_shards=3)) == [], "no key moves yet"


def test_clients_that_could_write_action_results_before_are_told() -> None:
    before = tree()
    before["cas/cas.json5"] = before["cas/cas.json5"].replace('"writers"', '"other"')
    assert rollouts(before, tree())[-1] == (
        "action results: only workers write them; clients that upload results of their own need "
        "nativelink_writer_peers (docs/upgrades.md)"
    )


def test_new_certificates_replace_all_that_show_them_and_redis_keeps_its_queue() -> None:
    before, after = (
        tree(nativelink_mutual_tls_secret=name, nativelink_mutual_tls_expires="2027-01-31") for name in ("one", "two")
    )
    assert rollouts(before, after) == [CAS, SCHEDULER, *WITH_SCHEDULER]
    redis = {"nativelink_scheduler_backend": "redis"}
    assert REDIS in rollouts(tree(**redis), tree(**redis, nativelink_redis_version="7.4.0-v9"))


def test_a_pool_is_changed_added_or_removed() -> None:
    slow = {**A, "longest_action": "3h"}
    assert rollouts(tree(A, B), tree({**A, "env": {"CC": "clang"}}, B)) == [POOL.format("a")]
    assert rollouts(tree(A, B), tree({**A, "max_replicas": 3}, B)) == [], "the autoscaler reads it"
    assert rollouts(tree(slow), tree({**slow, "slots": 2})) == [POOL.format("a").replace("1h15m", "3h15m")]
    assert "pool b: is new" in rollouts(tree(A), tree(A, B))
    assert "pool b: is removed; running actions finish first, within 1h15m" in rollouts(tree(A, B), tree(A))


def test_placeholders_and_pulling_pods_run_no_actions() -> None:
    ahead = {**A, "headroom": 2, "prepull": True}
    more = {**ahead, "resources": {"requests": {"cpu": "2", "memory": "8Gi"}, "limits": {"memory": "16Gi"}}}
    placeholders = "headroom of pool a: its placeholders are replaced; they run no actions"
    assert rollouts(tree(A), tree(ahead)) == ["headroom of pool a: is new", "pre-pull of pool a: is new"]
    assert rollouts(tree(ahead), tree(A)) == ["headroom of pool a: is removed", "pre-pull of pool a: is removed"]
    assert rollouts(tree(ahead), tree({**ahead, "headroom": 3})) == []
    assert placeholders in rollouts(tree(ahead), tree(more))
    assert rollouts(tree(ahead), tree({**ahead, "image": "registry.example.com/cuda:12"})) == [
        POOL.format("a"),
        "pre-pull of pool a: its pods are replaced, and pull the images that are new; they run no actions",
    ]


def test_the_workers_that_go_have_the_grace_period_that_they_started_with() -> None:
    longer = {**B, "longest_action": "5h"}  # so that the limit of the scheduler stays
    before, after = tree({**A, "longest_action": "3h"}, longer), tree(A, longer)
    assert POOL.format("a").replace("1h15m", "3h15m") in rollouts(before, after)


def test_a_first_or_broken_tree_says_nothing() -> None:
    assert rollouts({}, tree()) == []
    assert rollouts({**tree(), "cas/statefulset.yaml": "<<<<<<< HEAD\n"}, tree()) == []
    assert rollouts({**tree(), "kustomization.yaml": "[]"}, tree()) == []


def test_a_pull_request_shows_what_its_merge_does(tmp_path: Path) -> None:
    def render_with(*arguments: str, **variables: Any) -> Run:
        hosts = {"one": {**minimal("one", tmp_path / "clusters"), **variables}}
        return run_playbook("render", write_inventory(tmp_path, hosts), *arguments)

    def said(run: Run) -> list[str]:
        assert run.status == 0, run.output
        lines = run.summary["one"].splitlines()
        return [line.removeprefix("  rollout      ") for line in lines if line.startswith("  rollout ")]

    change = {"nativelink_cas_store_size": "70%"}
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    assert said(render_with()) == []
    git(tmp_path, "add", "clusters")
    git(tmp_path, "commit", "--quiet", "--message", "Render")

    assert said(render_with("--check", **change)) == [CAS]
    assert said(render_with(nativelink_client_peers=[{"ipBlock": {"cidr": "10.0.0.0/8"}}])) == ["no pod restarts"]
    git(tmp_path, "switch", "--quiet", "--create", "change")
    assert said(render_with(**change)) == [CAS]
    git(tmp_path, "commit", "--quiet", "--all", "--message", "Change")
    assert said(render_with(**change)) == []

    base = "nativelink_base_revision"
    assert said(render_with("--check", "-e", f"{base}=main", **change)) == [CAS]
    refused = render_with("--check", "-e", f"{base}=mian", **change)
    assert refused.findings == [
        f"one: {base}: is mian, which Git does not know in {tmp_path}/clusters; "
        "fetch it, or write another branch, tag or commit"
    ]
