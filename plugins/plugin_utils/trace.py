"""Finds an action in a farm: who ran it and when, or why it waits. It also lists the actions of a build of Bazel."""

import re
from collections.abc import Mapping
from datetime import datetime
from itertools import pairwise
from typing import Any

from . import scheduler_log
from .api import ApiError, Object
from .columns import aligned
from .farm import Farm
from .matching import not_offered, refusals
from .ports import PORTS
from .release import pod_trouble
from .results import Results
from .scheduler_log import Assignment

_ACTION = re.compile(r"([0-9a-f]{64})(?:[/-](\d+))?")
_INVOCATION = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_UUID = 36  # characters that a worker adds to the name of its pod
_POOL = "nativelink-gitops/pool"
_LINES = 20
_FAILED = "Command returned non-zero exit code"


def is_known(wanted: str) -> bool:
    """Whether a text is a digest (`HASH` or `HASH/SIZE`) or the ID of an invocation of Bazel."""
    return bool(_ACTION.fullmatch(wanted) or _INVOCATION.fullmatch(wanted))


def ask(farm: Farm, found: Object, wanted: str) -> None:
    """Write down what a farm knows of an action or an invocation, as `lines`; none if it knows nothing."""
    logs = [farm.api.log(pod) or "" for pod in farm.pods("scheduler")]
    if not all(logs):
        raise ApiError("the scheduler's log cannot be read", "let this user read pods/log, and see that its node works")
    if action := _ACTION.fullmatch(wanted):
        found["lines"] = _action(farm, action[1], action[2] or "", logs)
        return
    runs = [run for log in logs for run in scheduler_log.assignments(log, wanted)]
    found["lines"] = _invocation(farm, sorted(runs, key=lambda run: run.at)) if runs else []


def _invocation(farm: Farm, runs: list[Assignment]) -> list[str]:
    rows = [("STARTED", "WAITED", "POOL", "WORKER", "ACTION", "WHAT")]
    for run in runs:
        what = f"{run.bazel.get('action_mnemonic', '')} {run.bazel.get('target_id', '')}".strip()
        pod = run.worker[:-_UUID]
        rows.append((_clock(run.at), _seconds(run.waited), _pool(farm, pod), pod, run.digest, what))
    return aligned(rows)


def _action(farm: Farm, hash_: str, size: str, logs: list[str]) -> list[str]:
    runs = sorted((run for log in logs for run in scheduler_log.assignments(log, hash_)), key=lambda run: run.at)
    asked = max((found for log in logs if (found := scheduler_log.request(log, hash_))), default=None)
    digests = [f"{hash_}/{size}"] if size else [*(run.digest for run in runs), *([asked[1]] if asked else [])]
    if not digests:
        return []
    digest, results = digests[-1], _results(farm)
    result = results.result(digest)
    properties = runs[-1].properties if runs else results.properties(digest)
    if not (runs or asked or result) and properties is None:
        return []
    lines = [f"action      {digest}"]
    lines += [f"properties  {_pairs(properties, '=')}"] if properties else []
    lines += [f"asked for   {_clock(asked[0])}"] if asked else []
    lines += [line for run in runs for line in _run(farm, run)]
    ends = [moment for log in logs if runs and (moment := scheduler_log.ended(log, runs[-1].operation))]
    lines += [f"ended       {_clock(moment)}" for moment in ends]
    if result:
        seen = runs and runs[-1].worker == result["worker"]
        return [*lines, *([] if seen else [_worker(farm, result["worker"])]), *_result(result)]
    if runs and not (asked and runs[-1].at < asked[0]):
        failed = any(_FAILED in line for line in lines)
        ended = "failed, and the action cache keeps no failures" if failed else "ended without a result"
        return [*lines, f"state       {ended if ends or failed else 'runs'}"]
    state = "waits, or its client has left" if asked else "not in the scheduler's log, and without a result"
    return [*lines, f"state       {state}", *(f"why         {reason}" for reason in reasons(farm, properties))]


