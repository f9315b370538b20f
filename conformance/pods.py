"""Pods without a cluster.

Each pod is a process with its own network and file system. All paths and ports are as in the manifests, and names lead
to other pods. The pods need a network and a mount namespace, which ``__main__`` makes before. They end with those.
"""

import contextlib
import ipaddress
import itertools
import os
import shutil
import signal
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.x509 import DNSName

from conformance import namespaces
from conformance.workloads import NATIVELINK, Workload
from testbed import components
from testbed.waiting import ClusterError, patient, until
from testkit.authority import Authority
from testkit.subject import SCHEMA, Subject
from testkit.trees import Object

_SCRIPT = Path(__file__).with_name("pod.sh")
MACHINE = ipaddress.IPv4Address("10.77.0.1")  # the address of this process
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_HEALTH = 50080
_STACK = "/opt/redis-stack"
_LIBRARIES = f"{_STACK}/libraries"
_NAMES = ("*.nativelink-cas-headless.{}.svc", "nativelink-scheduler-workers.{}.svc")  # in certificates


def _ip(*lines: str, enter: tuple[str, ...] = ()) -> None:
    command = [*enter, "ip", "-batch", "-"]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"ip: {done.stderr.strip()} in\n" + "\n".join(lines))


class Network:
    """A bridge that connects this process and all pods, which have programs by their paths."""

    def __init__(self, folder: Path, programs: Mapping[str, Path]) -> None:
        """Make the bridge in this process' own namespace. ``folder`` gets the folders of the pods."""
        self.folder, self.programs = folder, programs
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)  # `ip netns` keeps its names there
        _ip("link set dev lo up", "link add name pods type bridge", f"address add {MACHINE}/16 dev pods")
        _ip("link set dev pods up")

    def attach(self) -> tuple[str, str]:
        """Make a network namespace on the bridge. Return its name and its address."""
        with self._lock:
            number = next(self._numbers)
            name, address = f"pod{number}", str(MACHINE + number)
            _ip(
                f"netns add {name}",
                f"link add name {name} type veth peer name eth0 netns {name}",
                f"link set dev {name} master pods",
                f"link set dev {name} up",
            )
            inside = ("link set dev lo up", f"address add {address}/16 dev eth0", "link set dev eth0 up")
            _ip(*inside, enter=entering(name))
        return name, address

    def detach(self, name: str) -> None:
        """Remove a namespace that ``attach`` made."""
        with self._lock:
            _ip(f"link delete dev {name}", f"netns delete {name}")


def entering(network: str) -> tuple[str, ...]:
    """Return the words that run a command in a network namespace that ``Network`` made."""
    return "nsenter", f"--net=/run/netns/{network}"


@dataclass(frozen=True)
class Trust:
    """The CA whose certificate a pod with mutual TLS shows, and the CAs whose certificates it accepts."""

    issuer: Authority
    accepted: tuple[Authority, ...]

    def write(self, volume: Path, namespace: str, mode: int, group: int) -> None:
        """Make a certificate for a pod of a namespace, and write the files of the Secret as a kubelet does."""
        certificate, key = self.issuer.issue("pod", *(DNSName(name.format(namespace)) for name in _NAMES))
        authorities = b"".join(each.pem for each in self.accepted)
        shutil.rmtree(volume, ignore_errors=True)
        (volume / "..data").mkdir(parents=True)
        for name, text in {"tls.crt": certificate, "tls.key": key, "ca.crt": authorities}.items():
            path = volume / "..data" / name
            path.write_bytes(text)
            path.chmod(mode)
            if namespaces.has_users():
                os.chown(path, -1, group)
            (volume / name).symlink_to(f"..data/{name}")


FIRST = Authority("first")
TRUST = Trust(FIRST, (FIRST,))
"""What pods have unless they are given something else."""


