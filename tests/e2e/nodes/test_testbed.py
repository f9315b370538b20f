"""A real node, on which pods really run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed import build, cluster, components, debian, images, node
from testbed.cluster import Cluster, ClusterError
from testbed.images import Image
from testbed.waiting import patient, until

SPACE = "try"
CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "data", "namespace": SPACE},
    "spec": {
        "storageClassName": "local-path",
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}},
    },
}


def shell(script: str, **more: object) -> dict[str, Any]:
    return {"name": "main", "image": components.reference("busybox"), "command": ["sh", "-c", script], **more}


def pod(name: str, *containers: dict[str, Any], **spec: object) -> dict[str, Any]:
    metadata = {"name": name, "namespace": SPACE, "labels": {"app": name}}
    settings = {"containers": list(containers), "terminationGracePeriodSeconds": 1, **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": settings}


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


@pytest.fixture
def space(real: Cluster) -> Iterator[Space]:
    real.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}})
    until(
        "a namespace", lambda: bool(real.run("-n", SPACE, "get", "serviceaccount", "default", "--ignore-not-found")), 10
    )
    yield Space(real)
    real.run("delete", "namespace", SPACE, f"--timeout={patient(60)}s")


def test_pods_run_on_the_kind_of_node_that_they_select(space: Space) -> None:
    nodes = json.loads(space.where.run("get", "nodes", "-o", "json"))["items"]
    kinds = {node["metadata"]["name"]: node["metadata"]["labels"]["testbed/node"] for node in nodes}
    assert kinds == {"real-1": "real", "node-1": "fake"}
    toleration = [{"key": "testbed/node", "operator": "Exists"}]
    space.where.apply(
        pod("really", shell("sleep 600")),
        pod("faked", shell("exit 1"), tolerations=toleration, nodeSelector={"testbed/node": "fake"}),
    )
    for name, on in (("really", "real-1"), ("faked", "node-1")):
        space.ready(name)
        assert space.run("get", "pod", name, "-o", "jsonpath={.spec.nodeName}") == on
    # The kubelet alone writes this status. kwok would also write it if one of its stages matched the pod.
    really = json.loads(space.run("get", "pod", "really", "-o", "json"))["status"]
    assert re.fullmatch(r"10\.\d+\.\d+\.\d+", really["podIP"])
    assert really["containerStatuses"][0]["containerID"].startswith("containerd://")


def test_exec_and_logs(space: Space) -> None:
    space.where.apply(pod("talker", shell("echo said; sleep 600")))
    space.ready("talker")
    assert space.run("logs", "talker") == "said\n"
    assert space.run("exec", "talker", "--", "cat", "/proc/1/cmdline") == "sleep\x00600\x00"
    assert space.run("exec", "talker", "--", "hostname") == "talker\n"


def test_names_services_and_the_machine_reach_a_pod(space: Space) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": SPACE},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    space.where.apply(service, pod("web", shell("echo hello > /tmp/index.html; httpd -f -p 8080 -h /tmp")))
    space.ready("web")
    # The web pod comes first, because a failed look-up of a name stays in a cache for a while.
    space.where.apply(
        pod(
            "caller",
            shell(
                "for url in http://web.try.svc.cluster.local http://web; do timeout 5 wget -q -O - $url || exit; done"
            ),
            restartPolicy="OnFailure",
        )
    )
    assert space.ended("caller") == "hello\nhello\n"
    for path in ("pod/web -o jsonpath={.status.podIP}:8080", "service/web -o jsonpath={.spec.clusterIP}:80"):
        address = space.run("get", *path.split(" "))
        answer = subprocess.run(["curl", "-sS", "-m", "5", address], capture_output=True, text=True, check=True)
        assert answer.stdout == "hello\n", address


def test_a_pod_reaches_the_api_server(space: Space) -> None:
    # busybox only opens the connection. CoreDNS shows that the API server also answers, because it needs the answers.
    script = "nc -w 5 kubernetes.default.svc 443 < /dev/null && echo reached"
    space.where.apply(pod("client", shell(script), restartPolicy="OnFailure"))
    assert space.ended("client") == "reached\n"


def test_a_name_outside_of_the_cluster_has_no_address(space: Space) -> None:
    script = "nslookup example.com. && echo found || echo none; ping -c 1 -W 1 192.0.2.1 && echo out || echo inside"
    space.where.apply(pod("curious", shell(script), restartPolicy="Never"))
    said = space.ended("curious").splitlines()
    assert "none" in said
    assert "inside" in said


def test_a_volume_keeps_its_data_over_a_pod_restart(space: Space) -> None:
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]

    def user(script: str) -> dict[str, Any]:
        mounts = [{"name": "data", "mountPath": "/data"}]
        return pod("user", shell(script, volumeMounts=mounts), volumes=volumes, restartPolicy="Never")

    space.where.apply(CLAIM, user("echo kept > /data/file"))
    space.ended("user")
    assert space.run("get", "pvc", "data", "-o", "jsonpath={.status.phase}") == "Bound"
    space.run("delete", "pod", "user")
    space.where.apply(user("cat /data/file"))
    assert space.ended("user") == "kept\n"
    volume = space.run("get", "pvc", "data", "-o", "jsonpath={.spec.volumeName}")
    space.run("delete", "pod,pvc", "--all")
    gone = ("get", "pv", volume, "--ignore-not-found", "-o", "name")
    until("the volume's removal by its provisioner", lambda: space.where.run(*gone) == "", 30)


def test_kubelet_reports_the_disk_of_a_claim(space: Space) -> None:
    mounts = [{"name": "data", "mountPath": "/data"}]
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
    space.where.apply(CLAIM, pod("user", shell("sleep 1000", volumeMounts=mounts), volumes=volumes))
    labels = f'{{namespace="{SPACE}",persistentvolumeclaim="data"}}'
    measures = ("capacity_bytes", "used_bytes", "available_bytes", "inodes", "inodes_free", "inodes_used")

    def found() -> set[str]:
        text = space.where.run("get", "--raw", f"/api/v1/nodes/{node.NAME}/proxy/metrics")
        return {name for name in measures if f"kubelet_volume_stats_{name}{labels} " in text}

    until("kubelet to report the disk of the claim", lambda: found() == set(measures), 60)


def test_a_pod_over_the_limit_of_its_emptydir_is_evicted(space: Space) -> None:
    """The counter-run is a pod that stays below its limit."""

    def user(name: str, megabytes: int) -> dict[str, Any]:
        script = f"dd if=/dev/zero of=/scratch/file bs=1M count={megabytes}; sleep 1000"
        volumes = [{"name": "scratch", "emptyDir": {"sizeLimit": "20Mi"}}]
        return pod(name, shell(script, volumeMounts=[{"name": "scratch", "mountPath": "/scratch"}]), volumes=volumes)

    def state(name: str) -> str:
        return space.run("get", "pod", name, "-o", "jsonpath={.status.phase} {.status.reason}")

    space.where.apply(user("below", 10), user("over", 40))
    until("kubelet to evict the pod", lambda: state("over") == "Failed Evicted", 90)
    assert state("below") == "Running "


def test_pre_stop_hook_runs_before_the_end(space: Space) -> None:
    hook = {"preStop": {"exec": {"command": ["sh", "-c", "sleep 2; echo hook > /proc/1/fd/1"]}}}
    space.where.apply(
        pod(
            "stopped",
            shell("trap 'echo end; exit' TERM; echo begin; while :; do sleep 0.1; done", lifecycle=hook),
            terminationGracePeriodSeconds=20,
        )
    )
    space.ready("stopped")
    command = space.where.command("-n", SPACE, "logs", "-f", "stopped")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        started = time.monotonic()
        space.run("delete", "pod", "stopped")
        took = time.monotonic() - started
        said = follower.communicate(timeout=patient(10))[0]
    assert said == "begin\nhook\nend\n"
    assert 2 <= took < 15


def test_probes_set_readiness_and_restart_containers(space: Space) -> None:
    def probe(file: str, **more: object) -> dict[str, Any]:
        return {"exec": {"command": ["test", "-f", file]}, "periodSeconds": 1, "failureThreshold": 1, **more}

    space.where.apply(
        pod(
            "probed",
            shell(
                "touch /tmp/alive; sleep 600",
                readinessProbe=probe("/tmp/ready"),
                livenessProbe=probe("/tmp/alive", initialDelaySeconds=2),
            ),
        )
    )

    def status(field: str) -> str:
        return space.run("get", "pod", "probed", "-o", f"jsonpath={{.status.containerStatuses[0].{field}}}")

    until("the container", lambda: status("started") == "true", 20)
    assert status("ready") == "false"
    space.run("exec", "probed", "--", "touch", "/tmp/ready")
    space.ready("probed")
    space.run("exec", "probed", "--", "rm", "/tmp/alive")
    until("the restart that a failed liveness probe causes", lambda: status("restartCount") == "1", 20)


def test_network_policies_are_enforced(space: Space) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "guarded", "namespace": SPACE},
        "spec": {"selector": {"app": "guarded"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    space.where.apply(
        service,
        pod("guarded", shell("echo hello > /tmp/index.html; httpd -p 8080 -h /tmp; httpd -f -p 9090 -h /tmp")),
        pod("friend", shell("sleep 600")),
        pod("stranger", shell("sleep 600")),
    )
    for name in ("guarded", "friend", "stranger"):
        space.ready(name)
    address = space.run("get", "pod", "guarded", "-o", "jsonpath={.status.podIP}")

    def gets(who: str, url: str) -> bool:
        done = space.run("exec", who, "--", "sh", "-c", f"timeout 1 wget -q -O - {url} 2>&1 || echo refused")
        return done == "hello\n"

    def policy(name: str, spec: dict[str, Any]) -> None:
        metadata = {"name": name, "namespace": SPACE}
        space.where.apply(
            {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}
        )

    direct, second = f"http://{address}:8080", f"http://{address}:9090"
    named = "http://guarded.try.svc.cluster.local"
    for who in ("friend", "stranger"):  # without a policy all clients get through
        for url in (direct, second, named):
            until(f"{who} to get {url}", lambda who=who, url=url: gets(who, url), 10)  # type: ignore[misc]

    policy("closed", {"podSelector": {"matchLabels": {"app": "guarded"}}, "policyTypes": ["Ingress"]})
    until("the policy to refuse all clients", lambda: not any(gets(who, direct) for who in ("friend", "stranger")), 20)
    friends = [{"podSelector": {"matchLabels": {"app": "friend"}}}]
    policy(
        "friends",
        {
            "podSelector": {"matchLabels": {"app": "guarded"}},
            "ingress": [{"from": friends, "ports": [{"protocol": "TCP", "port": 8080}]}],
        },
    )
    until("the policy to admit friends", lambda: gets("friend", direct), 20)
    assert gets("friend", named)
    assert not gets("friend", second), "the policy does not have this port"
    assert not gets("stranger", direct)
    assert not gets("stranger", named)

    policy("silent", {"podSelector": {"matchLabels": {"app": "friend"}}, "policyTypes": ["Egress"]})
    until("the policy to stop the friend's traffic", lambda: not gets("friend", direct), 20)
    dns = [{"to": [{"namespaceSelector": {}}], "ports": [{"protocol": "UDP", "port": 53}]}]
    guarded = [{"to": [{"podSelector": {"matchLabels": {"app": "guarded"}}}]}]
    policy("may-speak", {"podSelector": {"matchLabels": {"app": "friend"}}, "egress": dns + guarded})
    until("the policy to let the friend call by name", lambda: gets("friend", named), 20)


def test_nativelink_serves_and_refuses_a_bad_configuration(space: Space, tmp_path: Path) -> None:
    config = """// JSON5, as NativeLink reads it
    {stores: [{name: "A", memory: {}}], servers: [
      {name: "health", listener: {http: {socket_address: "0.0.0.0:50080"}}, services: {health: {}}}]}"""
    space.where.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "config", "namespace": SPACE},
            "data": {
                "good.json5": config,
                "bad.json5": config.replace("{stores", "{stroes: 1, stores"),
            },
        }
    )

    def nativelink(name: str, file: str) -> dict[str, Any]:
        container = {
            "name": "main",
            "image": f"{images.NATIVELINK}:v1.6.6",
            "args": [f"/etc/nativelink/{file}"],
            "volumeMounts": [{"name": "config", "mountPath": "/etc/nativelink"}],
            "readinessProbe": {"httpGet": {"path": "/status", "port": 50080}, "periodSeconds": 1},
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "readOnlyRootFilesystem": True,
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        }
        volumes = [{"name": "config", "configMap": {"name": "config"}}]
        return pod(name, container, volumes=volumes, restartPolicy="Never", terminationGracePeriodSeconds=30)

    space.where.apply(nativelink("good", "good.json5"), nativelink("bad", "bad.json5"))
    space.ready("good")
    space.run("wait", "--for=jsonpath={.status.phase}=Failed", "pod/bad", f"--timeout={patient(40)}s")
    assert "stroes" in space.run("logs", "bad")
    started = time.monotonic()
    space.run("delete", "pod", "good")
    assert time.monotonic() - started < 10, "NativeLink should end soon after SIGTERM, whatever the grace period is"


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
        programs = ("kubelet", "kube-proxy", "containerd", "crane", "/pause", "/coredns")
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
        where.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}})
        until("a namespace", lambda: bool(where.run("-n", SPACE, "get", "sa", "default", "--ignore-not-found")), 10)
        space = Space(where)
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
