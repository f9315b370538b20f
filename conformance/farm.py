"""A farm of processes that run the configurations of one rendered tree: CAS, scheduler and workers, each as a pod."""

from __future__ import annotations

import itertools
import json
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import json5
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render

from conformance import namespaces, pods
from conformance.certificates import TRUST
from conformance.pods import Network, Pod
from conformance.subject import Subject
from conformance.tools import LIBRARIES, Tools
from conformance.workloads import Workload, services_of, workloads_of
from testbed.waiting import ClusterError, until
from testkit.inventories import LOCAL_PATH
from testkit.trees import values_of

CPUS = 8  # of a worker
DRAIN = 240  # seconds that a drain may take with actions of 6 s
_RESOURCES = {"requests": {"cpu": CPUS, "memory": "16Gi"}, "limits": {"cpu": CPUS, "memory": "16Gi"}}


def pool(name: str, replicas: int, **more: Any) -> dict[str, Any]:
    """Return the variables of a worker pool with this many workers."""
    return {
        "name": name,
        "platform_properties": {"OSFamily": "Linux", "pool": name},
        "resources": _RESOURCES,
        "slots": CPUS,
        "longest_action": "1m",
        "scratch_size": "10Gi",
        "min_replicas": replicas,
        "max_replicas": replicas,
        **more,
    }


VARIABLES: dict[str, Any] = {
    **LOCAL_PATH,
    "nativelink_cas_replicas": 3,
    "nativelink_cas_volume_size": "10Gi",
    "nativelink_scheduler_replicas": 1,
    "nativelink_scaling": "none",
    "nativelink_edge": "none",
    "nativelink_worker_access": "network_policy",
    "nativelink_worker_pools": [pool("default", 2)],
}
"""Return the default variables of a farm's cluster."""


@dataclass(frozen=True)
class Drained:
    """The drain of a worker as Kubernetes does it: the preStop hook, then SIGTERM."""

    running: int  # actions when the hook began
    seconds: float  # of the hook


