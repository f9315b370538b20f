"""A real node, on which pods really run."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed import build, cluster, components, debian, node
from testbed.cluster import Cluster, ClusterError
from testbed.images import Image
from testbed.waiting import patient, until
from testkit.trees import resource

SPACE = "try"


def shell(script: str, **more: object) -> dict[str, Any]:
    return {"name": "main", "image": components.reference("busybox"), "command": ["sh", "-c", script], **more}


def pod(name: str, *containers: dict[str, Any], **spec: object) -> dict[str, Any]:
    settings = {"containers": list(containers), "terminationGracePeriodSeconds": 1, **spec}
    return resource("v1/Pod", name, SPACE, metadata={"labels": {"app": name}}, spec=settings)


class Space:
    """The namespace of a test."""

    def __init__(self, where: Cluster) -> None:
        self.where = where

    def run(self, *arguments: str) -> str:
        return self.where.run("-n", SPACE, *arguments)

    def ready(self, name: str) -> None:
        self.run("wait", "--for=condition=Ready", f"pod/{name}", f"--timeout={patient(40)}s")

    def ended(self, name: str) -> str:
        """Wait for a pod to succeed, and return its log."""
        self.run("wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/{name}", f"--timeout={patient(40)}s")
        return self.run("logs", name)


def space_of(where: Cluster) -> Space:
    where.apply(resource("v1/Namespace", SPACE))
    until("a namespace", lambda: bool(where.run("-n", SPACE, "get", "sa", "default", "--ignore-not-found")), 10)
    return Space(where)


@pytest.fixture
def space(real: Cluster) -> Iterator[Space]:
    yield space_of(real)
    real.run("delete", "namespace", SPACE, f"--timeout={patient(60)}s")


def test_network_policies_are_enforced(space: Space) -> None:
    serves = "echo hello > /tmp/index.html; httpd -p 8080 -h /tmp; httpd -f -p 9090 -h /tmp"
    clients = ("friend", "stranger")
    space.where.apply(pod("guarded", shell(serves)), *(pod(one, shell("sleep 600")) for one in clients))
    space.run("expose", "pod", "guarded", "--port=80", "--target-port=8080")
    for name in ("guarded", *clients):
        space.ready(name)
    address = space.run("get", "pod", "guarded", "-o", "jsonpath={.status.podIP}")
    direct, second = f"http://{address}:8080", f"http://{address}:9090"
    named = "http://guarded.try.svc.cluster.local"

    def gets(who: str, url: str) -> bool:
        done = space.run("exec", who, "--", "sh", "-c", f"timeout 1 wget -q -O - {url} 2>&1 || echo refused")
        return done == "hello\n"

    def policy(name: str, of: str, **spec: Any) -> None:
        spec["podSelector"] = {"matchLabels": {"app": of}}
        space.where.apply(resource("networking.k8s.io/v1/NetworkPolicy", name, SPACE, spec=spec))

    def selected(name: str) -> list[dict[str, Any]]:
        return [{"podSelector": {"matchLabels": {"app": name}}}]

    for who in clients:  # without a policy all clients get through
        for url in (direct, second, named):
            until(f"{who} to get {url}", lambda who=who, url=url: gets(who, url), 10)  # type: ignore[misc]
    policy("closed", "guarded", policyTypes=["Ingress"])
    until("the policy to refuse all clients", lambda: not any(gets(who, direct) for who in clients), 20)
    policy("friends", "guarded", ingress=[{"from": selected("friend"), "ports": [{"protocol": "TCP", "port": 8080}]}])
    until("the policy to admit friends", lambda: gets("friend", direct), 20)
    assert gets("friend", named)
    assert not gets("friend", second), "the policy does not have this port"
    assert not gets("stranger", direct)
    assert not gets("stranger", named)
    policy("silent", "friend", policyTypes=["Egress"])
    until("the policy to stop the friend's traffic", lambda: not gets("friend", direct), 20)
    dns = {"to": [{"namespaceSelector": {}}], "ports": [{"protocol": "UDP", "port": 53}]}
    policy("may-speak", "friend", egress=[dns, {"to": selected("guarded")}])
    until("the policy to let the friend call by name", lambda: gets("friend", named), 20)


def says(what: str) -> Image:
    return Image("ghcr.io/some/tool:1", ("/usr/bin/busybox", "echo", what), root=debian.root("busybox"))


def test_a_saved_image_replaces_the_stand_in(space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(name: str) -> str:
        container = {"name": "main", "image": "ghcr.io/some/tool:1", "imagePullPolicy": "Always"}
        space.where.apply(pod(name, container, restartPolicy="Never"))
        return space.ended(name)

    space.where.load(says("the real one"))
    network = node.network(space.where.home)
    assert network
    crane = build.program("crane")
    command = [crane, "pull", "--insecure", f"{network.node}:5000/some/tool:1", tmp_path / "tool.tar"]
    subprocess.run(command, check=True, capture_output=True)

    space.where.load(says("a stand-in"))
    assert said("without") == "a stand-in\n"
    monkeypatch.setenv("TESTBED_IMAGES", str(tmp_path))
    space.where.load(says("a stand-in"))
    assert said("with") == "the real one\n"


def traces(ours: str) -> dict[str, set[str]]:
    """Return all that a node could leave on the machine. Its processes name `ours` or run one of a node's programs."""

    def lines(*command: str) -> set[str]:
        try:
            return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())
        except FileNotFoundError:
            return set()

    processes = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
        programs = ("kubelet", "kube-proxy", "containerd", "crane", "/usr/bin/catatonit", "/coredns")
        if ours in command or command.split(" ")[0].endswith(programs) or "containerd-shim" in command:
            processes.add(f"{folder.name} {command}")
    settings = ("vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops", "net/ipv4/ip_forward")
    return {
        "processes": processes,
        "mounts": set(Path("/proc/self/mounts").read_text().splitlines()),
        "interfaces": {path.name for path in Path("/sys/class/net").iterdir()},
        "routes": lines("ip", "route", "show", "table", "all"),
        "rules of nftables": lines("nft", "list", "ruleset"),
        "cgroups": {str(path) for path in Path("/sys/fs/cgroup").glob("**/*testbed*")},
        "settings": {f"{name}={Path('/proc/sys', name).read_text()}" for name in settings},
        "files": {str(path) for place in ("/run", "/var/lib", "/etc", "/opt") for path in Path(place).iterdir()},
        "network namespaces": lines("lsns", "-t", "net", "-n", "-o", "NS"),
    }


