"""A farm of processes that run the configurations of one rendered tree: CAS, scheduler and workers, each as a pod."""

import itertools
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils import grow, render
from ansible_collections.nativelink.gitops.plugins.plugin_utils.versions import row

from conformance import namespaces, pods
from conformance.pods import TRUST, Network, Pod
from conformance.workloads import COLLECTOR, workloads_of
from testbed import build
from testbed.waiting import patient, until
from testkit import site
from testkit.client import Client, Process
from testkit.inventories import LOCAL_PATH
from testkit.trees import objects_of, values_of

CPUS = 8  # of a worker
DRAIN = 240  # seconds that a drain may take with actions of 6 s
PATIENCE = patient(60)  # seconds, for what takes a few
# NativeLink, Kubernetes or a shell would change each part of it, if it were not escaped.
ENVIRONMENT = "$$ $HOME ${HOME} $(HOME)"
Tell = Callable[[str], None]
"""Takes what a check saw."""
_RESOURCES = {"requests": {"cpu": CPUS, "memory": "16Gi"}, "limits": {"cpu": CPUS, "memory": "16Gi"}}


def pool(name: str, replicas: int, **more: Any) -> dict[str, Any]:
    """Return the variables of a worker pool with this many workers."""
    replicas_of = {"min_replicas": replicas, "max_replicas": replicas}
    return site.pool(name, slots=CPUS, resources=_RESOURCES, scratch_size="10Gi", **replicas_of, **more)


VARIABLES: dict[str, Any] = {
    **LOCAL_PATH,
    "nativelink_cas_replicas": 3,
    "nativelink_cas_volume_size": "10Gi",
    "nativelink_scaling": "none",
    "nativelink_edge": "none",
    "nativelink_worker_access": "network_policy",
    "nativelink_worker_pools": [pool("default", 2)],
}
"""The default variables of a farm's cluster."""


@dataclass(frozen=True)
class Kind:
    """A kind of farm: its name in the table, its variables, a change of configurations, and whether it has a bucket."""

    where: str
    variables: dict[str, Any]
    change: Callable[[str], str] = str
    bucket: bool = False

    def __str__(self) -> str:
        """Return the name in the table."""
        return self.where


def _weakened(settings: str) -> str:
    """Return a configuration for the counter-runs: everybody may write action results, and slices have no zstd."""
    settings = re.sub(r"(\"slice\",\s+remote_cache_compression: )true", r"\1false", settings)
    return re.sub(r",\s*\"?read_only\"?: true", "", settings)


def _small_cas(settings: str) -> str:
    """Return a configuration whose CAS pod keeps 1.5 MB of content. Elsewhere nothing changes."""
    store = r"(/var/lib/nativelink/cas/temp\",\s+eviction_policy: )\{.*?\}"
    return re.sub(store, r"\1{max_bytes: 1500000, evict_bytes: 150000}", settings)


_REDIS = {"nativelink_scheduler_backend": "redis"}
_REPORTING: dict[str, Any] = {
    "nativelink_scheduler_worker_timeout": 10,  # seconds until the scheduler gives a frozen worker up
    "nativelink_metrics": ["scheduler", "cas", "worker"],
    "nativelink_prometheus": "bundled",
}
_TOOLS = pool("persistent", 1, persistent_workers=True, isolation="none", env={"CONFORMANCE_ENV": ENVIRONMENT})
_USERS = {"nativelink_worker_isolation": "users", "nativelink_writer_peers": [{"namespaceSelector": {}}]}
_NONE = {"nativelink_worker_isolation": "none"}
_ONE_WORKER = {"nativelink_worker_pools": [pool("default", 1)]}
_MUTUAL_TLS = {"nativelink_mutual_tls_secret": "mutual-tls", "nativelink_mutual_tls_expires": "2100-01-01"}
_FIVE = {"nativelink_cas_replicas": 5, "nativelink_cas_layout_from": 3, "nativelink_cas_shards": 3}
KINDS = {
    "memory": Kind("farm, memory", {}),
    "redis": Kind("farm, Redis", _REDIS),
    "metrics": Kind("farm, metrics", _REPORTING),
    "metrics-redis": Kind("farm, metrics and Redis", _REDIS | _REPORTING),
    "small": Kind("farm, small CAS", {}, _small_cas),
    "tools": Kind("farm, tools", {"nativelink_worker_pools": [_TOOLS]}),
    "attacks": Kind("farm, attacks", _ONE_WORKER | _USERS),
    "none": Kind("farm, isolation none", _ONE_WORKER | _NONE, _weakened),
    "mutual-tls": Kind("farm, mutual TLS", _MUTUAL_TLS | _USERS),
    "bucket": Kind("farm, bucket", {}, bucket=True),
    "grow": Kind("farm, grow", _ONE_WORKER | _MUTUAL_TLS | _FIVE),
}


