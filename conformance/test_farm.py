"""The checks of farms: builds, drains, persistent workers and metrics."""

import json
import os
import re
import shutil
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import json5
import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render
from ansible_collections.nativelink.gitops.plugins.plugin_utils.monitoring import REPORT_INTERVAL
from ansible_collections.nativelink.gitops.plugins.plugin_utils.ports import PORTS
from ansible_collections.nativelink.gitops.plugins.plugin_utils.reapi import Identity, Reapi
from ansible_collections.nativelink.gitops.plugins.plugin_utils.results import Results
from ansible_collections.nativelink.gitops.plugins.plugin_utils.scheduler_log import assignments, ended
from ansible_collections.nativelink.gitops.plugins.plugin_utils.versions import row

from conformance.farm import CPUS, ENVIRONMENT, KINDS, PATIENCE, Farm, Tell, await_running, on, succeeded
from conformance.namespaces import ROOT
from conformance.pods import Pod
from testbed.waiting import until
from testkit.bazel import Bazel
from testkit.client import reported

_DRAINS = 10
_PROPERTIES = {"cpu_count": "1", "memory_kb": "1048576", "container-image": "docker://docker.io/library/debian:13"}
_TOOL = re.compile(r"served by process (\d+), request (\d+), environment (.*), arguments")
_PLAIN, _COMPRESSED = ("batch", "stream"), ("batch ZSTD", "stream ZSTD")
_CONTENT = ("cas", "slice", "client_writers")  # the ports of content
_LEFT = "left-by-the-tool"
_RUN = ["/usr/bin/python3", "/tool.py"]
_ZSTD = 1  # by the number of its protocol
_SERIES = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
# NativeLink gives its series these labels too, whose values have no bound.
_UNBOUNDED = {"execution_action_digest", "execution_instance", "execution_priority"}
_UNBOUNDED |= {"execution_worker_id", "service_instance_id"}
_MOST_SERIES = 500  # of a pod; its histograms have most of them


@on(*KINDS)
def test_starts(farm: Farm, tell: Tell) -> None:
    """the farm starts, and its scheduler gives actions to workers"""
    if farm.redis:
        restarts = farm.scheduler.log.read_text(errors="replace").count("starting it anew")
        tell(f"guard.sh restarted it {restarts} times")


# With Bazel


@on("memory", "redis", "metrics", "metrics-redis", "bucket")
def test_build(farm: Farm, bazel: Bazel) -> None:
    """Bazel builds, and again from nothing: all cache hits"""
    assert bazel.build("plain", timeout=2 * PATIENCE) == {"remote": 20}
    assert bazel.build("plain", timeout=PATIENCE) == {"remote cache hit": 20}


@on("memory", "redis")
def test_trace(farm: Farm, bazel: Bazel) -> None:
    """log and action cache say which workers ran the actions of a build, and when"""
    bazel.build("traced", rules=2, timeout=PATIENCE)
    log = farm.scheduler.log.read_text(errors="replace")
    hashes = re.findall(r'ActionUniqueKey .*?DigestInfo\(\\"([0-9a-f]{64})', log)[-2:]
    runs = [run for each in hashes for run in assignments(log, each)]
    assert [run.digest[:64] for run in runs] == hashes
    if farm.version != "v1.3.2":  # it does not log the invocation
        assert [*assignments(log, runs[0].bazel["tool_invocation_id"])] == runs
        assert all(ended(log, run.operation) for run in runs)
    results = Results(HTTPConnection(farm.cas[0].address, PORTS["cas"], timeout=PATIENCE), "main")
    for run in runs:
        result = results.result(run.digest)
        assert result
        assert (result["exit_code"], result["worker"]) == (0, run.worker)
        assert result["worker"][:-36] in [pod.name for pod in farm.workers["default"]]
        assert results.properties(run.digest) == {"OSFamily": "Linux", "pool": "default"}
        moments = list(result["stages"].values())
        assert len(moments) == 9
        assert moments == sorted(moments)
    assert results.result(f"{'0' * 64}/1") is None


@on("memory", "redis")
@pytest.mark.parametrize("asked", _PROPERTIES)
def test_property(farm: Farm, bazel: Bazel, asked: str) -> None:
    """Bazel asks for {asked}"""
    properties = {asked: _PROPERTIES[asked]}
    assert bazel.build(f"with-{asked}", rules=4, properties=properties, timeout=PATIENCE) == {"remote": 4}