def test_a_node_that_ends_at_its_start_says_why(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "node.sh"
    script.write_text("echo no mounts here >&2; exit 1")
    monkeypatch.setattr(node, "_SCRIPT", script)
    said = r"the node ended while the testbed waited for the node's network namespace\n--- .*/node\.log\nno mounts here"
    with pytest.raises(ClusterError, match=said):
        cluster.up("e2e-ends", nodes=0, real=True)
    assert not (state / "e2e-ends").exists()


@pytest.mark.alone
@pytest.mark.parametrize("how", ["down", "crash"])
def test_down_leaves_nothing(state: Path, how: str) -> None:
    home = str(state / "e2e-gone")
    before = traces(home)
    with cluster.fresh("e2e-gone", nodes=0, real=True) as where:
        space = space_of(where)
        space.where.apply(pod("left", shell("trap '' TERM; sleep 600")))
        space.ready("left")
        during = traces(home)
        for kind in ("processes", "interfaces", "routes", "cgroups", "network namespaces"):
            assert during[kind] - before[kind], f"this test does not see {kind}, so it could not see any that are left"
        if how == "crash":
            kubelet = ["pgrep", "--exact", "kubelet", "--nslist", "net", "--ns", str(node.process(where.home))]
            os.kill(int(subprocess.run(kubelet, capture_output=True, text=True, check=True).stdout), 9)
            until("the node to end with its kubelet", lambda: node.process(where.home) is None, 10)
            assert "\nkubelet ended with status 137\n" in node.logs(where.home)
            assert not where.ready()
    left = {kind: found - before[kind] for kind, found in traces(home).items()}
    assert not any(left.values()), left
    assert not Path(home).exists()