@dataclass
class Pod:
    """A pod, which can be started, ended, and started again with the same address and volumes.

    ``extra`` maps more paths in the pod to files or folders of this machine, and ``environment`` replaces variables.
    Whenever it starts, a pod gets what ``change`` makes of its NativeLink configuration, and the certificates of
    ``trust`` if its tree has mutual TLS.
    """

    network: Network
    name: str
    workload: Workload
    extra: Mapping[str, Path] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    trust: Trust = TRUST
    change: Callable[[str], str] = str

    def __post_init__(self) -> None:
        """Make the pod's network."""
        self.namespace, self.address = self.network.attach()
        self.folder = self.network.folder / f"{self.namespace}-{self.name}"
        (self.folder / "etc").mkdir(parents=True)
        (self.folder / "root").mkdir()
        self.log = self.folder / "log"
        self.enter = entering(self.namespace)
        self._claimed: list[str] = []

    def hosts(self, lines: Iterable[str]) -> None:
        """Set the names that the pod resolves, as lines of /etc/hosts."""
        (self.folder / "etc" / "hosts").write_text("".join(f"{each}\n" for each in ("127.0.0.1 localhost", *lines)))
        (self.folder / "etc" / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")

    def claim(self, addresses: Iterable[str]) -> None:
        """Give the pod more addresses, which other pods do not reach."""
        self._claimed = list(addresses)
        lengths = {address: "128 nodad" if ":" in address else "32" for address in self._claimed}
        _ip(*(f"address add {address}/{length} dev lo" for address, length in lengths.items()), enter=self.enter)

    @property
    def _variables(self) -> dict[str, str]:
        """The environment of the pod's processes."""
        addresses = ",".join([self.address, "127.0.0.1", *self._claimed])
        machine = {"PATH": _PATH, "HOSTNAME": self.name, "LD_LIBRARY_PATH": _LIBRARIES}
        stated = {**machine, **self.workload.environment, **self.environment}
        return {
            name: value.replace("$POD_NAME", self.name).replace("$POD_IPS", addresses) for name, value in stated.items()
        }

    def start(self, command: Iterable[str] = ()) -> None:
        """Start the pod's command, or another one."""
        for volume, files in self.workload.configuration.items():
            for name, text in files.items():
                path = self.folder / "volumes" / volume / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(text, str):
                    text = (self.change(text) if name.endswith(".json5") else text).encode()
                path.write_bytes(text)
                path.chmod(0o555)
        mounts: list[str] = []
        for mount in self.workload.mounts:
            volume = self.folder / "volumes" / mount["name"] / mount.get("subPath", "")
            volume.mkdir(parents=True, exist_ok=True)
            mode = self.workload.secrets.get(mount["name"])
            if mode is not None:
                self.trust.write(volume, self.workload.namespace, mode, self.workload.user)
            elif not self.process and mount["name"] not in self.workload.configuration:
                volume.chmod(0o777)  # as an emptyDir
            # Without other users the machine may forbid it.
            read_only = mode is not None and namespaces.has_users()
            mounts += [str(volume), mount["mountPath"], "ro" if read_only else "rw"]
        for path, source in {**self.network.programs, **self.extra}.items():
            mounts += [str(source), path, "rw"]
        enter = [*self.enter, "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        enter += ["sh", str(_SCRIPT), self._privileges]
        folders = [str(self.folder / "root"), str(self.folder / "etc")]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*enter, *folders, *mounts, "--", *(command or self.workload.command)],
                env=self._variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def _privileges(self) -> str:
        """The command that gives up privileges as the pod's security context says; "" for the machine's user."""
        if not self.workload.component.startswith("worker"):
            return ""
        kept = [f"+{name.lower()}" for name in self.workload.capabilities]
        words = ["setpriv", "--no-new-privs", "--inh-caps=-all", f"--bounding-set={','.join(['-all', *kept])}"]
        if self.workload.user and namespaces.has_users():
            words += [f"--reuid={self.workload.user}", f"--regid={self.workload.user}", "--clear-groups"]
        return " ".join(words)

    @property
    def _first(self) -> int:
        """The number of the pod's first process. Its parent made the namespaces, and is not in all of them."""
        assert self.process
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        until(f"{self.name} to run", lambda: bool(children.read_text()), 10)
        return int(children.read_text())

    def await_ready(self, seconds: float = 60) -> None:
        """Wait until the pod has started, listens and is healthy. ClusterError if that takes too long."""
        until(f"{self.name} to be ready", self._ready, seconds, self.said)

    def _ready(self) -> bool:
        assert self.process, f"{self.name} was not started"
        if (status := self.process.poll()) is not None:
            raise PodEnded(f"{self.name} ended with {status}:{self.said()}")
        if self.workload.started:
            self.run(*self.workload.started)
        for port in self.workload.ports:
            socket.create_connection((self.address, port), timeout=5).close()
        if _HEALTH in self.workload.ports:
            urllib.request.urlopen(f"http://{self.address}:{_HEALTH}/status", timeout=10).close()
        return True

    def said(self, lines: int = 4) -> str:
        """Return the end of the pod's log, and its name."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n" + "\n".join([*text.splitlines()[-lines:], f"({self.log})"])

    def run(self, *words: str, seconds: float = 60) -> str:
        """Run a command in the pod, and return its output. ClusterError if it fails or takes too long."""
        enter = ["nsenter", f"--target={self._first}", "--mount", "--net", "--pid", "--root", "--wd=/"]
        command = [*enter, *self._privileges.split(), *words]
        settings = {"capture_output": True, "text": True, "env": self._variables}
        try:
            done = subprocess.run(command, timeout=patient(seconds), check=False, **settings)  # type: ignore[call-overload]
        except subprocess.TimeoutExpired:
            raise ClusterError(f"{' '.join(words)} in {self.name} took longer than {seconds:.0f} s") from None
        if done.returncode:
            raise ClusterError(f"{' '.join(words)} in {self.name} failed: {done.stderr[-500:]}{done.stdout[-500:]}")
        return done.stdout

    def has_ended(self) -> bool:
        """Return True if the pod's process ended by itself, or was never started."""
        return not self.process or self.process.poll() is not None

    def terminate(self) -> None:
        """Send SIGTERM, and wait until the pod ends. ClusterError if it does not."""
        assert self.process
        os.kill(self._first, signal.SIGTERM)
        try:
            self.process.wait(patient(20))
        except subprocess.TimeoutExpired:
            raise ClusterError(f"{self.name} still ran 20 s after SIGTERM") from None
        finally:
            self.kill()

    def read_only(self, path: str) -> None:
        """Let a mount refuse writes from now on, as a kernel does whose disk fails."""
        words = ["nsenter", f"--target={self._first}", "--mount", "--root", "--wd=/"]
        subprocess.run([*words, "mount", "-o", "remount,bind,ro", path], check=True)

    def freeze(self) -> None:
        """Stop the pod and everything that it started, until it is killed."""
        assert self.process
        os.killpg(self.process.pid, signal.SIGSTOP)

    def kill(self) -> None:
        """Kill the pod and everything that it started."""
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def remove(self) -> None:
        """Kill the pod and remove its network. Its folder stays."""
        self.kill()
        self.network.detach(self.namespace)


class PodEnded(Exception):
    """A pod's process ended by itself. Waiting longer does not help."""


def hosts(services: Iterable[Object], pods: Iterable[Pod], client: Pod, turn: int) -> list[str]:
    """Return the names of the tree's Services for one pod, as lines of /etc/hosts.

    Each Service name leads to one of the Service's pods, chosen by ``turn``. kube-proxy chooses one per connection.
    """
    lines = []
    for service in services:
        name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
        selector = service["spec"].get("selector", {})
        near = [pod for pod in pods if pod.workload.namespace == namespace]
        behind = [pod for pod in near if selector.items() <= pod.workload.labels.items()]
        found = {"": behind[turn % len(behind)].address} if behind else {}
        if service["spec"].get("clusterIP") == "None":
            found |= {f"{pod.name}.": pod.address for pod in behind}
        for prefix, address in found.items():
            full = f"{prefix}{name}.{namespace}"
            names = [full, f"{full}.svc", f"{full}.svc.cluster.local"]
            if client.workload.namespace == namespace:
                names.append(f"{prefix}{name}")
            lines.append(f"{address} {' '.join(names)}")
    return lines


def nativelink(subject: Subject) -> dict[str, Path]:
    """Return NativeLink by its paths in a pod: the entrypoint of its image, and where init containers copy it to."""
    files = {suffix: Path(subject.binary + suffix) for suffix in ("", SCHEMA)}
    places = (NATIVELINK, "/shared/nativelink")
    return {place + suffix: file for place in places for suffix, file in files.items() if file.exists()}


def redis(folder: Path) -> dict[str, Path]:
    """Copy Redis and its search module into a folder, so that they work on any machine. Return its path in pods."""
    image = components.redis_stack()
    for target, source in image.files.items():
        inside = Path(target).is_relative_to(_STACK)
        name = str(Path(target).relative_to(_STACK)) if inside else f"libraries/{Path(target).name}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / name)
    for target, points_to in image.links.items():
        (folder / "libraries" / Path(target).name).symlink_to(points_to)
    return {_STACK: folder}
