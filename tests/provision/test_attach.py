"""Real shells run the script of role low_latency on a fake node, with its kernel, mounts and bpftool."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed import bpf
from testbed.waiting import until

SCRIPT = Path(__file__).parents[2] / "roles/low_latency/files/attach.sh"
SHELLS = ("dash", "bash")

# This bpftool records its arguments, and keeps the state of the kernel: pinned programs as files, and attached ones.
BPFTOOL = """#!/bin/sh
echo "$*" >> "$NODE_FOLDER/told"
case "$1 $2" in
  "prog load") [ -z "$CANNOT_LOAD" ] || { printf '%s\\n' "$CANNOT_LOAD" >&2; exit 255; }; echo "$POD" > "$4" ;;
  "cgroup attach") cat "$6" >> "$NODE_FOLDER/attached" ;;
  "cgroup detach") grep -vxF "$(cat "$6")" "$NODE_FOLDER/attached" > "$NODE_FOLDER/rest"
    mv "$NODE_FOLDER/rest" "$NODE_FOLDER/attached" ;;
esac
"""


@dataclass
class Node:
    """A node's folders, and the pods on it: ``start("pod-a")`` runs the script in one."""

    folder: Path
    shell: str

    def __post_init__(self) -> None:
        self.cgroup, self.bpf = self.folder / "cgroup", self.folder / "bpf"
        self.pins = self.bpf / "nativelink-low-latency"
        self.pods: list[subprocess.Popen[bytes]] = []
        for path in (self.cgroup / "unified", self.bpf, self.folder / "bin"):
            path.mkdir(parents=True)
        (self.folder / "attached").touch()
        self.program("bpftool", BPFTOOL)
        self.kernel("6.1.0")
        self.types({self.cgroup: "cgroup2fs", self.bpf: "bpf_fs"})

    def program(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def kernel(self, release: str) -> None:
        self.program("uname", f"#!/bin/sh\necho {release}\n")

    def types(self, found: dict[Path, str]) -> None:
        """Set what ``stat -f -c %T`` prints for these folders. For all others it prints tmpfs."""
        cases = "".join(f"  {path}) echo {kind} ;;\n" for path, kind in found.items())
        self.program("stat", f'#!/bin/sh\ncase "$4" in\n{cases}  *) echo tmpfs ;;\nesac\n')

    def start(self, pod: str, **environment: str) -> subprocess.Popen[bytes]:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        variables = {"PATH": path, "NODE": "node-1", "POD": pod, "NODE_FOLDER": str(self.folder), "CANNOT_LOAD": ""}
        command = [str(shutil.which(self.shell)), str(SCRIPT), str(self.cgroup), str(self.pins)]
        with self.log(pod).open("w") as log:
            self.pods.append(
                subprocess.Popen(command, env=variables | environment, stdout=log, stderr=log, start_new_session=True)
            )
        return self.pods[-1]

    def log(self, pod: str) -> Path:
        return self.folder / f"{pod}.log"

    def says(self, pod: str, line: str) -> None:
        until(f"{pod} to say {line!r}", lambda: self.log(pod).read_text() == f"node-1: {line}\n", 5)

    @property
    def told(self) -> list[str]:
        return (self.folder / "told").read_text().splitlines() if (self.folder / "told").exists() else []

    @property
    def attached(self) -> list[str]:
        return (self.folder / "attached").read_text().split()

    @property
    def pinned(self) -> list[str]:
        return sorted(path.name for path in self.pins.iterdir()) if self.pins.exists() else []


@pytest.fixture(params=SHELLS)
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path, request.param)
    yield node
    for pod in node.pods:
        os.killpg(pod.pid, signal.SIGKILL)  # with its children, which on a real node end with the container
        pod.wait()


def ended(pod: subprocess.Popen[bytes]) -> int:
    pod.terminate()
    return pod.wait(timeout=5)


def test_the_committed_program_is_what_its_source_compiles_to() -> None:
    assert bpf.compiled() == bpf.OBJECT.read_bytes()


