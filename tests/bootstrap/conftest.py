"""Fixtures that run the playbooks as a user does, on embedded clusters, with their files in a temporary folder."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest
import yaml

from testbed import cluster
from testbed.cluster import Cluster
from testbed.waiting import patient

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
RECAP = re.compile(r"^(\S+) +: (ok=.*)$", re.MULTILINE)
# Fields that the API server or a controller sets, so that they may differ between two runs.
VOLATILE = ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields", "ownerReferences")


@dataclass(frozen=True)
class Run:
    """A run's exit status, output, and each cluster's statistics (``{"prod": {"ok": 3, "changed": 0}}``)."""

    status: int
    output: str

    @property
    def recap(self) -> dict[str, dict[str, int]]:
        return {
            host: {key: int(number) for key, number in (pair.split("=") for pair in numbers.split())}
            for host, numbers in RECAP.findall(self.output)
        }

    @property
    def changed(self) -> int:
        return sum(numbers["changed"] for numbers in self.recap.values())

    @property
    def summary(self) -> dict[str, str]:
        """Return the closing summary by cluster: the cluster's line and the indented lines below it."""
        _, _, text = self.output.partition("\nCLUSTERS ")
        blocks = re.findall(r"^(\S[^\n]*: [^\n]*\n(?: +[^\n]*\n)*)", text.partition("\n")[2], re.MULTILINE)
        return {block.partition(":")[0]: block for block in blocks}


@dataclass
class Project:
    """A user's checkout: an inventory, the trees of its clusters, and the Ansible to run."""

    folder: Path
    bin: Path
    hosts: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path, bin_folder: Path = BIN) -> Self:
        """Make a project whose inventory has the offline release manifests, and no cluster yet."""
        manifests = folder / "inventory" / "group_vars" / "all.yml"
        manifests.parent.mkdir(parents=True)
        subprocess.run([sys.executable, ".ci/offline.py", str(manifests)], cwd=ROOT, check=True)
        return cls(folder, bin_folder)

    @property
    def log(self) -> Path:
        return self.folder / "run.log"

    @property
    def trees(self) -> Path:
        return self.folder / "clusters"

    def add(self, name: str, where: Cluster | None = None, **variables: Any) -> None:
        """Add a cluster to the inventory. Without `where` its kubeconfig names a closed port."""
        kubeconfig, context = (where.kubeconfig, where.context) if where else (self._closed(name), "closed")
        connection = {"cluster_kubeconfig": str(kubeconfig), "cluster_context": context}
        self.hosts[name] = connection | {"nativelink_clusters_dir": str(self.trees)}
        self.set(name, **variables)

    def set(self, name: str, **variables: Any) -> None:
        """Change variables of a cluster in the inventory."""
        self.hosts[name] |= variables
        (self.folder / "inventory" / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": self.hosts}}))

    def _closed(self, name: str) -> Path:
        path = self.folder / f"{name}.kubeconfig"
        server = {"name": "closed", "cluster": {"server": f"https://127.0.0.1:{len(self.hosts) + 1}"}}
        context = {"name": "closed", "context": {"cluster": "closed", "user": "nobody"}}
        user = {"name": "nobody", "user": {}}
        config = {"apiVersion": "v1", "kind": "Config", "clusters": [server], "contexts": [context], "users": [user]}
        path.write_text(yaml.safe_dump(config))
        return path

    @contextlib.contextmanager
    def started(self, *arguments: str, playbook: str = "bootstrap") -> Iterator[subprocess.Popen[bytes]]:
        """Start ansible-playbook in its own process group, as a terminal does, and kill the rest of it afterwards."""
        command = [str(self.bin / "ansible-playbook"), "-i", str(self.folder / "inventory")]
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "K8S_AUTH"))
        }
        environment |= {"PATH": f"{self.folder / 'bin'}:{self.bin}:{os.environ['PATH']}", "KUBECONFIG": "/dev/null"}
        command += [f"playbooks/{playbook}.yml", *arguments]
        with self.log.open("w") as log:  # unlike a pipe that is not read, a file does not fill up
            run = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            yield run
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)  # all at once, as in a power cut
            run.wait()

    def run(self, *arguments: str, playbook: str = "bootstrap") -> Run:
        """Run a playbook to its end, for at most 10 minutes times TESTBED_PATIENCE."""
        try:
            with self.started(*arguments, playbook=playbook) as run:
                status = run.wait(timeout=patient(600))
        finally:
            print(self.log.read_text())  # pytest shows this if the test fails
        return Run(status, self.log.read_text())

    def interrupt(self, reached: Callable[[], bool], within: float = 120) -> bool:
        """Start the bootstrap, and kill it (SIGKILL, with all its workers) as soon as `reached` returns True.

        Return True if it was killed, and False if it ended before.
        """
        within = patient(within)
        deadline = time.monotonic() + within
        with self.started() as run:
            while not reached() and run.poll() is None:
                if time.monotonic() > deadline:
                    pytest.fail(f"timed out after {within:.0f} s waiting to kill the run:\n{self.log.read_text()}")
                time.sleep(0.005)
            return run.poll() is None

    def files(self) -> dict[str, tuple[int, bytes]]:
        """Return the modification time and the content of each file of the trees."""
        found = (path for path in self.trees.rglob("*") if path.is_file())
        return {str(path.relative_to(self.trees)): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}

    def tree(self) -> dict[str, bytes]:
        """Return the content of each file of the trees."""
        return {path: content for path, (_, content) in self.files().items()}


def objects(where: Cluster, manager: str = "nativelink-gitops") -> dict[str, Any]:
    """Return the objects of our field manager, by kind, namespace and name, without fields that differ between runs."""
    kinds = where.run("api-resources", "--verbs=list", "-o", "name").split()
    kinds = sorted({kind for kind in kinds if not kind.startswith("events")})
    text = where.run("get", ",".join(kinds), "-A", "-o", "json", "--show-managed-fields", "--ignore-not-found")
    found: dict[str, Any] = {}
    for item in json.loads(text or '{"items": []}')["items"]:
        metadata = item["metadata"]
        fields = [entry["fieldsV1"] for entry in metadata.get("managedFields", ()) if entry["manager"] == manager]
        if not fields or "ttlSecondsAfterFinished" in item.get("spec", {}):  # this Job is removed when it has completed
            continue
        item.pop("status", None)
        if item["kind"] == "Secret":
            item["data"] = sorted(item.get("data", {}))
        for key in ("clusterIP", "clusterIPs", "healthCheckNodePort"):
            item.get("spec", {}).pop(key, None)
        for port in item.get("spec", {}).get("ports", ()) if item["kind"] == "Service" else ():
            port.pop("nodePort", None)
        for key in VOLATILE:
            metadata.pop(key, None)
        name = f"{item['kind']} {metadata.get('namespace', '')}/{metadata['name']}"
        found[name] = {"fields": fields, "object": item}
    return found


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Return an empty project on the Ansible that runs the tests, in an empty Git repository."""
    return Project.make(tmp_path)


@pytest.fixture
def embedded() -> Iterator[Callable[[str], Cluster]]:
    """Return a function: ``embedded("name")`` starts a fresh cluster of that name, which is stopped after the test."""
    with contextlib.ExitStack() as started:
        yield lambda name: started.enter_context(cluster.fresh(name))
