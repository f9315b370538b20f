"""The chain from demand to workers on a real node: KEDA, a rendered tree, and records of the changes.

The tests in this folder and ``python -m bench reaction`` use it. Times are this machine's ``time.monotonic()``, because
the timestamps in objects only have whole seconds.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.nativelink.gitops.plugins.plugin_utils import render

from testbed import build, manifests, node
from testbed.cluster import Cluster
from testbed.waiting import patient, until
from testkit import nativelink
from testkit.site import SMALL
from testkit.trees import values_of

Object = dict[str, Any]

# Fields of a pool whose workers are fake pods. There can be any number of them.
FAKE: Object = {
    "node_selector": {node.LABEL: "fake"},
    "tolerations": [{"key": node.LABEL, "operator": "Exists", "effect": "NoSchedule"}],
}
METRICS_PORT = 9464
_METRICS_API = "apiservice/v1beta1.external.metrics.k8s.io"
_DEMAND = re.compile(
    r'^nativelink_execution_active_count\{[^}]*execution_stage="(queued|executing)"[^}]*\} (\S+)', re.M
)


def install_keda(where: Cluster) -> None:
    """Apply KEDA's release manifest. ``await_keda`` waits until KEDA is ready."""
    where.run("apply", "--server-side", "-f", str(manifests.path("keda")))


def await_keda(where: Cluster) -> None:
    """Wait until KEDA serves metrics to the HPAs."""
    where.run("wait", "--for=condition=Available", _METRICS_API, f"--timeout={patient(120)}s")


@dataclass(frozen=True)
class Entry:
    """An inventory entry on a cluster: its name, with which its namespaces begin, and the folder of its tree."""

    where: Cluster
    name: str
    folder: Path

    @property
    def workers(self) -> str:
        """The namespace of the workers. The other namespace has the name of the entry."""
        return f"{self.name}-workers"

    def apply(self, pools: list[Object], **variables: Any) -> None:
        """Render the tree with KEDA scaling and no edge, and apply it as an engine does."""
        spaces = {"nativelink_namespace": self.name, "nativelink_workers_namespace": self.workers}
        stated = {**SMALL, "nativelink_scaling": "keda", **spaces, "nativelink_worker_pools": pools, **variables}
        for path, text in render.tree(values_of(self.name, **stated)).items():
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_text(text)
        self.where.apply(
            secure_namespace(self.name, "restricted"),
            secure_namespace(self.workers, "baseline"),
            this_machine(self.where, self.name),
        )
        self.apply_folder()

    def apply_folder(self) -> None:
        """Apply the tree in the folder."""
        self.where.run("apply", "--server-side", "--force-conflicts", "--field-manager=engine", "-k", str(self.folder))

    def await_ready(self) -> None:
        """Wait for CAS, scheduler and collector."""
        parts = ("statefulset/nativelink-cas", "deployment/nativelink-scheduler", "deployment/nativelink-collector")
        self.where.rolled_out(self.name, *parts)

    def only_scheduler(self) -> str:
        """Wait until earlier schedulers, which still serve while they end, are gone. Return the name of the pod."""

        def pods() -> list[str]:
            selector = "app.kubernetes.io/component=scheduler"
            return self.where.run("-n", self.name, "get", "pods", "-l", selector, "-o", "name").split()

        until("the old scheduler to be gone", lambda: len(pods()) == 1, 60)
        (name,) = pods()
        return name.removeprefix("pod/")

    def address(self, name: str) -> str:
        """Return the address of one of the entry's Services, which this machine reaches."""
        return self.where.service_address(self.name, name)

    def load(self, chunk: int = 40, pool: str = "") -> Load:
        """Return a load on the scheduler. ``pool`` is a pool with fake workers."""
        addresses = {name: self.address(f"nativelink-{name}") for name in ("scheduler", "cas", "scheduler-workers")}
        return Load(addresses["scheduler"], addresses["cas"], chunk, addresses["scheduler-workers"], pool)

    def gauge(self) -> Gauge:
        """Return a gauge of the demand at the collector."""
        return Gauge(f"{self.address('nativelink-collector')}:{METRICS_PORT}")

    def deployments(self) -> Record:
        """Return a record of the Deployments of the workers."""
        return Record(self.where, f"/apis/apps/v1/namespaces/{self.workers}/deployments")

    def pods(self) -> Record:
        """Return a record of the pods of the workers."""
        return Record(self.where, f"/api/v1/namespaces/{self.workers}/pods")


