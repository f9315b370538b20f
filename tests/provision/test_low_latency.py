"""The role low_latency on a real API server whose nodes are fake: what it makes, reports and removes."""

from __future__ import annotations

from testbed.cluster import Cluster
from testbed.waiting import until

from .conftest import Live, Object, Play

SPACE = "nativelink-low-latency"
ON: Object = {"low_latency_enabled": True}


def test_low_latency_is_off_by_default(play: Play, live: Live) -> None:
    run = play(["low_latency"])
    assert (run.status, run.changed, run.summary) == (0, [], {})
    assert live("namespace", SPACE) == {}


def test_check_mode_makes_nothing(play: Play, live: Live) -> None:
    run = play(["low_latency"], "--check", "--diff", **ON)
    assert run.status == 0, run.message
    assert run.changed == ["low_latency : Make the DaemonSet"]
    assert live("namespace", SPACE) == {}


def test_the_second_run_changes_nothing(play: Play) -> None:
    first = play(["low_latency"], **ON)
    assert first.status == 0, first.message
    assert first.changed == ["low_latency : Make the DaemonSet"]
    assert first.summary["provisioned"] == ["low latency: 6 of 6 nodes"]
    again = play(["low_latency"], **ON)
    assert (again.status, again.changed) == (0, [])
    assert again.summary["provisioned"] == ["low latency: 6 of 6 nodes"]


def test_nodes_whose_pods_are_not_ready_are_reported_and_do_not_fail_the_run(play: Play, dev: Cluster) -> None:
    zone = {"low_latency_node_selector": {"topology.kubernetes.io/zone": "zone-b"}}
    dev.never_ready(SPACE)
    try:
        run = play(["low_latency"], low_latency_wait_timeout=3, **ON, **zone)
    finally:
        dev.never_ready(SPACE, on=False)
    assert run.status == 0, run.message
    assert run.summary["provisioned"] == ["low latency: 0 of 2 nodes"]
    (notices,) = (result["notices"]["dev"] for _, result in run.tasks if "notices" in result)
    assert [line.split()[:3] for line in notices] == [["low", "latency:", "node-2:"], ["low", "latency:", "node-5:"]]


def test_the_namespace_of_another_cluster_entry_stays(play: Play, live: Live, dev: Cluster) -> None:
    dev.run("label", "--overwrite", "namespace", SPACE, "app.kubernetes.io/instance=other")
    run = play(["low_latency"])
    assert (run.status, run.changed) == (0, [])
    assert live("daemonset", "low-latency", SPACE)
    dev.run("label", "--overwrite", "namespace", SPACE, "app.kubernetes.io/instance=dev")


def test_switching_low_latency_off_removes_it_once(play: Play, live: Live) -> None:
    checked = play(["low_latency"], "--check")
    assert checked.summary["provisioned"] == ["low latency: would be removed"]
    assert live("daemonset", "low-latency", SPACE)

    run = play(["low_latency"])
    assert run.status == 0, run.message
    assert run.changed == [
        f"low_latency : Remove the {what}" for what in ("DaemonSet and wait for the end of its pods", "namespace")
    ]
    assert run.summary["provisioned"] == ["low latency: removed"]
    assert live("pods", "", SPACE).get("items", []) == []
    again = play(["low_latency"])
    assert (again.status, again.changed, again.summary) == (0, [], {})
    until("the namespace to be gone", lambda: live("namespace", SPACE) == {}, 20)
