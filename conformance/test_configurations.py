"""The configurations of the trees, each started alone: NativeLink has to take it, open its ports and be healthy."""

import json
import re
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import pytest

from conformance import namespaces
from conformance.pods import MACHINE, Network, Pod
from conformance.trees import INVENTORIES, trees
from conformance.workloads import SECRET, Workload, workloads_of
from testkit.redis import Redis
from testkit.servers import answering, server

_ADDRESS = re.compile(r'"((?:grpcs?|rediss?)://[^"]+)"')
_LITERAL = re.compile(r"[\d.]+|.*:.*")  # an IPv4 or IPv6 address
_AT_A_TIME = 4
# What clouds and Secrets give a pod, without which NativeLink refuses to start with a bucket, and Google's token.
_CLOUDS = {
    "AZURE_SAS_URL": "https://ours.blob.core.windows.net/cache?sig=x",
    "AZURE_TENANT_ID": "tenant",
    "AZURE_CLIENT_ID": "client",
    "AZURE_FEDERATED_TOKEN_FILE": "/etc/hosts",
}
_TOKEN = json.dumps({"access_token": "token", "token_type": "Bearer", "expires_in": 3600})


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a check of each process of each tree."""
    version, clusters, number = map(metafunc.config.getoption, ("nativelink", "clusters", "inventories"))
    found = [
        (name, process, workload)
        for name, tree in trees(clusters, version.version, number)
        for process, workload in (workloads_of(tree) if tree else {"everything": None}).items()
        if not workload or workload.settings
    ]
    metafunc.parametrize(("tree", "process", "workload"), found)


@pytest.fixture(scope="module")
def started(
    request: pytest.FixtureRequest, network: Network, missing: dict[str, str]
) -> Iterator[dict[str, Future[None]]]:
    """Start the processes, some at a time, and return what became of them by the name of the check."""
    with server(answering("200 OK", _TOKEN), str(MACHINE)) as port, ThreadPoolExecutor(_AT_A_TIME) as pool:
        start = partial(_start, network=network, missing=missing, google=f"{MACHINE}:{port}")
        checks = [item for item in request.session.items if item.path == request.path]
        yield {item.name: pool.submit(start, item.callspec.params["workload"]) for item in checks}
        pool.shutdown(cancel_futures=True)


def test_starts(
    request: pytest.FixtureRequest, started: dict[str, Future[None]], tree: str, process: str, workload: Workload | None
) -> None:
    """{process} starts"""
    started[request.node.name].result()


def _start(workload: Workload | None, network: Network, missing: dict[str, str], google: str) -> None:
    """Start the process with every name of its configuration leading to itself, and a Redis if it has one."""
    if not workload:
        pytest.skip(f"its tree is for another version, and no inventory of {' and '.join(INVENTORIES)} has it")
    urls = [urllib.parse.urlsplit(found) for found in _ADDRESS.findall(workload.settings)]
    redis = next((url for url in urls if url.scheme.startswith("redis")), None)
    if redis and "redis" in missing:
        pytest.skip(f"no Redis: {missing['redis']}")
    if workload.isolated and not namespaces.has_users():
        pytest.skip(namespaces.WITHOUT_USERS)
    hosts = {url.hostname for url in urls if url.hostname}
    literal = {host for host in hosts if _LITERAL.fullmatch(host)}
    with ExitStack() as stack:
        pod = Pod(network, f"{workload.name}-0", workload, environment={**_CLOUDS, "GCE_METADATA_HOST": google})
        stack.callback(pod.remove)
        pod.hosts(f"127.0.0.1 {host}" for host in sorted(hosts - literal))
        pod.claim(sorted(literal))
        if redis:
            stack.callback(Redis(pod.folder, pod.enter, redis.port or 6379, SECRET if redis.password else "").stop)
        # No node agent guards this machine's ports. A worker that needs that would rightly refuse to start.
        pod.start(word for word in workload.command if word != "guarded")
        pod.await_ready()
        pod.terminate()