def test_the_script_attaches_and_detaches(node: Node) -> None:
    pod = node.start("pod-a")
    node.says("pod-a", "attached")
    assert (node.pinned, node.attached) == (["pod-a"], ["pod-a"])
    assert node.told == [
        f"prog load {SCRIPT.parent}/tcp_nodelay.o {node.pins}/pod-a",
        f"cgroup attach {node.cgroup} sock_ops pinned {node.pins}/pod-a multi",
    ]
    assert ended(pod) == 0
    assert node.attached == []
    assert node.told[2:] == [f"cgroup detach {node.cgroup} sock_ops pinned {node.pins}/pod-a"]
    assert not node.pins.exists()


def test_in_the_hybrid_layout_the_script_uses_the_root_of_version_2(node: Node) -> None:
    node.types({node.cgroup / "unified": "cgroup2fs", node.bpf: "bpf_fs"})
    node.start("pod-a")
    node.says("pod-a", "attached")
    assert f"cgroup attach {node.cgroup}/unified sock_ops pinned {node.pins}/pod-a multi" in node.told


@pytest.mark.parametrize("release", ["6.1.0-28-cloud-amd64", "6.18.44", "10.0.1"])
def test_kernels_that_are_new_enough(node: Node, release: str) -> None:
    node.kernel(release)
    node.start("pod-a")
    node.says("pod-a", "attached")


@pytest.mark.parametrize("release", ["5.15.0-1073-azure", "6.0.19", "6.0-rc1", "4.18.0-553.el8"])
def test_a_kernel_that_is_too_old(node: Node, release: str) -> None:
    node.kernel(release)
    refused(node, f"the kernel is {release}, and 6.1 or newer is needed")


def test_a_node_without_cgroup_v2(node: Node) -> None:
    node.types({node.bpf: "bpf_fs"})
    refused(node, "/sys/fs/cgroup has no cgroup v2")


def test_a_node_without_a_bpf_file_system(node: Node) -> None:
    node.types({node.cgroup: "cgroup2fs"})
    refused(node, "/sys/fs/bpf is not a BPF file system")


def test_a_kernel_that_refuses_the_program(node: Node) -> None:
    said = "libbpf: load failed: Operation not permitted\nError: failed to load object file"
    refused(node, f"bpftool says: {said.replace(chr(10), ' ')} ", CANNOT_LOAD=said)


def refused(node: Node, why: str, **environment: str) -> None:
    """Check that the script reports this on one line, keeps running, changes nothing, and ends on SIGTERM."""
    pod = node.start("pod-a", **environment)
    node.says("pod-a", f"not attached: {why}")
    assert pod.poll() is None
    assert (node.pinned, node.attached) == ([], [])
    assert not any("attach" in line for line in node.told)
    assert ended(pod) == 0


def test_a_container_that_was_killed_is_followed_by_one_attachment(node: Node) -> None:
    first = node.start("pod-a")
    node.says("pod-a", "attached")
    first.kill()
    first.wait()
    assert (node.pinned, node.attached) == (["pod-a"], ["pod-a"])
    node.start("pod-a")
    node.says("pod-a", "attached")
    assert (node.pinned, node.attached) == (["pod-a"], ["pod-a"])
    assert [line.split()[1] for line in node.told] == ["load", "attach", "detach", "load", "attach"]


def test_a_pod_that_ends_late_leaves_its_successor_alone(node: Node) -> None:
    """Two pods run for a while, as after a forced deletion."""
    old = node.start("pod-a")
    node.says("pod-a", "attached")
    new = node.start("pod-b")
    node.says("pod-b", "attached")
    assert (node.pinned, node.attached) == (["pod-b"], ["pod-b"])
    assert ended(old) == 0
    assert (node.pinned, node.attached) == (["pod-b"], ["pod-b"])
    assert ended(new) == 0
    assert node.attached == []


def test_programs_of_others_stay(node: Node) -> None:
    (node.folder / "attached").write_text("theirs\n")
    pod = node.start("pod-a")
    node.says("pod-a", "attached")
    assert node.attached == ["theirs", "pod-a"]
    ended(pod)
    assert node.attached == ["theirs"]