def _results(farm: Farm) -> Results:
    for pod in farm.pods("cas"):
        if pod_trouble([pod]) is None:
            return Results(farm.api.connection(pod, PORTS["cas"]), farm.values["nativelink_instance_name"])
    raise ApiError("no CAS pod is ready", "see what the playbook status says of it")


def _run(farm: Farm, run: Assignment) -> list[str]:
    """Who got an operation, for whom, and what the worker's log says of it."""
    pods = [each for each in farm.pods("worker") if each["metadata"]["name"] == run.worker[:-_UUID]]
    log = (farm.api.log(pods[0], container="worker") if pods else None) or ""
    said = [scheduler_log.said(line) for line in log.splitlines() if run.operation in line and line.startswith("{")]
    told = _pairs({name: text for name, text in run.bazel.items() if text}, " ")
    return [
        f"run         {_clock(run.at)} operation {run.operation}, after {_seconds(run.waited)} in the queue",
        _worker(farm, run.worker),
        *([f"bazel       {told}"] if told else []),
        *(f"log         {line}" for line in said[-_LINES:]),
    ]


def _worker(farm: Farm, worker: str) -> str:
    pod = worker[:-_UUID]
    gone = "" if pod in (each["metadata"]["name"] for each in farm.pods("worker")) else ", which is gone"
    return f"worker      pod {pod} of pool {_pool(farm, pod)}{gone}"


def _result(result: Mapping[str, Any]) -> list[str]:
    stages: dict[str, datetime] = result["stages"]
    named = {
        "queued": "queue",
        "worker_start": "start",
        "input_fetch_start": "fetch of inputs",
        "input_fetch_completed": "preparation",
        "execution_start": "execution",
        "execution_completed": "collection",
        "output_upload_start": "upload of outputs",
        "output_upload_completed": "report",
    }
    lines = [
        f"stage       {_clock(begin)} {named[name]}: {_seconds((end - begin).total_seconds())}"
        for (name, begin), (_unused, end) in pairwise(stages.items())
    ]
    return [*lines, f"result      exit code {result['exit_code']}, in the action cache"]


def reasons(farm: Farm, asked: Mapping[str, str] | None) -> list[str]:
    """Why an action with these properties does not start now."""
    if asked is None:
        return ["the CAS does not have the action, so its properties are not known"]
    if impossible := [reason for pair in sorted(asked.items()) if (reason := not_offered(farm.known, *pair))]:
        return impossible
    refused = refusals(farm.known, asked)
    able = [name for name, properties in refused.items() if not properties]
    if not able:
        return [f"pool {name} does not offer its {' and '.join(missing)}" for name, missing in refused.items()]
    live, options = farm.pools(), {pool.name: pool for pool in farm.known.pools}
    return [f"pool {name}: {_pool_state(farm, live[name], options[name])}" for name in able]


def _pool_state(farm: Farm, live: Object, pool: Any) -> str:
    if not live:
        return "it has no Deployment; push the tree"
    wanted, ready = live["spec"].get("replicas", 0), live.get("status", {}).get("readyReplicas", 0)
    most = max(pool["max_replicas"], wanted)
    pods = [pod for pod in farm.pods("worker") if pod["metadata"]["labels"].get(_POOL) == pool.name]
    trouble = pod_trouble(pod for pod in pods if "deletionTimestamp" not in pod["metadata"])
    if trouble:
        return f"{ready} of {wanted} workers are ready, {trouble}"
    if wanted >= most:
        return f"all {most * pool.slots} slots, or what they offer, are taken, and it has its maximum of {most} workers"
    return f"it has {ready} of at most {most} workers, and its autoscaler has not added one ({pool.scaling})"


def _pool(farm: Farm, pod: str) -> str:
    """The pool of a worker's pod, which may be gone: the name of a Deployment's pod has two more parts."""
    named = pod.removeprefix("nativelink-worker-").rsplit("-", 2)[0]
    return named if named in {pool.name for pool in farm.known.pools} else "?"


def _pairs(pairs: Mapping[str, str], between: str) -> str:
    return ", ".join(f"{name}{between}{value}" for name, value in sorted(pairs.items()))


def _clock(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _seconds(number: float) -> str:
    return f"{number:.3f} s"
