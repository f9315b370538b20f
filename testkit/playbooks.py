"""Runs ansible-playbook as a user does: every playbook run of the tests and the benchmarks goes through this module."""

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testbed.cluster import Cluster
from testbed.waiting import patient
from testkit import inventories

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
_RECAP = re.compile(r"^(\S+) +: (ok=.*)$", re.MULTILINE)
_FINDINGS = re.compile(r"^\[ERROR\]: .*The inventory has faults:\n(.*?)\nOrigin:", re.MULTILINE | re.DOTALL)
_CHECK = re.compile(r"^ +(?:verified +)?(\S.*?)  +(ok|FAILED|skipped)  ", re.MULTILINE)
_LOG = logging.getLogger(__name__)
_LOG.setLevel(logging.INFO)  # pytest shows it when the test fails; elsewhere it is not shown


@dataclass(frozen=True)
class Run:
    """The result of a run: its exit status, and its standard output and standard error in one text."""

    status: int
    output: str

    @property
    def recap(self) -> dict[str, dict[str, int]]:
        """Return each cluster's statistics: ``{"prod": {"ok": 3, "changed": 0}}``."""
        return {
            host: {key: int(number) for key, number in (pair.split("=") for pair in numbers.split())}
            for host, numbers in _RECAP.findall(self.output)
        }

    @property
    def changed(self) -> int:
        """Return the number of tasks that changed something, on all clusters."""
        return sum(numbers["changed"] for numbers in self.recap.values())

    @property
    def summary(self) -> dict[str, str]:
        """Return the closing summary by cluster: the cluster's line and the indented lines below it."""
        _, _, text = self.output.partition("\nCLUSTERS ")
        blocks = re.findall(r"^(\S[^\n]*: [^\n]*\n(?: +[^\n]*\n)*)", text.partition("\n")[2], re.MULTILINE)
        return {block.partition(":")[0]: block for block in blocks}

    @property
    def findings(self) -> list[str]:
        """Return the lines about the inventory, as the screen shows them."""
        found = _FINDINGS.search(self.output)
        return found[1].splitlines() if found else []


def verified(printed: str) -> dict[str, str]:
    """Return the result of each check in the table of the playbook `verify`: ``{"capabilities": "ok"}``."""
    return dict(_CHECK.findall(printed))


@contextlib.contextmanager
def start_playbook(
    playbook: str | Path, inventory: str | Path, *arguments: str, log: Path, ansible: Path = BIN, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a playbook of playbooks/ by its name, or another one by its path; kill what is left of it at the end.

    It runs in a process group of its own, as a terminal starts it, and inherits no setting of Ansible or Kubernetes.
    `ansible` is the folder of the ansible-playbook to use.
    """
    path = playbook if isinstance(playbook, Path) else ROOT / "playbooks" / f"{playbook}.yml"
    command = [ansible / "ansible-playbook", "-i", inventory, path, *arguments]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "K8S_AUTH"))}
    inherited |= {"PATH": f"{ansible}:{os.environ['PATH']}", "KUBECONFIG": "/dev/null"}
    with log.open("w") as output:  # unlike a pipe, a file never fills up
        process = subprocess.Popen(
            command, cwd=ROOT, env=inherited | environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # all at once, as in a power cut
        process.wait()


def finish(process: subprocess.Popen[bytes], log: Path) -> Run:
    """Wait for the end of a started playbook: TimeoutExpired after 10 minutes times TESTBED_PATIENCE."""
    try:
        status = process.wait(timeout=patient(600))
    finally:
        _LOG.info("%s", log.read_text())
    return Run(status, log.read_text())


def run_playbook(playbook: str | Path, inventory: str | Path, *arguments: str, **environment: str) -> Run:
    """Run a playbook to its end; see `start_playbook` and `finish`."""
    with tempfile.NamedTemporaryFile(prefix="playbook-") as file:
        log = Path(file.name)
        with start_playbook(playbook, inventory, *arguments, log=log, **environment) as process:
            return finish(process, log)


@dataclass
class Project:
    """A user's checkout: an inventory, the trees of its clusters, the log of the last run, and the Ansible to run."""

    folder: Path
    ansible: Path = BIN
    hosts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.inventory, self.trees, self.log = (self.folder / name for name in ("inventory", "clusters", "run.log"))

    def add(self, name: str, where: Cluster | None = None, **variables: Any) -> None:
        """Add a cluster to the inventory. Without `where` its kubeconfig names a closed port."""
        path, context = (where.kubeconfig, where.context) if where else (self._closed(name), inventories.CONTEXT)
        connection = {"cluster_kubeconfig": str(path), "cluster_context": context}
        self.hosts[name] = connection | {"nativelink_clusters_dir": str(self.trees)}
        self.set(name, **variables)

    def set(self, name: str, **variables: Any) -> None:
        """Change variables of a cluster in the inventory."""
        self.hosts[name] |= variables
        inventories.write_inventory(self.inventory, self.hosts, **inventories.offline())

    def _closed(self, name: str) -> Path:
        return inventories.kubeconfig(self.folder / f"{name}.kubeconfig", f"https://127.0.0.1:{len(self.hosts) + 1}")

    @contextlib.contextmanager
    def started(self, *arguments: str, playbook: str = "bootstrap") -> Iterator[subprocess.Popen[bytes]]:
        """Start a playbook; what is left of it at the end is killed. Programs in ``bin`` of the project come first."""
        path = f"{self.folder / 'bin'}:{self.ansible}:{os.environ['PATH']}"
        with start_playbook(
            playbook, self.inventory, *arguments, log=self.log, ansible=self.ansible, PATH=path
        ) as process:
            yield process

    def run(self, *arguments: str, playbook: str = "bootstrap") -> Run:
        """Run a playbook to its end; see `finish`."""
        with self.started(*arguments, playbook=playbook) as process:
            return finish(process, self.log)

    def interrupt(self, reached: Callable[[], bool]) -> bool:
        """Start the bootstrap and kill it (SIGKILL, with all its workers) as soon as `reached` returns True.

        Return True if it was killed, and False if it ended before.
        """
        deadline = time.monotonic() + patient(120)
        with self.started() as process:
            while not reached() and process.poll() is None:
                assert time.monotonic() < deadline, f"waited 120 s for the moment to kill it:\n{self.log.read_text()}"
                time.sleep(0.005)
            return process.poll() is None

    def files(self) -> dict[str, tuple[int, bytes]]:
        """Return the modification time and the content of each file of the trees."""
        found = (path for path in self.trees.rglob("*") if path.is_file())
        return {str(path.relative_to(self.trees)): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}

    def tree(self) -> dict[str, bytes]:
        """Return the content of each file of the trees."""
        return {path: content for path, (_, content) in self.files().items()}
