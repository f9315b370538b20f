"""The node agent and attacks of actions on a real node, each beside a counter-run without the protection.

The tests run in the order of the file. Nodes of several clusters have one kernel, so a second agent would get in the
way. First the role node_agent, from the first run to the removal. A server in a pod tells each client whether the
accepted socket has TCP_NODELAY. Pods of several users connect to ports of their own in all ways that might get around
the guard. A privileged pod lists the programs that are attached to the node's cgroup.

Then a farm with mutual TLS, a pool of isolated actions, and a pool without isolation. ``conformance/attacks.yml`` has
the attacks that need no node, which a real NativeLink runs.
"""

import ast
import base64
import json
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from testbed import clang, components, debian, node
from testbed.cluster import Cluster
from testbed.images import Image
from testbed.waiting import patient, until
from testkit.farm import Farm, load_images, process_of, secret, secure_namespace
from testkit.playbooks import Run
from testkit.site import SMALL, Site, pool
from testkit.trees import resource

SPACE = "nativelink-node-agent"
# The path at which a pod sees the node's root of cgroup v2.
CGROUP = "/node/cgroup" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "/node/cgroup/unified"
THEIRS = "theirs"
GUARD, LOW_LATENCY = {"nl_connect4", "nl_connect6"}, {"nl_sock_ops"}
ALL = {THEIRS, *GUARD, *LOW_LATENCY}
ATTACHED_TO = ("cgroup_sock_ops", "cgroup_inet4_connect", "cgroup_inet6_connect")
BOTH = {"node_agent_guard": True, "node_agent_low_latency": True}
NEITHER = dict.fromkeys(BOTH, False)
ACTION = 20003  # a user of actions

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
# Prints how connections to each port end: TCP and MPTCP, connect() and TCP Fast Open, over IPv4, IPv6 and both.
CONNECT = """
import errno, itertools, os, socket
protocols = (6, 262) if os.path.exists("/proc/sys/net/mptcp") else (6,)
hosts = (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"), (socket.AF_INET6, "::ffff:127.0.0.1")
def ended(protocol, family, host, port, fast):
    with socket.socket(family, socket.SOCK_STREAM, protocol) as client:
        try:
            client.sendto(b"x", socket.MSG_FASTOPEN, (host, port)) if fast else client.connect((host, port))
        except OSError as error:
            return errno.errorcode[error.errno]
    return "connected"
found = {}
for port in (50053, 50061, 50055):
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM, protocols[-1]) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind(("::", port))
        server.listen(64)
        ways = itertools.product(protocols, hosts, (False, True))
        found[port] = sorted({ended(protocol, *host, port, fast) for protocol, host, fast in ways})
print(found)
"""
FREE = {50053: ["connected"], 50061: ["connected"], 50055: ["connected"]}
GUARDED = {50053: ["EPERM"], 50061: ["EPERM"], 50055: ["connected"]}
# Connects to itself all the time, and prints each success.
PROBE = """
import socket, time
server = socket.create_server(("127.0.0.1", 50061), backlog=4096)
while True:
    with socket.socket() as client:
        if client.connect_ex(("127.0.0.1", 50061)) == 0:
            print("connected", flush=True)
            server.accept()[0].close()
    time.sleep(0.001)
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
        return self.site.playbook("provision", "--tags", "node_agent")

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

    def user(self, user: int, name: str = "", script: str = "import time; time.sleep(1e6)") -> None:
        """Start a pod that runs a Python script as this user."""
        context = {"runAsUser": user, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        container = {"name": "main", "image": PYTHON, "args": ["-c", script], "securityContext": context}
        self.start(name or f"user-{user}", container)

    def reached(self, user: int) -> dict[int, list[str]]:
        """Return how a user's connections end, by port."""
        text = self.where.run("exec", f"user-{user}", "--", "python3", "-c", CONNECT)
        return dict(ast.literal_eval(text))

    def start(self, name: str, container: dict[str, Any], *volumes: dict[str, Any]) -> None:
        spec = {"containers": [container], "volumes": list(volumes), "terminationGracePeriodSeconds": 0}
        self.where.apply(resource("v1/Pod", name, "default", spec=spec))
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
        pairs = [(each["name"], each["id"]) for each in found if each["attach_type"] in ATTACHED_TO]
        assert len(pairs) == len(dict(pairs)), pairs
        return dict(pairs)


