"""The configurations of the trees, each started alone: NativeLink has to take it, open its ports and be healthy."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

from conformance import namespaces, pods, table
from conformance.plan import Plan
from conformance.pods import Network, Pod, PodEnded
from conformance.redis import Redis
from conformance.subject import Subject
from conformance.table import Row
from conformance.tools import LIBRARIES, Tools
from conformance.trees import INVENTORIES, trees
from conformance.workloads import SECRET, Workload, workloads_of
from testbed.waiting import ClusterError

_ADDRESS = re.compile(r'"((?:grpcs?|rediss?)://[^"]+)"')
_AT_A_TIME = 4


def check(plan: Plan, subject: Subject, network: Network) -> Iterator[Row]:
    """Yield a row for each configuration."""
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        rows: list[Row | Future[Row]] = []
        for name, tree in trees(plan.clusters, subject.version, plan.inventories):
            if tree:
                workloads = [each for each in workloads_of(tree).values() if each.settings]
                rows += [pool.submit(_row, subject, plan.tools, network, name, workload) for workload in workloads]
            else:
                reason = f"its tree is for another version, and its inventory is not one of {', '.join(INVENTORIES)}"
                rows.append(Row(subject.title, name, "all", table.NOT_RUN, reason))
        for row in rows:
            yield row if isinstance(row, Row) else row.result()


def _row(subject: Subject, tools: Tools, network: Network, tree: str, workload: Workload) -> Row:
    told = (subject.title, tree, f"{workload.component} starts")
    redis = [url for url in _urls(workload.settings) if url.scheme.startswith("redis")]
    if redis and not tools.redis:
        return Row(*told, table.NOT_RUN, f"no Redis: {tools.missing['redis']}")
    if workload.isolated and not namespaces.has_users():
        return Row(*told, table.NOT_RUN, namespaces.WITHOUT_USERS)
    pod = Pod(network, f"{workload.name}-0", workload, pods.programs(subject, tools), LIBRARIES)
    try:
        with _surroundings(pod, tools):
            # No node agent guards this machine's ports. A worker that needs that would rightly refuse to start.
            pod.start(tuple(word for word in workload.command if word != "guarded"))
            pod.await_ready()
            pod.terminate()
    except (ClusterError, PodEnded) as error:
        return Row(*told, table.FAILED, f"{error} ({pod.folder})")
    finally:
        pod.remove()
    return Row(*told, table.OK)


def _urls(settings: str) -> list[urllib.parse.SplitResult]:
    """Return the addresses that a configuration names."""
    return [urllib.parse.urlsplit(found) for found in _ADDRESS.findall(settings)]


@contextmanager
def _surroundings(pod: Pod, tools: Tools) -> Iterator[None]:
    """Point every name of a configuration to the pod itself, and run a Redis if the configuration has one."""
    urls = _urls(pod.workload.settings)
    hosts = {url.hostname for url in urls if url.hostname}
    literal = {host for host in hosts if _is_address(host)}
    pod.hosts(f"127.0.0.1 {host}" for host in sorted(hosts - literal))
    pod.claim(sorted(literal))
    redis = next((url for url in urls if url.scheme.startswith("redis")), None)
    if redis is None:
        yield
    else:
        password = SECRET if redis.password else ""
        with Redis(pod.namespace, Path(tools.redis), redis.port or 6379, password, pod.folder):
            yield


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
