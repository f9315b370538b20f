"""Real shells run the script of role node_agent on a fake node, with its kernel, mounts and bpftool."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed import clang
from testbed.waiting import patient, until

SCRIPT = Path(__file__).parents[2] / "roles/node_agent/files/attach.sh"
# These tests run each line of the script, which has to work in any shell. The others have dash.
EACH_SHELL = pytest.mark.parametrize("node", ["dash", "bash"], indirect=True)

# This bpftool records its arguments, and keeps the state of the kernel: pinned programs as files, and attached ones.
# A program is named like "connect4 of pod-a", and followed by a number in all containers but a pod's first.
BPFTOOL = """#!/bin/sh
echo "$*" >> "$NODE_FOLDER/told"
case "$1 $2" in
  "prog loadall")
    case "$3" in
      *"/$CANNOT_LOAD.o") printf '%s\\n' "libbpf: Operation not permitted" "Error: failed" >&2; exit 255 ;;
    esac
    mkdir "$4"
    case "$3" in */guard.o) names="connect4 connect6" ;; *) names=sock_ops ;; esac
    for name in $names; do echo "$name of $POD$RUN" > "$4/nl_$name"; done ;;
  "cgroup attach")
    [ "$4" != "$CANNOT_ATTACH" ] || { echo "Error: failed to attach program" >&2; exit 255; }
    cat "$6" >> "$NODE_FOLDER/attached" ;;
  "cgroup detach")
    grep -vxF "$(cat "$6")" "$NODE_FOLDER/attached" > "$NODE_FOLDER/rest"
    mv "$NODE_FOLDER/rest" "$NODE_FOLDER/attached" ;;
esac
"""
BOTH = ("guard", "low_latency")
TYPES = {"cgroup": "cgroup2fs", "bpf": "bpf_fs"}


@dataclass
class Node:
    """A node's folders, and the pods on it: ``start("pod-a")`` runs the script in one."""

    folder: Path
    shell: str

    def __post_init__(self) -> None:
        self.cgroup, self.bpf = self.folder / "cgroup", self.folder / "bpf"
        self.pins = self.bpf / "nativelink-node-agent"
        self.pods: list[subprocess.Popen[bytes]] = []
        for path in (self.cgroup / "unified", self.bpf, self.folder / "bin"):
            path.mkdir(parents=True)
        (self.folder / "attached").touch()
        self.program("bpftool", BPFTOOL)
        self.kernel("6.1.0")
        self.types({self.cgroup: TYPES["cgroup"], self.bpf: TYPES["bpf"]})

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

    def start(self, pod: str, *programs: str, **environment: str) -> subprocess.Popen[bytes]:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        variables = {"PATH": path, "NODE": "node-1", "POD": pod, "NODE_FOLDER": str(self.folder), "RUN": ""}
        variables |= {"CANNOT_LOAD": "", "CANNOT_ATTACH": ""}
        command = [str(shutil.which(self.shell)), str(SCRIPT), str(self.cgroup), str(self.pins), str(self.ready(pod))]
        with self.log(pod).open("w") as log:
            self.pods.append(
                subprocess.Popen(
                    [*command, *programs], env=variables | environment, stdout=log, stderr=log, start_new_session=True
                )
            )
        return self.pods[-1]

    def ready(self, pod: str) -> Path:
        return self.folder / f"{pod}.ready"

    def log(self, pod: str) -> Path:
        return self.folder / f"{pod}.log"

    def says(self, pod: str, line: str) -> None:
        until(f"{pod} to say {line!r}", lambda: self.log(pod).read_text() == f"node-1: {line}\n", 5)

    @property
    def told(self) -> list[str]:
        return (self.folder / "told").read_text().splitlines() if (self.folder / "told").exists() else []

    @property
    def attached(self) -> list[str]:
        return (self.folder / "attached").read_text().splitlines()

    @property
    def pinned(self) -> list[str]:
        return sorted(path.read_text().strip() for path in self.pins.glob("*/*/*"))


@pytest.fixture
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path, getattr(request, "param", "dash"))
    yield node
    for pod in node.pods:
        os.killpg(pod.pid, signal.SIGKILL)  # with its children, which on a real node end with the container
        pod.wait()


def ended(pod: subprocess.Popen[bytes]) -> int:
    pod.terminate()
    return pod.wait(timeout=patient(5))


def killed(pod: subprocess.Popen[bytes]) -> None:
    pod.kill()
    pod.wait()


def attached(node: Node, pod: str, *programs: str, **environment: str) -> subprocess.Popen[bytes]:
    """Start a pod, and wait until it has attached its programs."""
    process = node.start(pod, *programs, **environment)
    node.says(pod, f"attached: {' '.join(programs)}")
    return process


def guard(pod: str) -> list[str]:
    return [f"connect4 of {pod}", f"connect6 of {pod}"]


@pytest.mark.parametrize("name", BOTH)
def test_the_committed_programs_are_what_their_sources_compile_to(name: str) -> None:
    source = SCRIPT.parent / f"{name}.c"
    assert source in clang.BPF
    assert clang.bpf(source) == source.with_suffix(".o").read_bytes()


@EACH_SHELL
@pytest.mark.parametrize("release", ["6.1.0-28-cloud-amd64", "10.0.1"])
def test_the_script_attaches_the_programs_and_leaves_them_at_its_end(node: Node, release: str) -> None:
    node.kernel(release)
    pod = attached(node, "pod-a", *BOTH)
    assert node.ready("pod-a").exists()
    (pins,) = node.pins.iterdir()
    assert node.told == [
        f"prog loadall {SCRIPT.parent}/guard.o {pins}/guard",
        f"cgroup attach {node.cgroup} connect4 pinned {pins}/guard/nl_connect4 multi",
        f"cgroup attach {node.cgroup} connect6 pinned {pins}/guard/nl_connect6 multi",
        f"prog loadall {SCRIPT.parent}/low_latency.o {pins}/low_latency",
        f"cgroup attach {node.cgroup} sock_ops pinned {pins}/low_latency/nl_sock_ops multi",
    ]
    assert ended(pod) == 0
    assert node.attached == node.pinned == [*guard("pod-a"), "sock_ops of pod-a"]