def this_machine(where: Cluster, namespace: str) -> Object:
    """Return a policy that lets this machine reach the pods of a namespace. The policies of a tree do not."""
    network = node.network(where.home)
    assert network, f"cluster {where.name} has no real node"
    rule = {"from": [{"ipBlock": {"cidr": f"{network.machine}/32"}}]}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "this-machine", "namespace": namespace},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [rule]},
    }


def secret(name: str, kind: str, data: dict[str, bytes], namespace: str = "nativelink") -> Object:
    """Return a Secret of a type."""
    encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "type": kind, "metadata": metadata, "data": encoded}


def secure_namespace(name: str, security: str) -> Object:
    """Return a Namespace with a level of Pod Security."""
    labels = {"pod-security.kubernetes.io/enforce": security}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


@dataclass(frozen=True)
class Change:
    """A change of an object from a watch: the time of its arrival, ADDED, MODIFIED or DELETED, and the object."""

    at: float
    kind: str
    object: Object


@dataclass
class Record:
    """All changes of a resource since the start of the record: ``Record(where, "/api/v1/namespaces/a/pods")``."""

    where: Cluster
    path: str
    changes: list[Change] = field(default_factory=list)

    def __enter__(self) -> Record:
        self._lock, self._ended = threading.Lock(), False
        self._watch = self._begin()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._ended = True
            self._watch.terminate()
        self._reader.join()

    def _begin(self, after: str = "") -> subprocess.Popen[bytes]:
        path = f"{self.path}?watch=true&timeoutSeconds=7200&resourceVersion={after}"
        return subprocess.Popen(self.where.command("get", "--raw", path), stdout=subprocess.PIPE)

    def _read(self) -> None:
        after = ""
        while True:
            with self._watch as watch:
                for line in watch.stdout or ():
                    at = time.monotonic()
                    told = json.loads(line)
                    assert told["type"] != "ERROR", told
                    self.changes.append(Change(at, told["type"], told["object"]))
                    after = told["object"]["metadata"]["resourceVersion"]
            # The API server closes a watch that reads too slowly. Bursts of 200 pods are enough for that.
            with self._lock:
                if self._ended:
                    return
                self._watch = self._begin(after)

    def steps(self, name: str, since: float = 0) -> list[tuple[float, int]]:
        """Return the times and values of a Deployment's ``replicas``: the first value, then each change."""
        found: list[tuple[float, int]] = []
        for change in list(self.changes):
            if change.object["metadata"]["name"] == name and change.kind != "DELETED":
                replicas = change.object["spec"].get("replicas", 1)
                if not found or found[-1][1] != replicas:
                    found.append((change.at, replicas))
        before = [step for step in found if step[0] < since][-1:]
        return before + [step for step in found if step[0] >= since]

    def replicas(self, name: str) -> int:
        """Return the last known ``replicas`` of a Deployment, or -1 before the first."""
        steps = self.steps(name)
        return steps[-1][1] if steps else -1


class Gauge:
    """The demand at the collector, which a thread reads 20 times a second as KEDA does (the first line of each stage).

    ``values`` has the time and the sum of both stages for each change. The sum is None without an answer or without
    both stages.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.values: list[tuple[float, float | None]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Gauge:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(0.05):
            stages = dict(reversed(self.lines()))  # a dict keeps the last of several values of a key
            value = sum(stages.values()) if len(stages) == 2 else None
            if not self.values or self.values[-1][1] != value:
                self.values.append((time.monotonic(), value))

    def lines(self) -> list[tuple[str, float]]:
        """Return the stage and value of each line that the collector serves now, or nothing without an answer."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return [(stage, float(number)) for stage, number in _DEMAND.findall(_get(self.address))]
        return []

    @property
    def now(self) -> float | None:
        """The last value."""
        return self.values[-1][1] if self.values else None


def _get(address: str) -> str:
    connection = http.client.HTTPConnection(address, timeout=2)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    finally:
        connection.close()


