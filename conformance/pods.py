"""Pods without a cluster.

Each pod is a process with its own network and file system. All paths and ports are as in the manifests, and names lead
to other pods. The pods need a network and a mount namespace, which ``__main__`` makes before. They end with those.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import os
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from conformance import namespaces
from conformance.certificates import TRUST, Trust
from conformance.tools import STACK, Tools
from conformance.workloads import COLLECTOR, NATIVELINK, Service, Workload
from testbed.waiting import ClusterError, until
from testkit.subject import SCHEMA, Subject

_SCRIPT = Path(__file__).with_name("pod.sh")
_FIRST = ipaddress.IPv4Address("10.77.0.1")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_HEALTH = 50080


def _ip(*lines: str, enter: tuple[str, ...] = ()) -> None:
    command = [*enter, "ip", "-batch", "-"]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"ip: {done.stderr.strip()} in\n" + "\n".join(lines))


class Network:
    """A bridge that connects this process and all pods."""

    def __init__(self, folder: Path) -> None:
        """Make the bridge in this process' own namespace. ``folder`` gets the folders of the pods."""
        self.folder = folder
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)  # `ip netns` keeps its names there
        _ip("link set dev lo up", "link add name pods type bridge", f"address add {_FIRST}/16 dev pods")
        _ip("link set dev pods up")

    def attach(self) -> tuple[str, str]:
        """Make a network namespace on the bridge. Return its name and its address."""
        with self._lock:
            number = next(self._numbers)
            name, address = f"pod{number}", str(_FIRST + number)
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