@EACH_SHELL
def test_a_successor_attaches_its_programs_before_it_detaches_the_others(node: Node) -> None:
    ended(attached(node, "pod-a", *BOTH))
    attached(node, "pod-b", *BOTH)
    assert node.attached == node.pinned == [*guard("pod-b"), "sock_ops of pod-b"]
    told = [" ".join(line.split()[1:4:2]) for line in node.told if line.startswith("cgroup")][3:]
    guards = ["attach connect4", "attach connect6", "detach connect4", "detach connect6"]
    assert told == [*guards, "attach sock_ops", "detach sock_ops"]
    assert len([*node.pins.iterdir()]) == 1


@EACH_SHELL
def test_programs_that_are_not_wanted_any_more_are_detached(node: Node) -> None:
    ended(attached(node, "pod-a", *BOTH))
    ended(attached(node, "pod-b", "guard"))
    assert node.attached == node.pinned == guard("pod-b")
    ended(attached(node, "pod-c", "low_latency"))
    assert node.attached == node.pinned == ["sock_ops of pod-c"]
    node.start("pod-d")
    node.says("pod-d", "detached")
    assert node.ready("pod-d").exists()
    assert node.attached == []
    assert not node.pins.exists()


@EACH_SHELL
def test_in_the_hybrid_layout_the_script_uses_the_root_of_version_2(node: Node) -> None:
    node.types({node.cgroup / "unified": "cgroup2fs", node.bpf: "bpf_fs"})
    attached(node, "pod-a", "low_latency")
    assert node.told[-1].startswith(f"cgroup attach {node.cgroup}/unified sock_ops pinned {node.pins}/pod-a-")


@pytest.mark.parametrize("release", ["5.15.0-1073-azure", "6.0.19", "6.0-rc1", "5.8.0"])
def test_a_kernel_that_is_too_old_for_low_latency_has_the_guard(node: Node, release: str) -> None:
    node.kernel(release)
    node.start("pod-a", *BOTH)
    node.says("pod-a", f"not attached: low_latency: the kernel is {release}, and 6.1 or newer is needed")
    assert node.attached == guard("pod-a")
    assert not node.ready("pod-a").exists()
    attached(node, "pod-b", "guard")
    assert node.attached == node.pinned == guard("pod-b")


OLD = "the kernel is 4.18.0-553.el8, and"


@EACH_SHELL
@pytest.mark.parametrize(
    ("kernel", "types", "why"),
    [
        (
            *("4.18.0-553.el8", TYPES),
            f"guard: {OLD} 5.8 or newer is needed; low_latency: {OLD} 6.1 or newer is needed",
        ),
        ("6.1.0", {"bpf": "bpf_fs"}, "/sys/fs/cgroup has no cgroup v2"),
        ("6.1.0", {"cgroup": "cgroup2fs"}, "/sys/fs/bpf is not a BPF file system"),
    ],
)
def test_a_node_that_lacks_something(node: Node, kernel: str, types: dict[str, str], why: str) -> None:
    """The script reports this on one line, keeps running, changes nothing, and ends on SIGTERM."""
    node.kernel(kernel)
    node.types({node.folder / name: kind for name, kind in types.items()})
    pod = node.start("pod-a", *BOTH)
    node.says("pod-a", f"not attached: {why}")
    assert pod.poll() is None
    assert (node.pinned, node.attached, node.told) == ([], [], [])
    assert not node.ready("pod-a").exists()
    assert ended(pod) == 0
    if "bpf" not in types:
        node.start("pod-b")
        node.says("pod-b", f"not detached: {why}")


def test_a_kernel_that_refuses_a_program(node: Node) -> None:
    said = "libbpf: Operation not permitted Error: failed "
    node.start("pod-a", *BOTH, CANNOT_LOAD="guard")
    node.says("pod-a", f"not attached: guard: bpftool says: {said}")
    assert node.attached == node.pinned == ["sock_ops of pod-a"]
    assert not node.ready("pod-a").exists()


@EACH_SHELL
def test_half_a_guard_is_detached_and_the_predecessors_stays(node: Node) -> None:
    ended(attached(node, "pod-a", "guard"))
    node.start("pod-b", "guard", CANNOT_ATTACH="connect6")
    node.says("pod-b", "not attached: guard: bpftool says: Error: failed to attach program ")
    assert node.attached == node.pinned == guard("pod-a")


def test_a_container_that_fails_after_one_that_did_not_is_not_ready(node: Node) -> None:
    killed(attached(node, "pod-a", "guard"))
    node.start("pod-a", "guard", CANNOT_LOAD="guard")
    node.says("pod-a", "not attached: guard: bpftool says: libbpf: Operation not permitted Error: failed ")
    assert not node.ready("pod-a").exists()
    assert node.attached == guard("pod-a")


def test_a_container_that_was_killed_while_it_began_is_cleaned_up(node: Node) -> None:
    """It had pinned its programs and attached none."""
    left = node.pins / "pod-a-AbCdEf" / "guard"
    left.mkdir(parents=True)
    (left / "nl_connect4").write_text("connect4 of pod-a\n")
    attached(node, "pod-b", "guard")
    assert node.attached == node.pinned == guard("pod-b")
    assert not left.parent.exists()
