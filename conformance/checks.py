"""The checks of a farm. Each check returns what it saw, and raises ClusterError or AssertionError if that is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ansible_collections.nativelink.gitops.plugins.plugin_utils.context import PORTS
from ansible_collections.nativelink.gitops.plugins.plugin_utils.monitoring import REPORT_INTERVAL
from ansible_collections.nativelink.gitops.plugins.plugin_utils.versions import redis_backend

from conformance import attacks, mutual_tls, namespaces, table
from conformance.farm import CPUS, Drained, Farm, await_running, cas_stores, pool, running, succeeded
from conformance.plan import Plan
from conformance.pods import Network, Pod, PodEnded
from conformance.subject import Subject
from conformance.table import Row
from conformance.tools import Tools
from testbed.waiting import ClusterError, until
from testkit.bazel import Bazel

DRAINS = 10
_PATIENCE = 60.0  # seconds, for a build that takes a few
_POOL = {"pool": "default"}
_TOOL = re.compile(r"served by process (\d+), request (\d+), environment (.*), arguments")
# NativeLink, Kubernetes or a shell would change each part of it, if it were not escaped.
_ENVIRONMENT = "$$ $HOME ${HOME} $(HOME)"
_LEFT = "left-by-the-tool"
_SERIES = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')
# NativeLink gives its series these labels too, whose values have no bound.
_UNBOUNDED = {
    "execution_action_digest",
    "execution_instance",
    "execution_priority",
    "execution_worker_id",
    "service_instance_id",
}
_MOST_SERIES = 500  # of a pod; its histograms have most of them


# With Bazel


def builds(farm: Farm, bazel: Bazel) -> str:
    """Build with an empty cache."""
    return _counted(bazel.build("plain", timeout=2 * _PATIENCE), "remote", 20)


def hits(farm: Farm, bazel: Bazel) -> str:
    """Build the same once more, in an empty output folder."""
    return _counted(bazel.build("plain", timeout=_PATIENCE), "remote cache hit", 20)


def takes_unknown_properties(farm: Farm, bazel: Bazel) -> str:
    """Ask for a property that the scheduler's configuration does not name.

    v1.6.6 then considers all workers, whether they offer the property or not. v1.3.2 lets the action wait.
    """
    if farm.version != "v1.3.2":
        return _asking("color", "blue")(farm, bazel)
    platform = {**_POOL, "color": "blue"}
    with running(farm.client("--seconds=0-0", "--timeout=20", platform=platform)) as client:
        time.sleep(2)
        succeeded(farm.load("--actions=4", "--seconds=0-0", f"--timeout={_PATIENCE}", platform=_POOL))
        said, _ = client.communicate(timeout=_PATIENCE)
    (outcome,) = json.loads(said)["actions"]
    if "DeadlineExceeded" not in outcome["outcome"]:
        raise ClusterError(f"v1.3.2 should let the action wait, but it ended: {outcome['outcome']}")
    return "the action waits, as with v1.3.2, and others run meanwhile"


def _asking(name: str, value: str) -> Callable[[Farm, Bazel], str]:
    def builds_with(farm: Farm, bazel: Bazel) -> str:
        done = bazel.build(f"with-{name}", rules=4, properties={name: value}, timeout=_PATIENCE)
        return _counted(done, "remote", 4)

    return builds_with


def _counted(found: dict[str, int], kind: str, number: int) -> str:
    if found != {kind: number}:
        raise ClusterError(f"expected {number} {kind}, but found {found}")
    return f"{number} {kind}"


# With a client of the API


def shares_cpus(farm: Farm) -> str:
    """Run actions that ask for half of a worker's CPUs, on two workers."""
    most = _at_once(farm, {**_POOL, "cpu_count": str(CPUS // 2)})
    if most > 4:
        raise ClusterError(f"{most} actions ran at once, but at most 4 fit")
    return f"{most} of 6 at once"


def shares_slots(farm: Farm) -> str:
    """Run the same actions without a request for CPUs, as the counter-run."""
    most = _at_once(farm, _POOL)
    if most != 6:
        raise ClusterError(f"only {most} of 6 actions ran at once, so the check of cpu_count shows nothing")
    return "6 of 6 at once"


def _at_once(farm: Farm, platform: dict[str, str]) -> int:
    report = succeeded(farm.load("--actions=6", "--seconds=3-3", f"--timeout={_PATIENCE}", platform=platform))
    moments = [(each["began"], 1) for each in report] + [(each["ended"], -1) for each in report]
    if not all(at for at, _ in moments):
        raise ClusterError("the results do not say when the actions ran")
    now = most = 0
    for _, change in sorted(moments):
        now += change
        most = max(most, now)
    return most


def answers_again(farm: Farm) -> str:
    """Ask for an action twice, with a client that does not look into the cache."""
    command = farm.recorded("0", salt="again")
    for _ in range(2):
        succeeded(farm.load(*command, f"--timeout={_PATIENCE}", platform=_POOL))
    if (begun := farm.begun("again")) != {"0": 1}:
        raise ClusterError(f"the action ran {begun['0']} times")
    return "the second Execute was answered from the action cache"


def refuses_wrong_bytes(farm: Farm) -> str:
    """Send wrong bytes to the public listener, as clients do."""
    return _refused(farm.cas[0], f"grpc://{farm.cas[0].address}:50051", "main")


def refuses_wrong_bytes_of_workers(farm: Farm) -> str:
    """Send wrong bytes to every CAS that a worker's configuration writes to."""
    worker = farm.workers["default"][0]
    stores = sorted(cas_stores(worker.workload))
    (told,) = {_refused(worker, address, instance) for address, instance in stores}
    return f"{told}, at {len(stores)} addresses"


def _refused(pod: Pod, cas: str, instance: str) -> str:
    put = ("/reapi-load", "put", f"--cas-endpoint={cas}", f"--instance={instance}")
    right, wrong = (json.loads(pod.run(*put, *more)) for more in (("--right",), ()))
    if set(right.values()) != {"taken, and read back"}:
        raise ClusterError(f"right bytes were not taken: {right}")
    if taken := {way: told for way, told in wrong.items() if not told.startswith("refused")}:
        raise ClusterError(f"wrong bytes were not refused: {taken}")
    return "refused by BatchUpdateBlobs and ByteStream"


def drains(farm: Farm) -> str:
    """Drain ten workers under load, each after its replacement has started."""
    salt, actions = "drain", 40 * DRAINS
    command = farm.client(
        *farm.recorded("$(({index} % 6 + 1))", salt),
        f"--actions={actions}",
        f"--timeout={10 * _PATIENCE}",
        platform=_POOL,
    )
    gone: list[Future[Drained]] = []
    with ThreadPoolExecutor(DRAINS) as background, running(command) as client:
        for _ in range(DRAINS):
            await_running(farm, farm.workers["default"][0], 1)
            gone.append(background.submit(farm.drain, farm.replace("default")))
        if client.poll() is not None:
            raise ClusterError("the load ended before the last drain began, so the check shows nothing")
        done = [each.result() for each in gone]
        said, _ = client.communicate(timeout=10 * _PATIENCE)
    again = sum(each["retries"] for each in succeeded(json.loads(said)))
    if lost := _twice(farm, salt):
        raise ClusterError(f"{lost} of {actions} actions were begun more than once")
    took = [each.seconds for each in done]
    seen = [
        f"{actions} actions, {sum(each.running for each in done)} of them on drained workers: 0 lost",
        f"{again} retried by the client",  # offered to drained workers more often than max_job_retries
        f"{min(took):.0f} to {max(took):.0f} s a drain",
    ]
    return ", ".join(seen)


def loses_without_drain(farm: Farm) -> str:
    """Terminate a worker without its hook, as the counter-run."""
    salt, actions = "killed", 2 * CPUS
    arguments = [*farm.recorded("6", salt), f"--actions={actions}", f"--timeout={2 * _PATIENCE}"]
    with running(farm.client(*arguments, platform=_POOL)) as client:
        await_running(farm, farm.workers["default"][0], 1)
        until("its actions to begin", lambda: len(farm.begun(salt)) == actions, 30)
        farm.replace("default").terminate()
        said, _ = client.communicate(timeout=2 * _PATIENCE)
    succeeded(json.loads(said))
    if not (lost := _twice(farm, salt)):
        raise ClusterError("no action was lost, so the check of the drains shows nothing")
    return f"{lost} of {actions} actions lost, and begun again"


def _twice(farm: Farm, salt: str) -> int:
    return sum(number > 1 for number in farm.begun(salt).values())


def keeps_tools_out(farm: Farm) -> str:
    """Ask a pool without persistent workers for one."""
    report = _tools(farm, "default", "--actions=1", "--timeout=10")
    if left := [worker.name for worker in farm.workers["default"] if (farm.work_folder(worker) / _LEFT).exists()]:
        raise ClusterError(f"{', '.join(left)} started a persistent worker: {report['actions'][0]['errors']}")
    outcome = report["actions"][0]["outcome"]
    return "the action ran alone" if outcome == "ok" else f"the action did not run: {outcome}"


def keeps_tools(farm: Farm) -> str:
    """Ask a pool with persistent workers for one three times."""
    served = _served(farm)
    if len({process for process, _, _ in served}) != 1 or [number for _, number, _ in served] != ["1", "2", "3"]:
        raise ClusterError(f"three actions were served by (process, request): {[each[:2] for each in served]}")
    return f"one process served requests 1 to {len(served)}"


def gives_tools_the_environment(farm: Farm) -> str:
    """Compare the environment of a persistent worker with the pool's env."""
    return _same_environment({environment for _, _, environment in _served(farm)})


def gives_actions_the_environment(farm: Farm) -> str:
    """Compare the environment of an action that runs alone with the pool's env."""
    command = f"--command={json.dumps(['/reapi-load', 'tool'])}"
    (action,) = succeeded(farm.load(command, "--actions=1", f"--timeout={_PATIENCE}", platform={"pool": "persistent"}))
    return _same_environment({environment for _, _, environment in _TOOL.findall(action["errors"])})


def _same_environment(found: set[str]) -> str:
    if found != {_ENVIRONMENT}:
        raise ClusterError(f"CONFORMANCE_ENV is {sorted(found)} in the process, but {_ENVIRONMENT!r} in the pool's env")
    return "CONFORMANCE_ENV as in the pool's env"


def _served(farm: Farm) -> list[tuple[str, str, str]]:
    """Run three actions one after another. Return the process, the request's number and the environment of each."""
    report = succeeded(_tools(farm, "persistent", "--actions=3", "--concurrency=1", f"--timeout={_PATIENCE}"))
    found = [_TOOL.search(each["errors"]) for each in report]
    return [match.groups() if match else ("", "", "") for match in found]  # type: ignore[misc]


def _tools(farm: Farm, pool: str, *arguments: str) -> dict[str, Any]:
    asked = {"pool": pool, "supports-workers": "1", "requires-worker-protocol": "json"}
    command = ["/reapi-load", "tool", f"--of={pool}-{time.monotonic_ns()}", "@arguments-{index}"]
    return farm.load(f"--command={json.dumps(command)}", *arguments, platform=asked)


def drains_beside_tools(farm: Farm) -> str:
    """Drain the worker whose persistent worker left a file in its work directory."""
    worker = farm.workers["persistent"][0]
    if not (farm.work_folder(worker) / _LEFT).exists():
        raise ClusterError("the tool left no file, so the check shows nothing")
    drained = farm.drain(farm.replace("persistent"))
    return f"{drained.seconds:.0f} s"


# With a collector


@dataclass(frozen=True)
class Series:
    """A series that the collector serves, and its latest value."""

    name: str
    labels: dict[str, str]
    value: float


def _series(farm: Farm, port: int) -> list[Series]:
    found = [_SERIES.fullmatch(line) for line in farm.scraped(port).splitlines() if not line.startswith("#")]
    return [Series(each[1], dict(_LABEL.findall(each[2] or "")), float(each[3])) for each in found if each]


def reports(farm: Farm) -> str:
    """Run actions, some of them again, and read what all workloads have reported.

    The second time the action cache answers. NativeLink counts each completed action twice, the collector once.
    Workers of v1.3.2 have nothing to report.
    """
    workers = [] if farm.version == "v1.3.2" else farm.workers["default"]
    senders = {"cas": farm.cas, "scheduler": [farm.scheduler], "worker": workers}
    expected = {(component, pod.name) for component, pods in senders.items() for pod in pods}

    def reported() -> Counter[tuple[str, str]]:
        return Counter((each.labels["component"], each.labels["pod"]) for each in _series(farm, PORTS["reported"]))

    def total(name: str, **labels: str) -> float:
        found = _series(farm, PORTS["reported"])
        return sum(each.value for each in found if each.name == name and labels.items() <= each.labels.items())

    def hits() -> float:
        read = {"cache_operation_name": "read", "cache_operation_result": "hit"}
        return total("nativelink_cache_operations_total", cache_type="ac_lookup", **read)

    def done() -> bool:
        return {*reported()} == expected and hits() == already + 8

    time.sleep(3)  # until the scheduler has exported what it did before
    before, already = total("nativelink_execution_completed_count_total"), hits()
    for _ in range(2):
        succeeded(farm.load("--actions=8", "--seconds=0-0", "--salt=reports", f"--timeout={_PATIENCE}", platform=_POOL))

    until(f"{len(expected)} pods to report, and 8 hits", done, 4 * REPORT_INTERVAL, lambda: f": {reported()}, {hits()}")
    _recorded(farm)
    if unbounded := {name for each in _series(farm, PORTS["reported"]) for name in each.labels} & _UNBOUNDED:
        raise ClusterError(f"series have labels without a bound: {', '.join(sorted(unbounded))}")
    if (completed := total("nativelink_execution_completed_count_total") - before) != 8:
        raise ClusterError(f"{completed:.0f} actions are counted as completed, but 8 were")
    pod, most = max(((pod, number) for (_, pod), number in reported().items()), key=lambda each: each[1])
    if most > _MOST_SERIES:
        raise ClusterError(f"{pod} has {most} series, more than {_MOST_SERIES}")
    return f"{len(expected)} pods; {pod} has most series, {most}"


def ignores_workers(farm: Farm) -> str:
    """Send the demand of a second scheduler to the worker's port, and then, as the counter-run, to the scheduler's."""
    variable = "OTEL_EXPORTER_OTLP_ENDPOINT"
    senders = {"worker": farm.workloads["worker default"], "scheduler": farm.scheduler.workload}

    def queued() -> float:
        # Before the first report there is no series.
        return sum(
            each.value
            for each in _series(farm, PORTS["metrics"])
            if each.name == "nativelink_execution_active_count" and each.labels["execution_stage"] == "queued"
        )

    seen = {}
    for sender, workload in senders.items():
        with farm.second_scheduler(**{variable: workload.environment[variable]}) as second:
            there = f"--execute-endpoint=grpc://{second.address}:50052"  # instead of the first scheduler's
            with running(farm.client("--hold=120", "--actions=3", there, platform=_POOL)) as client:
                assert client.stdout
                told = [client.stdout.readline() for _ in range(2)]
                if told[1:] != ['{"queued": 3}\n']:
                    raise ClusterError(f"the client should hold 3 actions, but it printed {told}")
                most, end = 0.0, time.monotonic() + 10
                while time.monotonic() < end:
                    most = max(most, queued())
                    time.sleep(0.2)
                seen[sender] = most
    if seen != {"worker": 0, "scheduler": 3}:
        raise ClusterError(f"3 queued actions raised the demand by port to {seen}, not by the scheduler's port alone")
    return "3 queued actions count at the scheduler's port only"


def reports_trouble(farm: Farm) -> str:
    """Send wrong bytes, lose two workers, break a volume, and read what all workloads have reported."""
    refuses_wrong_bytes(farm)
    arguments = (*farm.recorded("8", "trouble"), f"--actions={2 * CPUS}", f"--timeout={2 * _PATIENCE}")
    with running(farm.client(*arguments, platform=_POOL)) as client:
        ended, frozen = farm.workers["default"]
        for worker in (ended, frozen):
            await_running(farm, worker, 1)
            farm.replace("default")
        frozen.freeze()
        ended.kill()
        said, _ = client.communicate(timeout=2 * _PATIENCE)
    succeeded(json.loads(said))
    frozen.kill()
    shutil.rmtree(farm.cas[0].folder / "volumes" / "data" / "cas" / "temp")
    with suppress(ClusterError):
        farm.load("--actions=16", "--seconds=0-0", "--salt=broken", "--timeout=30", platform=_POOL)
    time.sleep(2 * REPORT_INTERVAL)
    return _recorded(farm, "-trouble")


def _recorded(farm: Farm, suffix: str = "") -> str:
    """Write what the workloads have reported into the folder CONFORMANCE_SCRAPES, if it is stated."""
    text = farm.scraped(PORTS["reported"])
    if folder := os.environ.get("CONFORMANCE_SCRAPES"):
        name = f"{farm.version}-{'redis' if farm.redis else 'memory'}{suffix}"
        Path(folder, f"{name}.txt").write_text(text)
        if not farm.redis:
            Path(folder, f"{name}-demand.txt").write_text(farm.scraped(PORTS["metrics"]))
    return f"{len(text.splitlines())} lines"


BY_BAZEL: dict[str, Callable[[Farm, Bazel], str]] = {
    "Bazel builds": builds,
    "another build with an empty output folder is all cache hits": hits,
    "Bazel asks for cpu_count": _asking("cpu_count", "1"),
    "Bazel asks for memory_kb": _asking("memory_kb", "1048576"),
    "Bazel asks for container-image": _asking("container-image", "docker://docker.io/library/debian:13"),
    "Bazel asks for a property that no inventory names": takes_unknown_properties,
}
BY_CLIENT: dict[str, Callable[[Farm], str]] = {
    "cpu_count=4: 4 actions at once on two workers of 8": shares_cpus,
    "counter-run without cpu_count: all at once": shares_slots,
    "a repeated Execute is answered from the action cache": answers_again,
    "wrong bytes of a client are refused": refuses_wrong_bytes,
    "wrong bytes on a worker's path are refused": refuses_wrong_bytes_of_workers,
    f"{DRAINS} drains under load lose nothing": drains,
    "counter-run without drain.sh: actions are lost": loses_without_drain,
    "persistent workers: off means off": keeps_tools_out,
}
BY_TOOLS: dict[str, Callable[[Farm], str]] = {
    "persistent workers: one process serves": keeps_tools,
    "persistent workers: with the pool's env": gives_tools_the_environment,
    "persistent workers: an action that runs alone has the pool's env": gives_actions_the_environment,
    "persistent workers: the drain ends": drains_beside_tools,
}


@dataclass(frozen=True)
class Kind:
    """A kind of farm: variables, checks by their names, and a change of all configurations."""

    where: str
    variables: dict[str, Any]
    by_bazel: dict[str, Callable[[Farm, Bazel], str]]
    by_client: dict[str, Callable[[Farm], str]]
    change: Callable[[str], str] = str

    @property
    def folder(self) -> str:
        """The name of the folder of its farm, without spaces."""
        return self.where.partition(", ")[2].replace(" ", "-")

    @property
    def on_redis(self) -> bool:
        """True if the farm has a Redis."""
        return self.variables.get("nativelink_scheduler_backend") == "redis"

    def only(self, text: str) -> Kind:
        """Return the same kind of farm, with only the checks whose names, or that of the farm, contain a text."""
        if text in self.where:
            return self
        by_bazel = {title: do for title, do in self.by_bazel.items() if text in title}
        return replace(self, by_bazel=by_bazel, by_client={t: do for t, do in self.by_client.items() if text in t})


_TOOLS = pool("persistent", 1, persistent_workers=True, isolation="none", env={"CONFORMANCE_ENV": _ENVIRONMENT})
BAZEL_REPORTED: dict[str, Callable[[Farm, Bazel], str]] = {
    "Bazel builds with metrics on": builds,
    "another build with metrics on is all cache hits": hits,
}
BY_DEMAND: dict[str, Callable[[Farm], str]] = {
    "a report at the worker's port does not change the demand": ignores_workers,
}
BY_METRICS: dict[str, Callable[[Farm], str]] = {
    "all workloads report to the collector": reports,
    "the collector is told of trouble by all workloads": reports_trouble,
}
_REPORTING: dict[str, Any] = {
    "nativelink_scheduler_worker_timeout": 10,  # seconds until the scheduler gives a frozen worker up
    "nativelink_metrics": ["scheduler", "cas", "worker"],
    "nativelink_prometheus": "bundled",
}
_ONE_WORKER: dict[str, Any] = {"nativelink_worker_pools": [pool("default", 1)], "nativelink_worker_isolation": "users"}
_WRITERS: dict[str, Any] = {"nativelink_writer_peers": [{"namespaceSelector": {}}]}
_MUTUAL_TLS: dict[str, Any] = {
    "nativelink_mutual_tls_secret": "mutual-tls",
    "nativelink_mutual_tls_expires": "2100-01-01",
    "nativelink_worker_isolation": "users",
}
_BY_TLS = {"an action's result is cached": answers_again, **mutual_tls.BY_CLIENT}
KINDS = (
    Kind("farm, memory", {}, BY_BAZEL, BY_CLIENT),
    Kind("farm, Redis", {"nativelink_scheduler_backend": "redis"}, BY_BAZEL, BY_CLIENT),
    Kind("farm, metrics", _REPORTING, BAZEL_REPORTED, BY_DEMAND | BY_METRICS),
    Kind(
        "farm, metrics and Redis", {"nativelink_scheduler_backend": "redis", **_REPORTING}, BAZEL_REPORTED, BY_METRICS
    ),
    Kind("farm, tools", {"nativelink_worker_pools": [_TOOLS]}, {}, BY_TOOLS),
    Kind("farm, attacks", {**_ONE_WORKER, **_WRITERS}, attacks.BY_BAZEL, attacks.AGAINST_USERS),
    Kind(
        "farm, isolation none",
        {**_ONE_WORKER, "nativelink_worker_isolation": "none"},
        {},
        attacks.AGAINST_NONE,
        attacks.writable_results,
    ),
    Kind("farm, mutual TLS", {**_MUTUAL_TLS, **_WRITERS}, {}, _BY_TLS),
)


def check(plan: Plan, subject: Subject, network: Network) -> Iterator[Row]:
    """Yield a row for each check of each kind of farm, if the plan selects its name."""
    folder, tools = network.folder / f"farm-{subject.version}", plan.tools
    with _client(tools, folder) as bazel:
        for kind in (each.only(plan.only) for each in KINDS):
            if not (kind.by_bazel or kind.by_client):
                continue
            if kind.on_redis and not redis_backend(subject.version):
                reason = f"the validation refuses the Redis backend for {subject.version}"
                yield Row(subject.title, kind.where, "all checks", table.NOT_RUN, reason)
            elif kind.on_redis and not tools.redis:
                reason = f"no Redis: {tools.missing['redis']}"
                yield Row(subject.title, kind.where, "all checks", table.NOT_RUN, reason)
            elif kind.variables.get("nativelink_worker_isolation") and not namespaces.has_users():
                yield Row(subject.title, kind.where, "all checks", table.NOT_RUN, namespaces.WITHOUT_USERS)
            else:
                farm = Farm(subject, tools, network, folder / kind.folder, kind.variables)
                farm.change = kind.change
                yield from _checked(subject, kind, farm, bazel)


def _checked(subject: Subject, kind: Kind, farm: Farm, bazel: Bazel | None) -> Iterator[Row]:
    starts = (subject.title, kind.where, "the farm starts, and its scheduler gives actions to workers")
    try:
        with farm:
            guarded = f"guard.sh restarted it {farm.dead_starts} times" if kind.on_redis else ""
            yield Row(*starts, table.OK, guarded)
            if bazel:
                addresses = farm.endpoints
                bazel.endpoints = [
                    f"--remote_executor={addresses['execute']}",
                    f"--remote_cache={addresses['cas']}",
                ]
            for title, build in kind.by_bazel.items():
                told = (subject.title, kind.where, title)
                if bazel:
                    yield _row(*told, lambda build=build: build(farm, bazel))  # type: ignore[misc]
                else:
                    yield Row(*told, table.NOT_RUN, f"no Bazel: {farm.tools.missing['bazel']}")
            for title, do in kind.by_client.items():
                yield _row(subject.title, kind.where, title, lambda do=do: do(farm))  # type: ignore[misc]
    except (ClusterError, PodEnded) as error:
        yield Row(*starts, table.FAILED, str(error))


def _row(version: str, where: str, title: str, do: Callable[[], str]) -> Row:
    try:
        return Row(version, where, title, table.OK, do())
    except (ClusterError, PodEnded, AssertionError) as error:
        return Row(version, where, title, table.FAILED, str(error))


@contextmanager
def _client(tools: Tools, folder: Path) -> Iterator[Bazel | None]:
    """Yield Bazel if it is available, and None otherwise."""
    if not tools.bazel:
        yield None
        return
    folder.mkdir(parents=True)
    client = Bazel(folder)
    try:
        yield client
    finally:
        client.run("shutdown")
