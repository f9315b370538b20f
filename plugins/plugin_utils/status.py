"""What a farm is and does now: its versions, engine, pools, room, alerts, and actions that no pool can run."""

from collections.abc import Mapping
from typing import Any

from . import scheduler_log
from .api import ApiError, Object
from .columns import aligned
from .engine import engine_of
from .farm import Farm
from .matching import not_offered
from .monitoring import names

VERIFIED = "nativelink.gitops/verified"
"""The annotation of the namespace with the last result of the playbook `verify`: its time, and `ok` or `failed`."""
_LOGGED = 130  # seconds of the scheduler's log: it says why actions wait once a minute
_HEAD = ("CLUSTER", "VERSION", "ENGINE", "POOL", "NOW", "MIN", "MAX", "QUEUED", "RUNNING", "ROOM", "ALERTS", "VERIFIED")
_SHORT = 8  # digits of a commit


def ask(farm: Farm, found: Object, url: str) -> None:
    """Write down the state of a farm, part by part. `url` is that of a Prometheus other than the bundled one."""
    space = farm.api.get(f"/api/v1/namespaces/{farm.namespace}")
    if space is None:
        problem = f"the namespace {farm.namespace} does not exist"
        raise ApiError(problem, "bootstrap the cluster", "nativelink_namespace")
    found["verified"] = space["metadata"].get("annotations", {}).get(VERIFIED)
    found["version"] = {"wanted": farm.values["nativelink_version"], "running": farm.versions()}
    engine = engine_of(farm.api, farm.values)
    found["engine"] = {key: getattr(engine, key) for key in ("name", "ok", "state", "revision")} if engine else None
    live = farm.pools()
    found["pools"] = {pool.name: _pool(pool.options, live[pool.name]) for pool in farm.known.pools}
    found["trouble"] = farm.trouble()
    found["unmatched"] = _unmatched(farm)
    found |= {"queued": None, "executing": None, "room": None, "alerts": None}
    if prometheus := farm.prometheus(url):
        _measure(farm, found, prometheus)


def _unmatched(farm: Farm) -> list[str] | None:
    """What no pool offers and an action waits for; None if the scheduler's log cannot be read."""
    logs = [farm.api.log(pod, sinceSeconds=str(_LOGGED)) for pod in farm.pods("scheduler")]
    if None in logs:
        return None
    pairs = sorted({pair for log in logs if log for pair in scheduler_log.unmatched(log)})
    return [reason for pair in pairs if (reason := not_offered(farm.known, *pair))]


def _pool(options: Mapping[str, Any], live: Object) -> Object:
    ready = live.get("status", {}).get("readyReplicas", 0) if live else None
    wanted = live.get("spec", {}).get("replicas", 0) if live else None
    limits = {"min": options["min_replicas"], "max": options["max_replicas"]}
    return {"now": ready, "wanted": wanted, **limits, "queued": None, "executing": None}


def _measure(farm: Farm, found: Object, ask_prometheus: Any) -> None:
    """Add what Prometheus knows: the demand, the room on volumes, and the alerts that fire."""
    terms = names(farm.values, farm.known.features, farm.known.cas.store)

    def by(label: str, query: str) -> dict[str, float]:
        return {each["metric"].get(label, ""): float(each["value"][1]) for each in ask_prometheus(query)}

    for stage in ("queued", "executing"):
        if farm.known.features["demand_by_pool"]:
            numbers = by("pool", terms[f"{stage}_by_pool"])
            for name, pool in found["pools"].items():
                pool[stage] = int(numbers.get(name, 0))
            found[stage] = int(sum(numbers.values()))
        elif farm.known.features["collected_demand"]:  # a scheduler in memory does not tell the pools apart
            found[stage] = int(sum(by("", terms[stage]).values()))
    room = "kubelet_volume_stats_%s_bytes{%s}"
    left, size = (room % (part, terms["cas_volumes"]) for part in ("available", "capacity"))
    found["room"] = by("persistentvolumeclaim", f"max by (persistentvolumeclaim) ({left} / {size})") or None
    ours = f'cluster="{farm.values["cluster"]}",namespace="{farm.namespace}"'
    firing = ask_prometheus(f'ALERTS{{alertstate="firing",{ours}}}')
    found["alerts"] = sorted({f"{each['metric']['alertname']} ({each['metric']['severity']})" for each in firing})


def table(found: Mapping[str, Object]) -> list[str]:
    """The lines of the table, and those of what is wrong, by cluster."""
    rows = [_HEAD, *(row for name, each in sorted(found.items()) for row in _rows(name, each))]
    wrong = [f"{name}: {line}" for name, each in sorted(found.items()) for line in _wrong(each)]
    return [*aligned(rows), *(["", *wrong] if wrong else [])]


def _rows(name: str, found: Object) -> list[tuple[str, ...]]:
    if "pools" not in found:
        return [(name, "unknown", *[""] * (len(_HEAD) - 2))]
    version, engine = found["version"], found["engine"]
    same = version["running"] in ([], [version["wanted"]])
    shown = version["wanted"] if same else f"{version['wanted']} (runs {', '.join(version['running'])})"
    state = f"{engine['name']} {engine['state'].partition(':')[0]} {_short(engine['revision'])}" if engine else "none"
    room = f"{min(found['room'].values()):.0%}" if found.get("room") else "?"
    alerts = str(len(found["alerts"])) if found.get("alerts") is not None else "?"
    head, tail = (name, shown, state.strip()), (room, alerts, found["verified"] or "never")
    rows = []
    for pool, each in found["pools"].items():
        demand = [each[stage] if each[stage] is not None else found.get(stage) for stage in ("queued", "executing")]
        now = "missing" if each["now"] is None else str(each["now"])
        numbers = (now, str(each["min"]), str(each["max"]), *("?" if part is None else str(part) for part in demand))
        # The demand of a scheduler in memory is that of all pools.
        first = not rows
        shared = numbers if first or each["queued"] is not None else (*numbers[:3], "", "")
        rows.append((*(head if first else ("",) * 3), pool, *shared, *(tail if first else ("",) * 3)))
    return rows


def _wrong(found: Object) -> list[str]:
    """What a person should look at."""
    lines = [found["error"]] if "error" in found else []
    engine, version = found.get("engine"), found.get("version")
    if version and version["running"] not in ([], [version["wanted"]]):
        lines.append(f"runs NativeLink {', '.join(version['running'])}, and the inventory wants {version['wanted']}")
    if engine and not engine["ok"]:
        lines.append(f"{engine['name']}: {engine['state']}")
    lines += [f"pool {name} has no Deployment" for name, pool in found.get("pools", {}).items() if pool["now"] is None]
    lines += found.get("trouble", ())
    unmatched = found.get("unmatched", [])
    lines += ["the scheduler's log cannot be read"] if unmatched is None else [f"no worker for {x}" for x in unmatched]
    return lines + [f"alert {each}" for each in found.get("alerts") or ()]


def _short(revision: str) -> str:
    """A commit in few digits: Flux writes main@sha1:0123…, and Argo CD the digits alone."""
    return revision.rpartition(":")[2][:_SHORT]
