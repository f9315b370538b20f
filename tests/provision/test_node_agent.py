"""The role node_agent on a real API server whose nodes are fake: what it makes, reports and removes."""

import base64

from testbed.cluster import Cluster
from testbed.waiting import until
from testkit.trees import ROOT

from .conftest import Live, Object, Play, step

SPACE = "nativelink-node-agent"
FILES = ROOT / "roles/node_agent/files"
OFF: Object = {"node_agent_guard": False}
OLD = "nativelink-low-latency"
PREDECESSOR = """
apiVersion: v1
kind: Namespace
metadata:
  name: nativelink-low-latency
  labels:
    app.kubernetes.io/name: low-latency
    app.kubernetes.io/instance: {instance}
    app.kubernetes.io/part-of: nativelink
    app.kubernetes.io/managed-by: nativelink-gitops
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: low-latency, namespace: nativelink-low-latency}}
spec:
  selector: {{matchLabels: {{app.kubernetes.io/name: low-latency}}}}
  template:
    metadata: {{labels: {{app.kubernetes.io/name: low-latency}}}}
    spec: {{containers: [{{name: attach, image: registry.example.com/bpftool}}]}}
"""


def programs(live: Live) -> list[str]:
    """Return the last arguments of the script, which name the programs."""
    (container,) = live("daemonset", "node-agent", SPACE)["spec"]["template"]["spec"]["containers"]
    command: list[str] = container["command"]
    return command[command.index("/run/ready") + 1 :]


def test_both_switched_off_and_check_mode_make_nothing(play: Play, live: Live) -> None:
    off, checked = play.steps(step("node_agent", **OFF), step("node_agent", check_mode=True), arguments=("--diff",))
    assert (off.failed, off.changed, off.summary) == (False, [], {})
    assert (checked.failed, checked.changed) == (False, ["node_agent : Make the DaemonSet"])
    assert live("namespace", SPACE) == {}


def test_the_second_run_changes_nothing(play: Play, live: Live) -> None:
    first, again = play.steps(step("node_agent"), step("node_agent"))
    assert (first.message, first.changed) == ("", ["node_agent : Make the DaemonSet"])
    assert (again.message, again.changed) == ("", [])
    assert first.summary["provisioned"] == again.summary["provisioned"] == ["node agent: 6 of 6 nodes"]
    assert programs(live) == ["guard"]
    found = live("configmap", "node-agent", SPACE)
    assert found["data"] == {"attach.sh": (FILES / "attach.sh").read_text()}
    assert {name: base64.b64decode(content) for name, content in found["binaryData"].items()} == {
        name: (FILES / name).read_bytes() for name in ("guard.o", "low_latency.o")
    }


def test_nodes_that_are_not_ready_are_reported_and_another_cluster_entry_changes_nothing(
    play: Play, live: Live, dev: Cluster
) -> None:
    zone = {"node_agent_node_selector": {"topology.kubernetes.io/zone": "zone-b"}}
    dev.never_ready(SPACE)
    try:
        both = {"node_agent_low_latency": True, "node_agent_wait_timeout": 3}
        runs = play.cases(["node_agent"], dev=zone | both, other=OFF)
    finally:
        dev.never_ready(SPACE, on=False)
    assert not runs["dev"].failed, runs["dev"].message
    assert runs["dev"].summary["provisioned"] == ["node agent: 0 of 2 nodes"]
    (notices,) = (result["notices"]["dev"] for _, result in runs["dev"].tasks if "notices" in result)
    assert [line.split()[:3] for line in notices] == [["node", "agent:", "node-2:"], ["node", "agent:", "node-5:"]]
    assert (runs["other"].failed, runs["other"].changed) == (False, [])
    assert programs(live) == ["guard", "low_latency"]


def test_switching_both_off_detaches_and_removes_once(play: Play, live: Live) -> None:
    checked = play(["node_agent"], "--check", **OFF)
    assert checked.summary["provisioned"] == ["node agent: would be removed"]
    run = play(["node_agent"], **OFF)
    # The pods of this DaemonSet have no program, so they detach those of earlier pods.
    assert run.changed == ["node_agent : Make the DaemonSet", "node_agent : Remove the namespace"], run.message
    assert run.summary["provisioned"] == ["removal of the node agent: 6 of 6 nodes", "node agent: removed"]
    until("the namespace to be gone", lambda: live("namespace", SPACE) == {}, 20)
    again = play(["node_agent"], **OFF)
    assert (again.changed, again.summary) == ([], {})


def test_the_agent_of_an_earlier_release_is_removed_once(play: Play, live: Live, dev: Cluster) -> None:
    low_latency(dev, "other")
    assert play(["node_agent"]).summary["provisioned"] == ["node agent: 6 of 6 nodes"]
    assert live("daemonset", "low-latency", OLD)

    low_latency(dev, "dev")
    run = play(["node_agent"])
    assert run.changed == [
        f"node_agent : Remove the old {what}" for what in ("DaemonSet and wait for the end of its pods", "namespace")
    ]
    assert run.summary["provisioned"] == ["node agent: 6 of 6 nodes", "low latency of an earlier release: removed"]
    assert live("pods", "", OLD).get("items", []) == []
    until("the namespace to be gone", lambda: live("namespace", OLD) == {}, 20)
    assert play(["node_agent"]).changed == []


def low_latency(where: Cluster, instance: str) -> None:
    """Apply what role low_latency of an earlier release made for a cluster entry."""
    where.run("apply", "-f", "-", stdin=PREDECESSOR.format(instance=instance))