class Farm:
    """The pods of a tree. Actions see the folder ``ledger`` as ``/ledger``.

    Pods start with the certificates of ``trust``, and with what ``change`` makes of their NativeLink configuration.
    """

    def __init__(
        self, subject: Subject, tools: Tools, network: Network, folder: Path, variables: Mapping[str, Any]
    ) -> None:
        """Render the tree with more variables, and prepare the pods. They start when the farm is entered."""
        alone = {} if namespaces.has_users() else {"nativelink_worker_isolation": "none"}
        stated = {**VARIABLES, **alone, "nativelink_version": subject.version, **variables}
        tree = render.tree(values_of("conformance", **stated))
        self.version, self.trust = subject.version, TRUST
        self.change: Callable[[str], str] = str
        self.tools, self.network, self.ledger = tools, network, folder / "ledger"
        self.ledger.mkdir(parents=True)
        self.ledger.chmod(0o777)  # actions have users of their own
        self._services, self.workloads = services_of(tree), workloads_of(tree)
        self._extra = pods.programs(subject, tools) | {
            "/ledger": self.ledger,
            "/reapi-load": Path(tools.reapi_load),
        }
        self._numbers = itertools.count()
        self.cas = [self._pod("cas", f"nativelink-cas-{number}") for number in range(stated["nativelink_cas_replicas"])]
        self.scheduler = self._pod("scheduler", "nativelink-scheduler-0")
        self.redis = self._pod("redis", "nativelink-redis-0") if "redis" in self.workloads else None
        self.collectors = [
            self._pod(name, f"nativelink-{name}-0")
            for name in ("collector", "collector-workers")
            if name in self.workloads
        ]
        self._serving = [*self.cas, self.scheduler, *([self.redis] if self.redis else []), *self.collectors]
        self._pools: list[dict[str, Any]] = stated["nativelink_worker_pools"]
        self.workers: dict[str, list[Pod]] = {}

    def _pod(self, component: str, name: str) -> Pod:
        return Pod(self.network, name, self.workloads[component], self._extra, LIBRARIES)

    def _start(self, pod: Pod) -> None:
        pod.trust = self.trust
        pod.configure(self.change)
        pod.hosts(pods.hosts(self._services, self._serving, pod, next(self._numbers)))
        pod.start()

    def __enter__(self) -> Self:
        """Start everything. ClusterError or PodEnded if something does not serve."""
        try:
            for pod in reversed(self._serving):  # Redis and the collectors first
                self._start(pod)
            for pod in self._serving:
                pod.await_ready()
            for each in self._pools:
                self.add_workers(each["name"], each["min_replicas"])
            self.await_matching()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End everything at once."""
        for pod in [*itertools.chain(*self.workers.values()), *self._serving]:
            pod.remove()

    def add_workers(self, pool: str, number: int = 1) -> None:
        """Start this many more workers of a pool, and return them when they are ready."""
        component = f"worker {pool}"
        added = []
        for _ in range(number):
            pod = self._pod(component, f"{self.workloads[component].name}-{next(self._numbers)}")
            self.workers.setdefault(pool, []).append(pod)
            added.append(pod)
            self._start(pod)
        for pod in added:
            pod.await_ready(120)

    def await_matching(self) -> None:
        """Run one action. ClusterError if the scheduler does not give it to a worker."""
        first = {"pool": self._pools[0]["name"]}
        if self.load("--seconds=0-0", "--timeout=30", platform=first)["ok"] != 1:
            raise ClusterError("the scheduler does not give actions to its workers")

    @property
    def dead_starts(self) -> int:
        """The number of times that guard.sh has restarted NativeLink because its matching loop was dead."""
        return self.scheduler.log.read_text(errors="replace").count("starting it anew")

    @property
    def endpoints(self) -> dict[str, str]:
        """Return the addresses for clients, by ``execute`` and ``cas``."""
        return {"execute": f"grpc://{self.scheduler.address}:50052", "cas": f"grpc://{self.cas[0].address}:50051"}

    def client(self, *arguments: str, platform: Mapping[str, str]) -> list[str]:
        """Return the command of a client that makes load."""
        endpoints = [f"--{name}-endpoint={address}" for name, address in self.endpoints.items()]
        properties = [f"--platform={name}={value}" for name, value in platform.items()]
        return [self.tools.reapi_load, *endpoints, *properties, *arguments]

    def load(self, *arguments: str, platform: Mapping[str, str]) -> dict[str, Any]:
        """Run such a client, and return its report."""
        command = self.client(*arguments, platform=platform)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not done.stdout:
            raise ClusterError(f"the client failed: {done.stderr[-500:]}")
        return dict(json.loads(done.stdout))

    @contextmanager
    def second_scheduler(self, **environment: str) -> Iterator[Pod]:
        """Run one more scheduler, to which no name leads, with other environment variables."""
        pod = self._pod("scheduler", "nativelink-scheduler-1")
        pod.environment = environment
        try:
            self._start(pod)
            pod.await_ready()
            yield pod
        finally:
            pod.remove()

    def scraped(self, port: int) -> str:
        """Return what a Prometheus port of the collectors serves. Not all of them have every port."""
        found = ""
        for pod in self.collectors:
            if port in pod.workload.ports:
                with urllib.request.urlopen(f"http://{pod.address}:{port}/metrics", timeout=10) as answer:
                    found += answer.read().decode()
        return found

    def recorded(self, seconds: str, salt: str) -> list[str]:
        """Return the arguments of a client whose actions note their start in the ledger, and sleep: see ``begun``."""
        script = f"umask 0; echo begun >> /ledger/{{salt}}-{{index}}; sleep {seconds}"
        return [f"--command={json.dumps(['/bin/sh', '-c', script])}", f"--salt={salt}"]

    def begun(self, salt: str) -> dict[str, int]:
        """Return how often each action with a salt has begun, by the action's number."""
        return {
            path.name.rpartition("-")[2]: len(path.read_text().splitlines()) for path in self.ledger.glob(f"{salt}-*")
        }

    def running(self, worker: Pod) -> int:
        """Return the number of actions that a worker runs. Each has a folder."""
        return sum(path.is_dir() for path in self.work_folder(worker).glob("*"))

    def work_folder(self, worker: Pod) -> Path:
        """Return the folder of this machine that has the folders of a worker's actions."""
        return worker.folder / "volumes" / "scratch" / "actions"

    def drain(self, worker: Pod) -> Drained:
        """Terminate a worker as Kubernetes does. ClusterError if its hook takes longer than ``DRAIN``."""
        running, began = self.running(worker), time.monotonic()
        worker.run(*worker.workload.drain, seconds=DRAIN)
        took = time.monotonic() - began
        worker.terminate()
        return Drained(running, took)

    def restart(self, pod: Pod) -> None:
        """Restart a CAS pod or the scheduler."""
        pod.terminate()
        self._start(pod)
        pod.await_ready()

    def replace(self, pool: str) -> Pod:
        """Start one more worker of a pool, and return the first one, which runs until it is drained or ended."""
        self.add_workers(pool)
        return self.workers[pool].pop(0)


def succeeded(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the actions of a report. ClusterError if one failed."""
    if report["failed"]:
        worst = next(each for each in report["actions"] if each["outcome"] != "ok")
        raise ClusterError(
            f"{report['failed']} of {len(report['actions'])} actions failed, one of them with: {worst['outcome']}"
        )
    return list(report["actions"])


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Yield a client that runs in the background, and end it afterwards."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as client:
        try:
            yield client
        finally:
            client.kill()


def await_running(farm: Farm, worker: Pod, actions: int) -> None:
    """Wait until a worker runs this many actions."""
    until(f"{worker.name} to run {actions} actions", lambda: farm.running(worker) >= actions, 60)


def cas_stores(worker: Workload) -> set[tuple[str, str]]:
    """Return the address and the instance name of each CAS that a workload's configuration reaches by gRPC."""
    found: set[tuple[str, str]] = set()

    def look(value: Any) -> None:
        if isinstance(value, dict):
            if value.get("store_type") == "cas" and "endpoints" in value:
                found.update((each["address"], value["instance_name"]) for each in value["endpoints"])
            value = list(value.values())
        for each in value if isinstance(value, list) else ():
            look(each)

    look(json5.loads(worker.settings))
    return found