@on("memory", "redis")
def test_unknown_property(farm: Farm, bazel: Bazel, tell: Tell) -> None:
    """Bazel asks for a property that no inventory names

    v1.6.6 then considers all workers, whether they offer the property or not. v1.3.2 lets the action wait.
    """
    if row(farm.version).undeclared_properties:
        built = bazel.build("with-color", rules=4, properties={"color": "blue"}, timeout=PATIENCE)
        assert built == {"remote": 4}
        return
    with farm.loaded("--seconds=0-0", "--timeout=20", color="blue") as client:
        time.sleep(2)
        succeeded(farm.load("--actions=4", "--seconds=0-0", f"--timeout={PATIENCE}"))
        (outcome,) = reported(client)["actions"]
    assert "DeadlineExceeded" in outcome["outcome"]
    tell("the action waits, as with v1.3.2, and others run meanwhile")


@on("small")
def test_eviction_storm(farm: Farm, bazel: Bazel, tell: Tell) -> None:
    """a build larger than the CAS fails with the runbooks' words

    A smaller build succeeds afterwards.
    """
    names = [f"leaf{number}" for number in range(20)]
    leaf = 'genrule(name = "{0}", outs = ["{0}.bin"], cmd = "head -c 500000 /dev/zero > $@; echo {0} >> $@")\n'
    last = f'genrule(name = "last", srcs = {json.dumps(names)}, outs = ["last.txt"], cmd = "cat $(SRCS) | md5sum > $@")'
    with pytest.raises(AssertionError, match="FAILED_PRECONDITION") as failed:
        bazel.timed("".join(map(leaf.format, names)) + last, jobs=8)
    said = re.search("not found in either fast or slow store|missing from CAS", str(failed.value))
    assert said, failed.value
    assert said[0] in (ROOT / "docs/runbooks.md").read_text()
    assert bazel.build("afterwards", timeout=PATIENCE) == {"remote": 20}
    assert bazel.build("afterwards", timeout=PATIENCE) == {"remote cache hit": 20}
    tell(said[0])


# With a client of the API


