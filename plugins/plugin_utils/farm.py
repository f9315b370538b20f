"""Asks the API servers of many clusters side by side, and what they have of a farm."""

import http.client
import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any
from urllib.parse import urlencode

from ansible.module_utils.urls import open_url

from .api import Api, ApiError, Object
from .context import Context, context
from .ports import PORTS
from .release import pod_trouble
from .specs import Values

_LATE = "it did not tell all in time; start the cluster, check the network to it, or allow more time"
_OURS = "app.kubernetes.io/part-of=nativelink"
_COMPONENT = "app.kubernetes.io/component"


def asked(
    clusters: Mapping[str, Values], ask: Callable[["Farm", Object], None], timeout: float
) -> dict[str, dict[str, Any]]:
    """What `ask` writes down of each cluster within `timeout` seconds, with `error` if it is not all.

    Each cluster has a process. The client of Kubernetes is not made for threads.
    """
    processes: dict[str, tuple[multiprocessing.process.BaseProcess, Connection]] = {}
    fork = multiprocessing.get_context("fork")
    for name, values in clusters.items():
        ours, theirs = fork.Pipe(duplex=False)
        process = fork.Process(target=_work, args=(values, ask, timeout, theirs), daemon=True)
        process.start()
        theirs.close()
        processes[name] = process, ours
    found = {}
    deadline = time.monotonic() + timeout + 1
    for name, (process, answer) in processes.items():
        try:
            found[name] = answer.recv() if answer.poll(max(0, deadline - time.monotonic())) else {"error": _LATE}
        except EOFError:
            found[name] = {"error": "the process that asked it ended; run this again"}
        process.kill()
    return found


def _work(values: Values, ask: Callable[["Farm", Object], None], timeout: float, answer: Connection) -> None:
    found: Object = {}
    try:
        signal.signal(signal.SIGALRM, _late)
        signal.setitimer(signal.ITIMER_REAL, timeout)
        ask(Farm(values, timeout), found)
    except ApiError as error:
        found["error"] = f"{error}; {error.remedy}"
    except Exception as error:  # of an unexpected answer, which must be reported
        found["error"] = f"{type(error).__name__}: {error}"
    signal.setitimer(signal.ITIMER_REAL, 0)
    answer.send(found)


def _late(*_unused: object) -> None:
    raise ApiError(*_LATE.split("; "))


class Farm:
    """A farm on its cluster. Raises ApiError if something cannot be asked."""

    def __init__(self, values: Values, timeout: float) -> None:
        """Take the effective variables of the cluster, and the seconds that a call may take."""
        self.known: Context = context(values)
        self.values = self.known.variables
        self.api = Api(values["cluster_kubeconfig"], values["cluster_context"], timeout)
        self._pods: list[Object] | None = None
        self.namespace, self.workers = values["nativelink_namespace"], values["nativelink_workers_namespace"]

    def pods(self, component: str) -> list[Object]:
        """The pods of a component that have not ended. They are asked for once."""
        return [pod for pod in self._all_pods() if pod["metadata"]["labels"].get(_COMPONENT) == component]

    def versions(self) -> list[str]:
        """The versions of NativeLink that run, in CAS, scheduler and workers."""
        specs = [pod["spec"] for pod in self._all_pods()]
        containers = [each for spec in specs for each in (*spec.get("initContainers", ()), *spec["containers"])]
        images = [each["image"].partition("@")[0] for each in containers if each["name"] == "nativelink"]
        return sorted({image.rpartition(":")[2] for image in images})

    def trouble(self) -> list[str]:
        """What is wrong with pods that are not about to end: the first of each component, without the workers."""
        staying = [pod for pod in self._all_pods() if "deletionTimestamp" not in pod["metadata"]]
        parts = sorted({pod["metadata"]["labels"].get(_COMPONENT, "") for pod in staying} - {"worker"})
        found = (
            pod_trouble(pod for pod in staying if pod["metadata"]["labels"].get(_COMPONENT) == part) for part in parts
        )
        return [each for each in found if each]

    def _all_pods(self) -> list[Object]:
        if self._pods is None:
            paths = (f"/api/v1/namespaces/{namespace}/pods" for namespace in (self.namespace, self.workers))
            found = [pod for path in paths for pod in self.api.items(path, labelSelector=_OURS)]
            self._pods = [pod for pod in found if pod["status"].get("phase") not in ("Succeeded", "Failed")]
        return self._pods

    def pools(self) -> dict[str, Object]:
        """The Deployments of the pools, by pool; an empty object where there is none."""
        path = f"/apis/apps/v1/namespaces/{self.workers}/deployments"
        live = {each["metadata"]["name"]: each for each in self.api.items(path, labelSelector=_OURS)}
        return {pool.name: live.get(f"nativelink-worker-{pool.name}", {}) for pool in self.known.pools}

    def prometheus(self, url: str) -> Callable[[str], list[Object]] | None:
        """What answers PromQL: the Prometheus at a URL, or else the bundled one; None if there is neither."""
        if url:
            return lambda query: _answer(_fetched(f"{url.rstrip('/')}{_query(query)}"))
        pods = self.pods("prometheus") if self.known.features["bundled_prometheus"] else []
        if not pods:
            return None
        get = bundled_prometheus(self.api, pods[0])
        return lambda query: _answer(get(_query(query)))


def bundled_prometheus(api: Api, pod: Object) -> Callable[[str], bytes]:
    """What answers GET of a path on the bundled Prometheus, through the API server. It raises ApiError."""
    connection = api.connection(pod, PORTS["prometheus"])

    def get(path: str) -> bytes:
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        except (OSError, http.client.HTTPException) as error:
            raise ApiError(f"Prometheus does not answer ({error})", "check that its pod works") from error

    return get


def _query(query: str) -> str:
    return f"/api/v1/query?{urlencode({'query': query})}"


def _fetched(url: str) -> bytes:
    try:
        return bytes(open_url(url, timeout=5, http_agent="nativelink-gitops").read())
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ApiError(f"Prometheus does not answer ({error})", "correct its URL", "status_prometheus_url") from error


def _answer(body: bytes) -> list[Object]:
    return list(json.loads(body)["data"]["result"])
