"""The role low_latency on a real node, and its effect on connections of pods, from the first run to the removal.

The tests share one cluster and run in the order of the file. A server in a pod tells each client whether the accepted
socket has TCP_NODELAY. A privileged pod lists the programs that are attached to the node's cgroup.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from testbed import bpf, cluster, components, debian, node
from testbed.cluster import Cluster
from testbed.images import Image
from testbed.waiting import patient, until
from tests.e2e.site import SMALL, Site, pool
from tests.playbooks import Run

SPACE = "nativelink-low-latency"
# The path at which a pod sees the node's root of cgroup v2.
CGROUP = "/node/cgroup" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "/node/cgroup/unified"
OURS, THEIRS = "nl_tcp_nodelay", "theirs"

PORTS = ("50051", "50052", "50061", "50053")  # the last port is not NativeLink's
ON, OFF = dict(zip(PORTS, "1110", strict=True)), dict.fromkeys(PORTS, "0")
SERVER = f"""
import socket, threading
def serve(port):
    listener = socket.create_server(("", port))
    while True:
        connection, _ = listener.accept()
        connection.sendall(b"%d" % bool(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))
        connection.close()
for port in {PORTS}:
    threading.Thread(target=serve, args=[int(port)]).start()
"""
PYTHON = "docker.io/testbed/python:v0"
# Another user's program, which does nothing.
OTHER_PROGRAM = """
__attribute__((section("sockops"), used)) int theirs(void) { return 1; }
__attribute__((section("license"), used)) char license_of_this[] = "Apache-2.0";
"""


@dataclass(frozen=True)
class Stage:
    """A cluster with a real node, and the checkout that describes it."""

    where: Cluster
    site: Site

    def provision(self, **variables: object) -> Run:
        self.site.set("site", **variables)
        return self.site.playbook("provision", "--tags", "low_latency")

    def pods(self) -> list[dict[str, Any]]:
        """Return the pods of the role's DaemonSet."""
        return list(json.loads(self.where.run("-n", SPACE, "get", "pods", "-o", "json"))["items"])

    def ready(self, restarts: int = 0) -> bool:
        """Return True if there is one pod, which is ready after this many restarts."""
        states = [each["status"].get("containerStatuses", ({},))[0] for each in self.pods()]
        return [(each.get("ready"), each.get("restartCount")) for each in states] == [(True, restarts)]

    def serve(self, name: str) -> None:
        """Start a pod with the server."""
        container = {"name": "main", "image": PYTHON, "args": ["-c", SERVER]}
        self.start(name, container | {"readinessProbe": {"tcpSocket": {"port": int(PORTS[-1])}, "periodSeconds": 1}})

    def start(self, name: str, container: dict[str, Any], *volumes: dict[str, Any]) -> None:
        metadata = {"name": name, "namespace": "default"}
        spec = {"containers": [container], "volumes": list(volumes), "terminationGracePeriodSeconds": 0}
        self.where.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        self.where.run("wait", "--for=condition=Ready", f"pod/{name}", f"--timeout={patient(60)}s")

    def accepted(self, name: str) -> dict[str, str]:
        """Return "1" for each port on which a server's socket has TCP_NODELAY, and "0" for the others."""
        address = self.where.run("get", "pod", name, "-o", "jsonpath={.status.podIP}")
        found = {}
        for port in PORTS:
            with socket.create_connection((address, int(port)), timeout=patient(5)) as connection:
                found[port] = connection.recv(1).decode()
        return found

    def bpftool(self, *arguments: str) -> str:
        return self.where.run("exec", "watcher", "--", "bpftool", *arguments)

    def attached(self) -> dict[str, int]:
        """Return the programs that are attached to the node's cgroup, and check that each is attached once."""
        found = json.loads(self.bpftool("--json", "cgroup", "show", CGROUP))
        pairs = [(each["name"], each["id"]) for each in found if each["attach_type"] == "cgroup_sock_ops"]
        assert len(pairs) == len(dict(pairs)), pairs
        return dict(pairs)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with cluster.fresh("low-latency", nodes=0, real=True) as where:
        site = Site.make(tmp_path_factory.mktemp("site") / "checkout")
        site.add("site", where, **SMALL, nativelink_worker_pools=[pool("default")])
        stage = Stage(where, site)
        tools = components.images_of("bpftool")
        where.load(*tools, Image(PYTHON, ("/usr/bin/python3",), root=debian.root("python3-minimal")))
        source = site.folder / "theirs.c"
        source.write_text(OTHER_PROGRAM)
        metadata = {"name": "theirs", "namespace": "default"}
        content = {"theirs.o": base64.b64encode(bpf.compiled(source)).decode()}
        where.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "binaryData": content})
        watcher = {
            "name": "main",
            "image": tools[0].reference,
            "command": ["sleep", "infinity"],
            "securityContext": {"privileged": True},
            "volumeMounts": [{"name": name, "mountPath": f"/node/{name}"} for name in ("cgroup", "bpf", "program")],
        }
        volumes = [{"name": name, "hostPath": {"path": f"/sys/fs/{name}"}} for name in ("cgroup", "bpf")]
        stage.start("watcher", watcher, *volumes, {"name": "program", "configMap": {"name": "theirs"}})
        stage.bpftool("prog", "load", "/node/program/theirs.o", "/node/bpf/theirs")
        stage.bpftool("cgroup", "attach", CGROUP, "sock_ops", "pinned", "/node/bpf/theirs", "multi")
        stage.serve("early")
        yield stage