def on(*kinds: str) -> pytest.MarkDecorator:
    """Run a check on farms of these kinds."""
    return pytest.mark.parametrize("farm", [KINDS[kind] for kind in kinds], ids=kinds, indirect=True, scope="session")


class Farm:
    """The pods of a tree. Actions see the folder ``ledger`` as ``/ledger``.

    Pods start with the certificates of ``trust``, and with what ``change`` makes of their NativeLink configuration.
    """

    def __init__(self, version: str, network: Network, folder: Path, variables: Mapping[str, Any]) -> None:
        """Render the tree with more variables, and prepare the pods. They start when the farm is entered."""
        alone = {} if namespaces.has_users() else {"nativelink_worker_isolation": "none"}
        chunking = row(version).compression
        stated = {**VARIABLES, **alone, "nativelink_version": version, "nativelink_cas_chunking": chunking, **variables}
        self.values = values_of("conformance", **stated)
        tree = render.tree(self.values)
        self.version, self.trust = version, TRUST
        self.change: Callable[[str], str] = str
        self.network, self.ledger = network, folder / "ledger"
        self.ledger.mkdir(parents=True)
        self.ledger.chmod(0o777)  # actions have users of their own
        self._services = [each for each in objects_of(tree) if each["kind"] == "Service"]
        self.workloads = workloads_of(tree)
        self._extra = {
            "/ledger": self.ledger,
            "/reapi-load": build.program("reapi-load"),
            **{f"/{name}": Path(__file__).with_name(name) for name in ("descriptor.py", "tool.py")},
            "/copier.py": grow.PROGRAM,
            COLLECTOR: build.program("otelcol"),
        }
        self._numbers = itertools.count()
        self.cas = [self._pod("cas", f"nativelink-cas-{number}") for number in range(stated["nativelink_cas_replicas"])]
        self.scheduler = self._pod("scheduler", "nativelink-scheduler-0")
        self.redis = self._pod("redis", "nativelink-redis-0") if "redis" in self.workloads else None
        collectors = [name for name in ("collector", "collector-workers") if name in self.workloads]
        self.collectors = [self._pod(name, f"nativelink-{name}-0") for name in collectors]
        self._serving = [*self.cas, self.scheduler, *([self.redis] if self.redis else []), *self.collectors]
        self._pools: list[dict[str, Any]] = stated["nativelink_worker_pools"]
        self.workers: dict[str, list[Pod]] = {}

    def _pod(self, component: str, name: str) -> Pod:
        return Pod(self.network, name, self.workloads[component], self._extra)

    def _start(self, pod: Pod) -> None:
        pod.trust, pod.change = self.trust, self.change
        pod.hosts(pods.hosts(self._services, self._serving, pod, next(self._numbers)))
        pod.start()

    def __enter__(self) -> Self:
        """Start everything. ClusterError, PodEnded or AssertionError if something does not serve."""
        try:
            for pod in reversed(self._serving):  # Redis and the collectors first
                self._start(pod)
            for pod in self._serving:
                pod.await_ready()
            for each in self._pools:
                self.add_workers(each["name"], each["min_replicas"])
            ran = self.load("--seconds=0-0", f"--timeout={PATIENCE}", pool=self._pools[0]["name"])["ok"]
            assert ran == 1, "the scheduler does not give actions to its workers"
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End everything at once."""
        for pod in [*itertools.chain(*self.workers.values()), *self._serving]:
            pod.remove()

    def add_workers(self, pool: str, number: int = 1) -> None:
        """Start this many more workers of a pool, and wait until they are ready."""
        component = f"worker {pool}"
        name = self.workloads[component].name
        added = [self._pod(component, f"{name}-{next(self._numbers)}") for _ in range(number)]
        self.workers.setdefault(pool, []).extend(added)
        for pod in added:
            self._start(pod)
        for pod in added:
            pod.await_ready(120)

    @property
    def api(self) -> Client:
        """Return the client of scheduler and CAS."""
        return Client(f"grpc://{self.scheduler.address}:50052", f"grpc://{self.cas[0].address}:50051")

    def load(self, *arguments: str, **platform: str) -> dict[str, Any]:
        """Run a client whose actions ask for a pool, by default ``default``, and return its report."""
        return self.api.report(*arguments, **{"pool": "default", **platform})

    @contextmanager
    def loaded(self, *arguments: str, **platform: str) -> Iterator[Process]:
        """Run such a client in the background, and end it afterwards."""
        with self.api.start(*arguments, **{"pool": "default", **platform}) as client:
            try:
                yield client
            finally:
                client.kill()

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

    def recorded(self, seconds: str, salt: str, actions: int = 1, timeout: float = PATIENCE) -> list[str]:
        """Return the arguments of a client whose actions note their start in the ledger, and sleep: see ``begun``."""
        script = f"umask 0; echo begun >> /ledger/{{salt}}-{{index}}; sleep {seconds}"
        command = json.dumps(["/bin/sh", "-c", script])
        return [f"--command={command}", f"--salt={salt}", f"--actions={actions}", f"--timeout={timeout}"]

    def begun(self, salt: str) -> dict[str, int]:
        """Return how often each action with a salt has begun, by the action's number."""
        files = self.ledger.glob(f"{salt}-*")
        return {path.name.rpartition("-")[2]: len(path.read_text().splitlines()) for path in files}

    def running(self, worker: Pod) -> int:
        """Return the number of actions that a worker runs. Each has a folder."""
        return sum(path.is_dir() for path in self.work_folder(worker).glob("*"))

    def work_folder(self, worker: Pod) -> Path:
        """Return the folder of this machine that has the folders of a worker's actions."""
        return worker.folder / "volumes" / "scratch" / "actions"

    def drain(self, worker: Pod) -> tuple[int, float]:
        """Terminate a worker as Kubernetes does: the preStop hook, then SIGTERM.

        Return how many actions it ran before, and the seconds of the hook. ClusterError if that takes over ``DRAIN``.
        """
        running, began = self.running(worker), time.monotonic()
        worker.run(*worker.workload.drain, seconds=DRAIN)
        took = time.monotonic() - began
        worker.terminate()
        return running, took

    def restart(self, pod: Pod, lost: str = "") -> None:
        """Restart a CAS pod or the scheduler. It has lost the content of a volume if its name is stated."""
        pod.terminate()
        if lost:
            shutil.rmtree(pod.folder / "volumes" / lost)
        self._start(pod)
        pod.await_ready()

    def configure(self, **variables: Any) -> None:
        """Restart CAS, scheduler and workers with what other variables render."""
        self.values = {**self.values, **variables}
        self.workloads = workloads_of(render.tree(self.values))
        pods = [*self.cas, self.scheduler, *itertools.chain(*self.workers.values())]
        for pod in pods:
            pod.terminate()
        for pod in pods:
            pod.workload = self.workloads[pod.workload.component]
            self._start(pod)
        for pod in pods:
            pod.await_ready()

    def replace(self, pool: str) -> Pod:
        """Start one more worker of a pool, and return the first one, which runs until it is drained or ended."""
        self.add_workers(pool)
        return self.workers[pool].pop(0)


def succeeded(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the actions of a report. AssertionError if one failed."""
    bad = [each["outcome"] for each in report["actions"] if each["outcome"] != "ok"]
    assert not bad, f"{len(bad)} of {len(report['actions'])} actions failed, one of them with: {bad[0]}"
    return list(report["actions"])


def await_running(farm: Farm, worker: Pod, actions: int) -> None:
    """Wait until a worker runs this many actions."""
    until(f"{worker.name} to run {actions} actions", lambda: farm.running(worker) >= actions, 60)