@on("memory", "redis")
def test_cpus(farm: Farm, tell: Tell) -> None:
    """cpu_count=4: 4 at once on two workers of 8; without, all

    The latter is the counter-run. On Redis the demand of the former is that of three workers.
    """
    assert _at_once(farm) == (6, 6 if farm.redis else 0)
    most, demand = _at_once(farm, cpu_count=str(CPUS // 2))
    assert most <= 4
    assert demand == (3 * CPUS if farm.redis else 0)
    tell(f"{most} of 6 at once")


def _at_once(farm: Farm, **platform: str) -> tuple[int, int]:
    """Run six actions. Return how many of them ran at once, and the most slots that demand.lua counted meanwhile."""
    script = render.tree({**farm.values, "nativelink_prometheus": "bundled"}).get("monitoring/demand.lua")
    demand = 0
    with farm.loaded("--actions=6", "--seconds=3-3", f"--timeout={PATIENCE}", **platform) as client:
        while farm.redis and client.poll() is None:
            said = farm.redis.run("/opt/redis-stack/bin/redis-cli", "-e", "EVAL", script, "0").split()
            demand = max(demand, int(said[said.index("default:demand") + 1]))
            time.sleep(0.2)
        report = succeeded(reported(client))
    ends = (("executionStart", 1), ("executionCompleted", -1))
    moments = [(each["moments"][name], change) for each in report for name, change in ends]
    now = most = 0
    for _, change in sorted(moments):
        now += change
        most = max(most, now)
    return most, demand


@on("memory", "redis", "mutual-tls")
def test_execute_again(farm: Farm) -> None:
    """a repeated Execute is answered from the action cache

    The client does not look into the cache.
    """
    for _ in range(2):
        succeeded(farm.load(*farm.recorded("0", "again")))
    assert farm.begun("again") == {"0": 1}


@on("memory", "redis")
def test_do_not_cache(farm: Farm) -> None:
    """do_not_cache has no effect (this fails once it has one)"""
    for _ in range(2):
        succeeded(farm.load(*farm.recorded("0", "uncached"), "--do-not-cache"))
    assert farm.begun("uncached") == {"0": 1}, "it has: say so in docs/clients.md"


@on("memory", "redis", "none")
def test_missing_program(farm: Farm, tell: Tell) -> None:
    """a program that does not exist is tried once

    With isolation it is not NativeLink that starts the program. Without, it tries nine times: the counter-run.
    """
    (action,) = farm.load('--command=["/no/such/program"]', "--retries=0", f"--timeout={PATIENCE}")["actions"]
    if farm.workers["default"][0].workload.isolated:
        assert action["outcome"] == "failed: exit 127"
    else:
        assert "attempted to execute too many times 9 > 8 times" in action["outcome"]
    tell(f"{action['outcome']} {action['errors']}")


@on("memory", "redis")
def test_no_number(farm: Farm, tell: Tell) -> None:
    """cpu_count=two waits, and other actions run"""
    with farm.loaded("--seconds=0-0", "--timeout=10", cpu_count="two") as client:
        time.sleep(2)
        succeeded(farm.load("--actions=4", "--seconds=0-0", f"--timeout={PATIENCE}"))
        (action,) = reported(client)["actions"]
    assert "DeadlineExceeded" in action["outcome"]
    errors = farm.scheduler.log.read_text(errors="replace").count("to platform property to u64: two")
    assert errors
    tell(f"{errors} errors of the scheduler")


@on("memory", "redis")
def test_run_again(farm: Farm, tell: Tell) -> None:
    """an action that runs again has the same result"""
    script = "echo begun >> /ledger/twice-0; mkdir -p out/deep/empty; seq 100000 > out/deep/numbers; "
    script += "cat given > out/copy; ln -s numbers out/deep/link; printf 'no newline' > plain; echo said; echo bad >&2"
    command = f"--command={json.dumps(['/bin/sh', '-c', f'umask 0; {script}'])}"
    asked = (command, "--input=given=from the client", "--output=out", "--output=plain", f"--timeout={PATIENCE}")
    ran = [succeeded(farm.load(*asked, "--anew", "--salt=twice"))[0] for _ in range(2)]
    assert farm.begun("twice") == {"0": 2}
    numbers = "".join(f"{number}\n" for number in range(1, 100_001))
    files = {"out/copy": "from the client", "out/deep/numbers": numbers, "plain": "no newline"}
    expected = (files | {"out/deep/empty": "", "out/deep/link": "-> numbers"}, "said", "bad")
    assert [(each["outputs"], each["line"], each["errors"]) for each in ran] == [expected] * 2
    tell(f"on {len({each['metadata']['worker'] for each in ran})} workers")


@on("memory", "redis")
def test_wrong_bytes(farm: Farm, tell: Tell) -> None:
    """wrong bytes of clients and workers are refused

    Workers' are at every CAS to which their own configuration writes.
    """
    _refuses(farm.cas[0], f"grpc://{farm.cas[0].address}:50051", "main")
    worker = farm.workers["default"][0]
    stores = _cas_stores(json5.loads(worker.workload.settings))
    assert stores
    for address, instance in sorted(stores):
        _refuses(worker, address, instance)
    tell(f"at {len(stores)} addresses of the worker")


def _cas_stores(value: Any) -> set[tuple[str, str]]:
    """Return the address and the instance name of each CAS that a configuration reaches by gRPC."""
    if isinstance(value, list):
        return set().union(*map(_cas_stores, value))
    if not isinstance(value, dict):
        return set()
    is_cas = value.get("store_type") == "cas"
    here = {(each["address"], value["instance_name"]) for each in value.get("endpoints", ()) if is_cas}
    return here | _cas_stores(list(value.values()))


def _put(pod: Pod, cas: str, instance: str, *more: str) -> dict[str, str]:
    return dict(json.loads(pod.run("/reapi-load", "put", f"--cas-endpoint={cas}", f"--instance={instance}", *more)))


def _refuses(pod: Pod, cas: str, instance: str, *more: str) -> None:
    right, wrong = _put(pod, cas, instance, "--right", *more), _put(pod, cas, instance, *more)
    ways = {*_PLAIN, *(_COMPRESSED if "--compressed" in more else ())}
    assert right == dict.fromkeys(ways, "taken, and read back")
    assert {*wrong} == ways
    assert all(told.startswith("refused") for told in wrong.values()), wrong


@on("memory", "attacks")
def test_compression(farm: Farm, tell: Tell) -> None:
    """content is written and read as zstd, too; wrong bytes are not

    What was written plain is also read as zstd, and the other way round. v1.3.2 takes nothing compressed.
    """
    ports = [port for port in _CONTENT if PORTS[port] in farm.cas[0].workload.ports]
    for port in ports:
        cas, instance = f"grpc://{farm.cas[0].address}:{PORTS[port]}", "slice" if port == "slice" else "main"
        if row(farm.version).compression:
            for size in (31, 200_000):
                _refuses(farm.cas[1], cas, instance, "--compressed", f"--size={size}")
        else:
            told = _put(farm.cas[1], cas, instance, "--right", "--compressed")
            assert all(told[way].startswith("refused") for way in _COMPRESSED), told
    tell(f"ports: {', '.join(ports)}")


@on("none")
def test_no_compression_of_slices(farm: Farm) -> None:
    """counter-run without zstd of slices: CAS pods refuse it"""
    if not row(farm.version).compression:
        pytest.skip(f"{farm.version} has no compression")
    told = _put(farm.cas[0], f"grpc://{farm.cas[0].address}:{PORTS['cas']}", "main", "--right", "--compressed")
    assert told["stream ZSTD"].startswith("refused"), told


@on("memory")
def test_chunks(farm: Farm, tell: Tell) -> None:
    """of a large blob that changed a client reads only chunks

    CAS and scheduler tell clients of it, and of zstd.
    """
    if not row(farm.version).compression:
        pytest.skip(f"{farm.version} has no chunking")
    cas = f"{farm.cas[0].address}:50051"
    for address in (cas, f"{farm.scheduler.address}:50052"):
        server = Reapi(address, "main", tls=False, name="", ca=None, who=Identity())
        found = server.call("Capabilities.GetCapabilities", instance_name="main").cache_capabilities
        assert ([*found.supported_compressors], found.split_blob_support) == ([_ZSTD], True), found
    transfer = ("/reapi-load", "transfer", f"--cas-endpoint=grpc://{cas}", "--chunked", "/reapi-load")
    read = {name: part["bytes"] for name, part in json.loads(farm.cas[1].run(*transfer)).items()}
    assert read["changed"] < read["read"] / 4, read
    tell(f"{read['changed']:,} of {read['read']:,} bytes")


@on("memory", "redis")
def test_drains(farm: Farm, tell: Tell) -> None:
    """10 drains under load lose nothing

    Each worker is drained after its replacement has started.
    """
    salt, actions = "drain", 40 * _DRAINS
    arguments = farm.recorded("$(({index} % 6 + 1))", salt, actions, 10 * PATIENCE)
    with ThreadPoolExecutor(_DRAINS) as background, farm.loaded(*arguments) as client:
        gone = []
        for _ in range(_DRAINS):
            await_running(farm, farm.workers["default"][0], 1)
            gone.append(background.submit(farm.drain, farm.replace("default")))
        assert client.poll() is None, "the load ended before the last drain began, so the check shows nothing"
        done, report = [each.result() for each in gone], reported(client)
    # The scheduler offered these to drained workers more often than max_job_retries.
    again = sum(each["retries"] for each in succeeded(report))
    assert _begun_again(farm, salt) == 0
    running_then, took = zip(*done, strict=True)
    tell(
        f"{actions} actions, {sum(running_then)} of them on drained workers: 0 lost,"
        f" {again} retried by the client, {min(took):.0f} to {max(took):.0f} s a drain"
    )


@on("memory", "redis")
def test_no_drain(farm: Farm, tell: Tell) -> None:
    """counter-run without drain.sh: actions are lost"""
    salt, actions = "killed", 2 * CPUS
    with farm.loaded(*farm.recorded("6", salt, actions, 2 * PATIENCE)) as client:
        await_running(farm, farm.workers["default"][0], 1)
        until("its actions to begin", lambda: len(farm.begun(salt)) == actions, 30)
        farm.replace("default").terminate()
        succeeded(reported(client))
    lost = _begun_again(farm, salt)
    assert lost
    tell(f"{lost} of {actions} actions lost, and begun again")


@on("memory", "redis")
def test_sick_scratch(farm: Farm, tell: Tell) -> None:
    """a worker whose scratch is read-only drains and ends"""
    with _sick_worker(farm) as (sick, report):
        succeeded(report)
        began = time.monotonic()
        until(f"{sick.name} to end", sick.has_ended, 60, sick.said)
        tell(f"no action failed, and it ended {time.monotonic() - began:.0f} s later")


@on("memory", "redis")
def test_no_precondition(farm: Farm, tell: Tell) -> None:
    """counter-run without precondition.sh: actions fail"""
    farm.change = lambda text: text.replace('experimental_precondition_script: "/config/precondition.sh",', "")
    try:
        with _sick_worker(farm) as (sick, report):
            assert not sick.has_ended()
    finally:
        farm.change = str
    failed = [each["outcome"] for each in report["actions"] if "Read-only file system" in each["outcome"]]
    assert failed
    tell(f"{len(failed)} of {len(report['actions'])} actions: {failed[0]}")


@contextmanager
def _sick_worker(farm: Farm) -> Iterator[tuple[Pod, dict[str, Any]]]:
    """Run twice as many actions as healthy workers have slots for, beside a worker with a read-only scratch.

    Yield the sick worker, and the report of the actions.
    """
    farm.add_workers("default")
    sick = farm.workers["default"].pop()
    sick.read_only("/scratch")
    actions = 2 * CPUS * len(farm.workers["default"])
    try:
        yield sick, farm.load(f"--actions={actions}", "--seconds=4-4", "--retries=0", f"--timeout={PATIENCE}")
    finally:
        sick.remove()


def _begun_again(farm: Farm, salt: str) -> int:
    return sum(number > 1 for number in farm.begun(salt).values())


# Persistent workers


@on("memory", "redis")
def test_no_tools(farm: Farm, tell: Tell) -> None:
    """persistent workers: off means off"""
    (action,) = _tools(farm, "default", "--timeout=10")["actions"]
    left = [worker.name for worker in farm.workers["default"] if (farm.work_folder(worker) / _LEFT).exists()]
    assert not left, action["errors"]
    tell(f"the action {'ran alone' if action['outcome'] == 'ok' else 'did not run'}: {action['outcome']}")


@on("tools")
def test_one_process(farm: Farm) -> None:
    """persistent workers: one process serves, with the env"""
    processes, numbers, environments = zip(*_served(farm), strict=True)
    assert (len(set(processes)), numbers, {*environments}) == (1, ("1", "2", "3"), {ENVIRONMENT})


@on("tools")
def test_environment_of_actions(farm: Farm) -> None:
    """persistent workers: an action that runs alone has the pool's env"""
    command = f"--command={json.dumps(_RUN)}"
    (action,) = succeeded(farm.load(command, f"--timeout={PATIENCE}", pool="persistent"))
    assert {environment for _, _, environment in _TOOL.findall(action["errors"])} == {ENVIRONMENT}


@on("tools")
def test_drain_of_tools(farm: Farm, tell: Tell) -> None:
    """persistent workers: the drain ends

    The tool has left a file in the folder where it was started.
    """
    _served(farm)
    worker = farm.workers["persistent"][0]
    assert (farm.work_folder(worker) / _LEFT).exists(), "the tool left no file, so the check shows nothing"
    _, seconds = farm.drain(farm.replace("persistent"))
    tell(f"{seconds:.0f} s")


def _served(farm: Farm) -> list[tuple[str, str, str]]:
    """Run three actions one after another. Return the process, the request's number and the environment of each."""
    report = succeeded(_tools(farm, "persistent", "--actions=3", "--concurrency=1", f"--timeout={PATIENCE}"))
    found = [_TOOL.findall(each["errors"]) for each in report]
    assert all(found), report
    return [each[0] for each in found]


def _tools(farm: Farm, pool: str, *arguments: str) -> dict[str, Any]:
    asked = {"pool": pool, "supports-workers": "1", "requires-worker-protocol": "json"}
    command = [*_RUN, f"--of={pool}-{time.monotonic_ns()}", "@arguments-{index}"]
    return farm.load(f"--command={json.dumps(command)}", *arguments, **asked)


# Metrics


def _scraped(farm: Farm, port: str) -> str:
    """Return what a port of the collectors serves. Not all of them have every port."""
    found = ""
    for pod in farm.collectors:
        if PORTS[port] in pod.workload.ports:
            with urllib.request.urlopen(f"http://{pod.address}:{PORTS[port]}/metrics", timeout=10) as answer:
                found += answer.read().decode()
    return found


def _series(farm: Farm, port: str) -> list[tuple[str, dict[str, str], float]]:
    """Return the name, the labels and the latest value of each series."""
    found = _SERIES.findall(_scraped(farm, port))
    return [(name, dict(_LABEL.findall(labels)), float(value)) for name, labels, value in found]


def _total(farm: Farm, port: str, name: str, **wanted: str) -> float:
    """Return the sum of the series with a name and these labels. Before the first report there is none."""
    found = _series(farm, port)
    return sum(value for each, labels, value in found if each == name and wanted.items() <= labels.items())


@on("metrics")
def test_demand(farm: Farm) -> None:
    """a report at the worker's port does not change the demand

    A second scheduler sends its demand there and then, as the counter-run, to the scheduler's port.
    """
    variable = "OTEL_EXPORTER_OTLP_ENDPOINT"
    senders = {"worker": farm.workloads["worker default"], "scheduler": farm.scheduler.workload}
    queued = partial(_total, farm, "metrics", "nativelink_execution_active_count", execution_stage="queued")
    seen = {}
    for sender, workload in senders.items():
        with farm.second_scheduler(**{variable: workload.environment[variable]}) as second:
            there = f"--execute-endpoint=grpc://{second.address}:50052"  # instead of the first scheduler's
            with farm.loaded("--hold=120", "--actions=3", there) as client:
                assert client.stdout
                assert [client.stdout.readline() for _ in range(2)][1] == '{"queued": 3}\n'
                most, end = 0.0, time.monotonic() + 10
                while time.monotonic() < end:
                    most = max(most, queued())
                    time.sleep(0.2)
                seen[sender] = most
    assert seen == {"worker": 0, "scheduler": 3}


@on("metrics", "metrics-redis")
def test_reports(farm: Farm, tell: Tell) -> None:
    """all workloads report to the collector

    The second time the action cache answers. NativeLink counts each completed action twice, the collector once.
    Workers of v1.3.2 have nothing to report.
    """
    workers = farm.workers["default"] if row(farm.version).counts else []
    senders = {"cas": farm.cas, "scheduler": [farm.scheduler], "worker": workers}
    expected = {(component, pod.name) for component, pods in senders.items() for pod in pods}

    def seen() -> Counter[tuple[str, str]]:
        return Counter((labels["component"], labels["pod"]) for _, labels, _ in _series(farm, "reported"))

    def completed() -> float:
        return _total(farm, "reported", "nativelink_execution_completed_count_total")

    def hits() -> float:
        read = {"cache_operation_name": "read", "cache_operation_result": "hit"}
        return _total(farm, "reported", "nativelink_cache_operations_total", cache_type="ac_lookup", **read)

    def done() -> bool:
        return {*seen()} == expected and hits() == already + 8

    time.sleep(3)  # until the scheduler has exported what it did before
    before, already = completed(), hits()
    for _ in range(2):
        succeeded(farm.load("--actions=8", "--seconds=0-0", "--salt=reports", f"--timeout={PATIENCE}"))
    until(f"{len(expected)} pods to report, and 8 hits", done, 4 * REPORT_INTERVAL, lambda: f": {seen()}, {hits()}")
    _record(farm)
    assert not {name for _, labels, _ in _series(farm, "reported") for name in labels} & _UNBOUNDED
    assert completed() - before == 8
    ((_, pod), most), *_ = seen().most_common()
    assert most <= _MOST_SERIES
    tell(f"{len(expected)} pods; {pod} has most series, {most}")


@on("metrics", "metrics-redis")
def test_reports_of_trouble(farm: Farm, tell: Tell) -> None:
    """the collector is told of trouble by all workloads

    Wrong bytes are refused, two workers are lost, and a volume is broken.
    """
    _refuses(farm.cas[0], f"grpc://{farm.cas[0].address}:50051", "main")
    with farm.loaded(*farm.recorded("8", "trouble", 2 * CPUS, 2 * PATIENCE)) as client:
        ended, frozen = farm.workers["default"]
        for worker in (ended, frozen):
            await_running(farm, worker, 1)
        frozen.freeze()
        ended.kill()
        for _ in range(2):
            farm.replace("default")
        succeeded(reported(client))
    frozen.kill()
    shutil.rmtree(farm.cas[0].folder / "volumes" / "data" / "cas" / "temp")
    with suppress(AssertionError):  # the client may end without a report
        farm.load("--actions=16", "--seconds=0-0", "--salt=broken", "--timeout=30")
    time.sleep(2 * REPORT_INTERVAL)
    tell(f"{_record(farm, '-trouble')} lines")


def _record(farm: Farm, suffix: str = "") -> int:
    """Write what the workloads have reported into the folder CONFORMANCE_SCRAPES, if it is stated. Return the lines."""
    text = _scraped(farm, "reported")
    if folder := os.environ.get("CONFORMANCE_SCRAPES"):
        name = f"{farm.version}-{'redis' if farm.redis else 'memory'}{suffix}"
        Path(folder, f"{name}.txt").write_text(text)
        if not farm.redis:
            Path(folder, f"{name}-demand.txt").write_text(_scraped(farm, "metrics"))
    return len(text.splitlines())