@pytest.fixture(scope="module")
def stage(real: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    site = Site.make(tmp_path_factory.mktemp("site") / "checkout")
    site.add("site", real, **SMALL, nativelink_worker_pools=[pool("default")])
    stage = Stage(real, site)
    tools = components.images_of("bpftool")
    real.load(*tools, Image(PYTHON, ("/usr/bin/python3",), root=debian.root("python3-minimal")))
    source = site.folder / "theirs.c"
    source.write_text(OTHER_PROGRAM)
    content = {"theirs.o": base64.b64encode(clang.bpf(source)).decode()}
    real.apply(resource("v1/ConfigMap", "theirs", "default", binaryData=content))
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
    for user in (0, ACTION, 28192):
        stage.user(user)
    return stage


def test_without_the_role_no_connection_has_tcp_nodelay_and_every_user_connects(stage: Stage) -> None:
    assert stage.accepted("early") == OFF
    assert stage.reached(0) == stage.reached(ACTION) == FREE
    assert {*stage.attached()} == {THEIRS}


def test_a_node_without_a_bpf_file_system_is_reported_and_keeps_working(stage: Stage) -> None:
    node.run_inside(stage.where.home, "mount", "--no-mtab", "-t", "tmpfs", "none", "/sys/fs/bpf")
    try:
        run = stage.provision(**BOTH)
    finally:
        node.run_inside(stage.where.home, "umount", "--no-mtab", "/sys/fs/bpf")
    said = "node agent: real-1: not attached: /sys/fs/bpf is not a BPF file system"
    assert said in run.summary["site"]
    assert "node agent: 0 of 1 nodes" in run.summary["site"]
    (pod,) = stage.pods()
    (state,) = pod["status"]["containerStatuses"]
    assert (pod["status"]["phase"], state["ready"], state["restartCount"]) == ("Running", False, 0)
    assert {*stage.attached()} == {THEIRS}
    # The BPF file system is mounted again, so the next pod attaches the programs.
    stage.where.run("-n", SPACE, "delete", "pod", pod["metadata"]["name"])
    until("the next pod to be ready", stage.ready, 40)


def test_connections_that_nativelinks_ports_accept_have_tcp_nodelay(stage: Stage) -> None:
    run = stage.provision()
    assert "node agent: 1 of 1 nodes" in run.summary["site"]
    assert "node agent: real-1" not in run.summary["site"]
    assert run.changed == 0
    assert {*stage.attached()} == ALL
    stage.serve("late")
    assert stage.accepted("early") == ON
    assert stage.accepted("late") == ON


def test_users_of_actions_cannot_connect_to_nativelinks_own_ports(stage: Stage) -> None:
    assert stage.reached(ACTION) == GUARDED
    assert stage.reached(0) == stage.reached(28192) == FREE
    stage.user(ACTION, "probe", PROBE)


def test_a_container_that_is_killed_is_followed_by_one_attachment_without_a_gap(stage: Stage) -> None:
    before = stage.attached()
    (pod,) = stage.pods()
    os.kill(process_of(pod["metadata"]["uid"], "/program/attach.sh"), signal.SIGKILL)
    until("the container to be restarted", lambda: stage.ready(restarts=1), 40)
    assert_replaced_without_a_gap(stage, before)


def assert_replaced_without_a_gap(stage: Stage, before: dict[str, int]) -> None:
    """Check that each of the role's programs was replaced, and the other one was not."""
    after = stage.attached()
    assert {*before} == {*after} == ALL
    assert {name for name in ALL if before[name] == after[name]} == {THEIRS}
    assert stage.accepted("early") == ON
    assert stage.where.run("logs", "probe") == ""


def test_an_upgrade_ends_with_one_attachment_and_has_no_gap(stage: Stage) -> None:
    before = stage.attached()
    stage.where.run("-n", SPACE, "rollout", "restart", "daemonset/node-agent")
    stage.where.rolled_out(SPACE, "daemonset/node-agent")
    assert_replaced_without_a_gap(stage, before)


def test_without_the_guard_users_of_actions_connect(stage: Stage) -> None:
    """The counter-run of the guard, and of the probe that found no gap."""
    stage.provision(node_agent_guard=False)
    assert {*stage.attached()} == {THEIRS, *LOW_LATENCY}
    assert stage.reached(ACTION) == FREE
    assert "connected" in stage.where.run("logs", "probe", "--tail=1")
    stage.where.run("delete", "pod", "probe", "--now")
    stage.provision(**BOTH)
    assert stage.reached(ACTION) == GUARDED


def test_the_disabled_role_leaves_nothing(stage: Stage) -> None:
    run = stage.provision(**NEITHER)
    assert "removal of the node agent: 1 of 1 nodes" in run.summary["site"]
    assert "node agent: removed" in run.summary["site"]
    assert {*stage.attached()} == {THEIRS}
    assert not any(name in stage.bpftool("prog", "list") for name in ALL - {THEIRS})
    pins = stage.where.run("exec", "watcher", "--", "ls", "/node/bpf").split()
    assert (SPACE in pins, THEIRS in pins) == (False, True)
    assert stage.accepted("early") == OFF
    assert stage.accepted("late") == OFF
    assert stage.reached(ACTION) == FREE
    there = ("get", "namespace", SPACE, "--ignore-not-found", "-o", "name")
    until("the namespace to be gone", lambda: stage.where.run(*there) == "", 40)


# A farm ---------------------------------------------------------------------------------------------------------------

POOLS = [pool("isolated", slots=4, max_replicas=1), pool("open", slots=4, max_replicas=1, isolation="none")]
CAS = "nativelink-cas-0.nativelink-cas-headless.farm.svc"
WORKER_API = "nativelink-scheduler-workers.farm.svc"
FARM = {
    "nativelink_worker_access": "node",
    "nativelink_scheduler_backend": "redis",
    "nativelink_redis_resources": {"requests": {"memory": "64Mi"}, "limits": {"memory": "512Mi"}},
    "nativelink_redis_volume_size": "1Gi",
    "nativelink_metrics": ["scheduler", "cas", "worker"],
    "nativelink_metrics_namespaces": ["monitoring"],
}
CERTIFICATES = {"nativelink_mutual_tls_secret": "tls-1", "nativelink_mutual_tls_expires": "2035-12-31"}
SPACES = {"nativelink_namespace": "farm", "nativelink_workers_namespace": "farm-workers"}
READY = [f"deployment/nativelink-{name}" for name in ("collector", "collector-workers", "worker-open")]
ISOLATED = "deployment/nativelink-worker-isolated"
REFUSED, CONNECTED, CLOSED = "Operation not permitted", "connected", "timed out"


@dataclass(frozen=True)
class Attacked(Farm):
    """A farm on the node."""

    stage: Stage

    def act(self, pool: str, script: str, timeout: float = 60) -> str:
        """Run a script as an action of a pool, and return how the action ended and what it printed, in one line."""
        return self.client().act(script, f"--timeout={timeout}", pool=pool)

    def connect(self, pool: str, host: str, port: int) -> str:
        """Let an action of a pool connect to a port, and return how that ends."""
        script = f"timeout 3 bash -c '< /dev/tcp/{host}/{port} && echo connected'; [ $? != 124 ] || echo timed out"
        return self.act(pool, script)

    def states(self) -> dict[str, tuple[bool, int]]:
        """Return by pool whether its worker is ready, and how often the worker has restarted."""
        found = {}
        for pod in json.loads(self.run("get", "pods", "-o", "json"))["items"]:
            if "deletionTimestamp" in pod["metadata"]:
                continue
            (state,) = pod["status"].get("containerStatuses", [{"ready": False, "restartCount": 0}])
            found[pod["metadata"]["labels"]["nativelink-gitops/pool"]] = (state["ready"], state["restartCount"])
        return found

    def certify(self, **certificates: str) -> None:
        """Apply the tree with these certificates, which the role makes, and wait for all but the isolated worker."""
        self.apply(POOLS, **FARM, **certificates)
        self.stage.site.set("site", **SPACES, worker_certificates_create=True, **certificates)
        self.stage.site.playbook("provision", "--tags", "worker_certificates")
        self.ready(*READY)


@pytest.fixture(scope="module")
def farm(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Attacked:
    """Apply a tree to the node without the guard."""
    load_images(stage.where, "redis", "collector")
    made = Attacked(stage.where, "farm", tmp_path_factory.mktemp("tree"), stage)
    stage.where.apply(
        secure_namespace("farm", "restricted"),
        secret("nativelink-redis", "Opaque", {"password": b"of-a-test"}, "farm"),
    )
    made.certify(**CERTIFICATES)
    return made


def test_a_worker_on_a_node_that_does_not_guard_takes_no_actions_and_says_why(farm: Attacked) -> None:
    def said() -> str:
        arguments = ("logs", "-l", "nativelink-gitops/pool=isolated", "-c", "worker", "--tail=5")
        return farm.run(*arguments)

    reason = "isolation: the node lets actions connect to port 50053"
    until("the reason", lambda: reason in said(), 60)
    assert "Run role node_agent for it (node_agent_guard)" in said()
    assert not farm.states()["isolated"][0]


def test_with_the_guard_actions_run_as_users_of_their_own(farm: Attacked) -> None:
    farm.stage.provision(node_agent_guard=True)
    farm.ready(ISOLATED)
    status = "grep -E '^(Uid|CapEff|CapPrm|CapInh|NoNewPrivs)' /proc/self/status | tr -s '\\t\\n' ' '"
    none = "0000000000000000"
    assert farm.act("isolated", status).startswith(
        f"ok Uid: 20000 20000 20000 20000 CapInh: {none} CapPrm: {none} CapEff: {none} NoNewPrivs: 1"
    )
    assert farm.act("open", status).startswith("ok Uid: 65532 65532 65532 65532")


@pytest.mark.parametrize(("host", "port"), [(CAS, 50053), (WORKER_API, 50061)], ids=["action results", "worker API"])
def test_an_action_reaches_neither_the_port_for_results_nor_the_worker_api(
    farm: Attacked, host: str, port: int
) -> None:
    assert REFUSED in farm.connect("isolated", host, port)
    assert CONNECTED in farm.connect("open", host, port)
    # The contents of the CAS are for actions too, because they are verified.
    assert CONNECTED in farm.connect("isolated", CAS, 50052)


CLOSED_TO_ACTIONS = {
    "API server": ("kubernetes.default.svc", 443),
    "metadata": ("169.254.169.254", 80),
    "clients' port of the scheduler": ("nativelink-scheduler.farm.svc", 50052),
    "health of the CAS": (CAS, 50080),
    "Redis": ("nativelink-redis.farm.svc", 6379),
    "collector": ("nativelink-collector.farm.svc", 4317),
    "metrics": ("nativelink-collector.farm.svc", 9465),
    "node": ("10.200.0.1", 5000),
}


@pytest.mark.parametrize(("host", "port"), CLOSED_TO_ACTIONS.values(), ids=CLOSED_TO_ACTIONS)
def test_the_policies_close_everything_else(farm: Attacked, host: str, port: int) -> None:
    seen = farm.connect("isolated", host, port)
    assert CLOSED in seen or "No route to host" in seen or "Connection refused" in seen or "unreachable" in seen, seen
    assert CONNECTED not in seen


def test_a_flood_ends_at_the_collector_of_workers(farm: Attacked) -> None:
    """The other collector, which has the metrics of scheduler and CAS, is out of reach and does not notice."""

    def restarts(name: str) -> list[int]:
        pods = farm.where.run("-n", "farm", "get", "pods", "-l", f"app.kubernetes.io/component={name}", "-o", "json")
        return [each["status"]["containerStatuses"][0]["restartCount"] for each in json.loads(pods)["items"]]

    send = "timeout 10 cat /dev/zero > /dev/tcp/nativelink-collector-workers.farm.svc/24317"
    assert "ok flooded" in farm.act("isolated", f"for i in $(seq 50); do {send} & done; wait; echo flooded")
    assert restarts("collector") == [0]
    farm.where.rolled_out("farm", "deployment/nativelink-collector-workers")
    assert restarts("collector-workers")[0] <= 1


def test_the_first_process_of_the_pod_has_a_user_of_its_own(farm: Attacked) -> None:
    """It would end the pod without a drain."""
    for name in ("isolated", "open"):
        assert "Operation not permitted" in farm.act(name, "kill -TERM 1")
    assert farm.states() == {"isolated": (True, farm.states()["isolated"][1]), "open": (True, 0)}


def test_an_action_cannot_end_what_is_not_its_own(farm: Attacked) -> None:
    restarts = farm.states()["isolated"][1]
    assert farm.act("isolated", "kill -9 -1; echo sent").startswith("ok sent")
    assert farm.states()["isolated"] == (True, restarts)


def test_nothing_of_an_action_stays(farm: Attacked) -> None:
    leave = "set -m; sleep 4321 > /dev/null 2>&1 < /dev/null & echo x > /tmp/left; echo x > /var/tmp/left"
    look = "ls /tmp/left /var/tmp/left 2> /dev/null | wc -l; grep -la '^sleep.4321' /proc/[0-9]*/cmdline | wc -l; true"
    assert farm.act("isolated", leave + "; echo $TMPDIR").startswith("ok /scratch/users/")
    assert farm.act("isolated", look).startswith("ok 0\n0")
    assert farm.act("open", leave).startswith("ok")
    assert farm.act("open", look).startswith("ok 2\n1")


def test_an_action_cannot_read_the_key_of_its_worker(farm: Attacked) -> None:
    assert "Permission denied" in farm.act("isolated", "cat /tls/tls.key")
    assert farm.act("open", "cat /tls/tls.key").startswith("ok -----BEGIN PRIVATE KEY-----")


def test_the_root_file_system_and_the_drain_are_out_of_reach(farm: Attacked) -> None:
    seen = farm.act("isolated", "echo x > /usr/x; echo x > /drain/draining; ls /scratch /scratch/store /drain; true")
    assert (seen.count("Read-only file system"), seen.count("Permission denied")) == (1, 4), seen
    assert farm.act("open", "echo x > /drain/begun && echo written").startswith("ok written")


def test_without_the_guard_a_running_worker_takes_no_more_actions(farm: Attacked) -> None:
    farm.stage.provision(node_agent_guard=False)
    seen = farm.act("isolated", "echo ran", timeout=patient(10))
    assert "DeadlineExceeded" in seen, seen
    farm.stage.provision(node_agent_guard=True)
    assert farm.act("isolated", "echo ran again").startswith("ok ran again")


def test_a_new_name_renews_the_certificates(farm: Attacked) -> None:
    farm.certify(**{**CERTIFICATES, "nativelink_mutual_tls_secret": "tls-2"})
    farm.ready(ISOLATED)
    assert farm.act("isolated", "echo renewed").startswith("ok renewed")


def test_counter_run_without_isolation_an_action_ends_nativelink(farm: Attacked) -> None:
    """The scheduler starts the action again, which ends NativeLink again. So this test is the last one."""
    restarts = farm.states()["open"][1]
    farm.act("open", "kill -9 -1", timeout=20)
    until("the open worker's container to restart", lambda: farm.states()["open"][1] > restarts, 60)