@dataclass
class Pod:
    """A pod, which can be started, ended, and started again with the same address and volumes.

    ``extra`` maps more paths in the pod to files or folders of this machine. A pod gets the certificates of ``trust``,
    if its tree has mutual TLS, whenever it starts.
    """

    network: Network
    name: str
    workload: Workload
    extra: Mapping[str, Path]
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    trust: Trust = TRUST

    def __post_init__(self) -> None:
        """Make the pod's network and its configuration."""
        self.namespace, self.address = self.network.attach()
        self.folder = self.network.folder / f"{self.namespace}-{self.name}"
        (self.folder / "etc").mkdir(parents=True)
        (self.folder / "root").mkdir()
        self.log = self.folder / "log"
        self.enter = entering(self.namespace)
        self._claimed: list[str] = []
        for volume, files in self.workload.configuration.items():
            for name, text in files.items():
                path = self.folder / "volumes" / volume / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(text if isinstance(text, bytes) else text.encode())
                path.chmod(0o555)

    def configure(self, change: Callable[[str], str]) -> None:
        """Set the NativeLink configuration of the next start to what a function makes of the tree's."""
        for volume, files in self.workload.configuration.items():
            for name, text in files.items():
                if name.endswith(".json5"):
                    (self.folder / "volumes" / volume / name).write_text(change(str(text)))

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
        stated = {"PATH": _PATH, "HOSTNAME": self.name, **self.workload.environment, **self.environment}
        return {
            name: value.replace("$POD_NAME", self.name).replace("$POD_IPS", addresses) for name, value in stated.items()
        }

    def start(self, command: tuple[str, ...] = ()) -> None:
        """Start the pod's command, or another one."""
        mounts: list[str] = []
        for mount in self.workload.mounts:
            volume = self.folder / "volumes" / mount.volume / mount.sub_path
            volume.mkdir(parents=True, exist_ok=True)
            if mount.volume in self.workload.secrets:
                mode = self.workload.secrets[mount.volume]
                self.trust.write(volume, self.workload.namespace, mode, self.workload.user)
            elif not self.process and mount.volume not in self.workload.configuration:
                volume.chmod(0o777)  # as an emptyDir
            # Without other users the machine may forbid it.
            read_only = mount.volume in self.workload.secrets and namespaces.has_users()
            mounts += [str(volume), mount.path, "ro" if read_only else "rw"]
        for path, source in self.extra.items():
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
        if self.workload.started:
            until(f"{self.name} to have started", self._started, seconds, self.said)
        for port in self.workload.ports:
            until(f"{self.name} to listen on {port}", lambda port=port: self._open(port), seconds, self.said)  # type: ignore[misc]
        if _HEALTH in self.workload.ports:
            until(f"{self.name} to be healthy", self.healthy, seconds, self.said)

    def _started(self) -> bool:
        self._check_alive()
        self.run(*self.workload.started)
        return True

    def _open(self, port: int) -> bool:
        self._check_alive()
        with socket.create_connection((self.address, port), timeout=5):
            return True

    def healthy(self) -> bool:
        """Return True if ``/status`` answers with 200."""
        self._check_alive()
        try:
            with urllib.request.urlopen(f"http://{self.address}:{_HEALTH}/status", timeout=10) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError:
            return False

    def _check_alive(self) -> None:
        assert self.process, f"{self.name} was not started"
        if (status := self.process.poll()) is not None:
            raise PodEnded(f"{self.name} ended with {status}:{self.said()}")

    def said(self, lines: int = 4) -> str:
        """Return the end of the pod's log, and its name."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n" + "\n".join([*text.splitlines()[-lines:], f"({self.log})"])

    def command(self, *words: str) -> list[str]:
        """Return the prefix that runs a command in the pod."""
        enter = ["nsenter", f"--target={self._first}", "--mount", "--net", "--pid", "--root", "--wd=/"]
        return [*enter, *self._privileges.split(), *words]

    def run(self, *words: str, seconds: float = 60) -> str:
        """Run a command in the pod, and return its output. ClusterError if it fails or takes too long."""
        try:
            done = subprocess.run(
                self.command(*words), capture_output=True, text=True, timeout=seconds, env=self._variables, check=False
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(f"{' '.join(words)} in {self.name} took longer than {seconds:.0f} s") from None
        if done.returncode:
            raise ClusterError(f"{' '.join(words)} in {self.name} failed: {done.stderr[-500:]}{done.stdout[-500:]}")
        return done.stdout

    def terminate(self, seconds: float = 20) -> None:
        """Send SIGTERM, and wait until the pod ends. ClusterError if it does not."""
        assert self.process
        os.kill(self._first, signal.SIGTERM)
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise ClusterError(f"{self.name} still ran {seconds:.0f} s after SIGTERM") from None
        finally:
            self.kill()

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


def hosts(services: Iterable[Service], pods: Iterable[Pod], client: Pod, turn: int) -> list[str]:
    """Return the names of the tree's Services for one pod, as lines of /etc/hosts.

    Each Service name leads to one of the Service's pods, chosen by ``turn``. kube-proxy chooses one per connection.
    """
    lines = []
    for service in services:
        behind = [
            pod
            for pod in pods
            if pod.workload.namespace == service.namespace and service.selector.items() <= pod.workload.labels.items()
        ]
        if not behind:
            continue
        known = {pod.name: pod.address for pod in behind} if service.headless else {}
        chosen = behind[turn % len(behind)].address
        for prefix, address in {**{f"{name}.": at for name, at in known.items()}, "": chosen}.items():
            full = f"{prefix}{service.name}.{service.namespace}"
            names = [full, f"{full}.svc", f"{full}.svc.cluster.local"]
            if client.workload.namespace == service.namespace:
                names.append(f"{prefix}{service.name}")
            lines.append(f"{address} {' '.join(names)}")
    return lines


def programs(subject: Subject, tools: Tools) -> dict[str, Path]:
    """Return the mounts of NativeLink, Redis and the collector in a pod.

    NativeLink is the entrypoint of its image, and is also at the path that init containers copy it to.
    """
    files = {suffix: Path(subject.binary + suffix) for suffix in ("", SCHEMA)}
    places = (NATIVELINK, "/shared/nativelink")
    found = {place + suffix: file for place in places for suffix, file in files.items() if file.exists()}
    return found | {place: Path(path) for place, path in ((STACK, tools.redis), (COLLECTOR, tools.collector)) if path}