def test_without_the_role_no_connection_has_tcp_nodelay(stage: Stage) -> None:
    assert stage.accepted("early") == OFF
    assert [*stage.attached()] == [THEIRS]


def test_a_node_without_a_bpf_file_system_is_reported_and_keeps_working(stage: Stage) -> None:
    node.run_inside(stage.where.home, "mount", "--no-mtab", "-t", "tmpfs", "none", "/sys/fs/bpf")
    try:
        run = stage.provision(low_latency_enabled=True)
    finally:
        node.run_inside(stage.where.home, "umount", "--no-mtab", "/sys/fs/bpf")
    said = "low latency: real-1: not attached: /sys/fs/bpf is not a BPF file system"
    assert said in run.summary["site"]
    assert "low latency: 0 of 1 nodes" in run.summary["site"]
    (pod,) = stage.pods()
    (state,) = pod["status"]["containerStatuses"]
    assert (pod["status"]["phase"], state["ready"], state["restartCount"]) == ("Running", False, 0)
    assert [*stage.attached()] == [THEIRS]
    # The BPF file system is mounted again, so the next pod attaches the program.
    stage.where.run("-n", SPACE, "delete", "pod", pod["metadata"]["name"])
    until("the next pod to be ready", stage.ready, 40)


def test_connections_that_nativelinks_ports_accept_have_tcp_nodelay(stage: Stage) -> None:
    run = stage.provision()
    assert "low latency: 1 of 1 nodes" in run.summary["site"]
    assert "low latency: real-1" not in run.summary["site"]
    assert run.changed == 0
    assert {*stage.attached()} == {OURS, THEIRS}
    stage.serve("late")
    assert stage.accepted("early") == ON
    assert stage.accepted("late") == ON


def test_a_container_that_is_killed_is_followed_by_one_attachment(stage: Stage) -> None:
    before = stage.attached()
    (pod,) = stage.pods()
    os.kill(loader(pod["metadata"]["uid"]), signal.SIGKILL)
    until("the container to be restarted", lambda: stage.ready(restarts=1), 40)
    after = stage.attached()
    assert {*after} == {OURS, THEIRS}
    assert after[OURS] != before[OURS]
    assert after[THEIRS] == before[THEIRS]
    assert stage.accepted("early") == ON


def loader(pod: str) -> int:
    """Return the PID of the script of the pod with this UID."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if "/program/attach.sh" in (process / "cmdline").read_text() and pod in (process / "cgroup").read_text():
                return int(process.name)
        except OSError:  # the process has just ended
            continue
    raise AssertionError(f"pod {pod} runs no script")


def test_an_upgrade_ends_with_one_attachment(stage: Stage) -> None:
    before = stage.attached()
    stage.where.run("-n", SPACE, "rollout", "restart", "daemonset/low-latency")
    stage.where.rolled_out(SPACE, "daemonset/low-latency")
    after = stage.attached()
    assert {*after} == {OURS, THEIRS}
    assert after[OURS] != before[OURS]
    assert stage.accepted("early") == ON


def test_the_disabled_role_leaves_nothing(stage: Stage) -> None:
    run = stage.provision(low_latency_enabled=False)
    assert "low latency: removed" in run.summary["site"]
    assert [*stage.attached()] == [THEIRS]
    assert OURS not in stage.bpftool("prog", "list")
    pins = stage.where.run("exec", "watcher", "--", "ls", "/node/bpf").split()
    assert (SPACE in pins, THEIRS in pins) == (False, True)
    assert stage.accepted("early") == OFF
    assert stage.accepted("late") == OFF
    there = ("get", "namespace", SPACE, "--ignore-not-found", "-o", "name")
    until("the namespace to be gone", lambda: stage.where.run(*there) == "", 40)