class Load:
    """Actions that wait in a scheduler: ``hold(400)`` starts or ends clients until there are 400.

    The actions ask for pools without workers, so that none begins. NativeLink counts a queued action until a minute
    after its client has disconnected. To end actions sooner, workers on this machine run them, which needs the address
    of the worker API. Without that address, or with a ``pool`` that the actions ask for, the clients just end. A client
    holds at most ``chunk`` actions. While the demand falls, up to that many actions count twice for a moment.
    """

    def __init__(self, scheduler: str, cas: str, chunk: int = 40, workers: str = "", pool: str = "") -> None:
        self.command = [str(build.program("reapi-load"))]
        self.command += ["--hold=7200", "--timeout=7200", "--seconds=0-0"]
        self.command += [f"--execute-endpoint=grpc://{scheduler}:50052", f"--cas-endpoint=grpc://{cas}:50051"]
        self.chunk, self.cas, self.workers, self.pool = chunk, cas, workers if not pool else "", pool
        self._clients: list[_Client] = []

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self._end(self._clients)

    @property
    def held(self) -> int:
        """The number of actions that wait now."""
        return sum(client.actions for client in self._clients)

    def hold(self, actions: int) -> float:
        """Let this many actions wait. Return the time just before the first was queued, when all were prepared."""
        ended: list[_Client] = []
        while self.held > actions:
            ended.append(self._clients.pop())
        started = []
        for first in range(self.held, actions, self.chunk):
            size = min(self.chunk, actions - first)
            pool = self.pool or f"held-{uuid.uuid4()}"
            command = [*self.command, f"--platform=pool={pool}", f"--actions={size}"]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            started.append(_Client(size, pool, process))
        self._clients += started
        at = 0.0
        seconds = patient(60)  # for the clients to queue their actions
        deadline = threading.Timer(seconds, lambda: [client.process.kill() for client in started])
        deadline.start()
        try:
            for word in ("uploaded", "queued"):
                for client in started:
                    assert client.process.stdout
                    told = client.process.stdout.readline()
                    wanted = f'{{"{word}": {client.actions}}}\n'
                    assert told == wanted, (
                        f"a client should print {wanted!r} within {seconds:.0f} s, but printed {told!r}"
                    )
                    at = at if word == "queued" else time.monotonic()
        finally:
            deadline.cancel()
            self._end(ended)
        return at or time.monotonic()

    def _end(self, clients: list[_Client]) -> None:
        with contextlib.ExitStack() as stack:
            waiting = [client for client in clients if self.workers and client.process.poll() is None]
            for client in waiting:
                stack.enter_context(self._worker(client.pool))
            for client in waiting:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    client.process.wait(patient(30))
        for client in clients:
            client.process.terminate()
        for client in clients:
            client.process.communicate()

    @contextlib.contextmanager
    def _worker(self, pool: str) -> Iterator[None]:
        """Start a worker of a pool on this machine."""
        with tempfile.TemporaryDirectory() as folder:
            endpoints = [{"address": f"grpc://{self.cas}:50051"}]
            remote = {"grpc": {"instance_name": "main", "endpoints": endpoints, "store_type": "cas"}}
            files = {"content_path": f"{folder}/content", "temp_path": f"{folder}/temp", "eviction_policy": {}}
            local = {
                "name": pool,
                "worker_api_endpoint": {"uri": f"grpc://{self.workers}:50061"},
                "cas_fast_slow_store": "CAS",
                "upload_action_result": {"upload_ac_results_strategy": "never"},
                "work_directory": f"{folder}/work",
                "max_inflight_tasks": self.chunk,
                "platform_properties": {"pool": {"values": [pool]}},
            }
            config = {
                "stores": [{"name": "CAS", "fast_slow": {"fast": {"filesystem": files}, "slow": remote}}],
                "workers": [{"local": local}],
                "servers": [{"listener": {"http": {"socket_address": "127.0.0.1:0"}}, "services": {"health": {}}}],
            }
            # At the end of each action NativeLink reads all of /proc, which here has only the worker's own processes.
            apart = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
            with nativelink.started(Path(folder) / "worker", config, *apart) as process:
                yield
                process.kill()


@dataclass(frozen=True)
class _Client:
    """A client, the number of its actions, and the pool that they ask for."""

    actions: int
    pool: str
    process: subprocess.Popen[str]
