"""The stand-in for NativeLink does what the tests of the product need of it: testbed/go/standin/README.md."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from testbed.ports import free_ports
from testbed.waiting import patient, until
from testkit import nativelink
from testkit.client import Client

Object = dict[str, Any]
Edit = Callable[[Object], object]
SERVICES = "servers.0.services"
WORKER = "workers.0.local"


def configuration(folder: Path, public: int = 0, internal: int = 0) -> Object:
    """Return a configuration with CAS, scheduler and worker in one process. Port 0 is any free port."""
    main = {"instance_name": "main"}
    fast = {"filesystem": {"content_path": f"{folder}/store/content", "temp_path": f"{folder}/store/temp"}}
    worker = {
        "name": "worker-",
        "worker_api_endpoint": {"uri": f"grpc://127.0.0.1:{internal}"},
        "cas_fast_slow_store": "WORKER",
        "upload_action_result": {"ac_store": "AC"},
        "work_directory": f"{folder}/actions",
        "max_inflight_tasks": 2,
        "platform_properties": {"cpu_count": {"values": ["4"]}, "OSFamily": {"values": ["Linux"]}},
    }
    declared = {"cpu_count": "minimum", "memory_kb": "minimum", "OSFamily": "priority", "container-image": "priority"}
    return {
        "stores": [
            {"name": "CAS", "memory": {}},
            {"name": "AC", "memory": {}},
            {"name": "WORKER", "fast_slow": {"fast": fast, "slow": {"ref_store": {"name": "CAS"}}}},
        ],
        "schedulers": [
            {"name": "MAIN", "simple": {"supported_platform_properties": declared | {"note": "ignore"}}},
        ],
        "workers": [{"local": worker}],
        "servers": [
            {
                "name": "public",
                "listener": {"http": {"socket_address": f"127.0.0.1:{public}"}},
                "services": {
                    "cas": [{**main, "cas_store": "CAS"}],
                    "ac": [{**main, "ac_store": "AC"}],
                    "bytestream": [{**main, "cas_store": "CAS"}],
                    "execution": [{**main, "cas_store": "CAS", "scheduler": "MAIN"}],
                    "capabilities": [{**main, "remote_execution": {"scheduler": "MAIN"}}],
                },
            },
            {
                "name": "internal",
                "listener": {"http": {"socket_address": f"127.0.0.1:{internal}"}},
                "services": {"worker_api": {"scheduler": "MAIN"}, "health": {}},
            },
        ],
    }


def put(path: str, value: object) -> Edit:
    """Set what is at a path such as ``stores.0.name`` (``stores.+`` appends)."""

    def edit(config: Object) -> None:
        *above, last = path.split(".")
        place: Any = config
        for part in above:
            place = place[int(part) if isinstance(place, list) else part]
        if last == "+":
            place.append(value)
        else:
            place[int(last) if isinstance(place, list) else last] = value

    return edit


REDIS: Object = {"addresses": ["redis://:s3cret@127.0.0.1:1"], "experimental_pub_sub_channel": "nativelink"}


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (put("stroes", []), "additional properties 'stroes' not allowed"),
        (put("stores.+", {"name": "MORE", "ref_store": {"name": "NOPE"}}), 'there is no store "NOPE"'),
        (put(f"{SERVICES}.execution.0.scheduler", "NOPE"), 'there is no scheduler "NOPE"'),
        (put(f"{WORKER}.name", "${NOT_SET}"), "error looking key 'NOT_SET' up: environment variable not found"),
        (put("stores.+", {"name": "MORE", "redis_store": REDIS}), "connecting to redis://:xxxxx@127.0.0.1:1"),
    ],
)
def test_a_wrong_configuration_is_refused(tmp_path: Path, edit: Edit, says: str) -> None:
    config = configuration(tmp_path)
    edit(config)
    assert nativelink.started(tmp_path / "bad", config).wait(patient(20)) == 1
    said = (tmp_path / "bad.log").read_text()
    assert says in said
    assert "s3cret" not in said


class Farm:
    """One process with CAS, scheduler and worker, and its client."""

    def __init__(self, folder: Path, *edits: Edit, **environment: str) -> None:
        self.folder, self.environment = folder, environment
        public, self.internal = free_ports(2)
        self.client = Client(*[f"grpc://127.0.0.1:{public}"] * 2)
        self.config = configuration(folder, public, self.internal)
        for edit in edits:
            edit(self.config)

    def __enter__(self) -> Farm:
        self.process = nativelink.started(self.folder / "nativelink", self.config, **self.environment)
        until("a worker", lambda: "Worker registered with scheduler" in self.said(), 20, lambda: self.said()[-800:])
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def said(self) -> str:
        return (self.folder / "nativelink.log").read_text()

    def runs(self, *arguments: str, **platform: str) -> Object:
        """Return the result of one action."""
        return dict(self.client.report("--seconds=0-0", *arguments, **platform)["actions"][0])


def looked_up(config: Object) -> None:
    simple = config["schedulers"][0].pop("simple")
    config["schedulers"][0]["cache_lookup"] = {"ac_store": "AC", "scheduler": {"simple": simple}}


@pytest.mark.parametrize(("edits", "runs"), [((), 2), ((looked_up,), 1)], ids=["simple", "cache_lookup"])
def test_a_repeated_execute_is_answered_by_cache_lookup_only(tmp_path: Path, edits: tuple[Edit], runs: int) -> None:
    command = json.dumps(["/bin/sh", "-c", f"echo ran >> {tmp_path}/ran"])
    with Farm(tmp_path, *edits) as farm:
        for _ in range(2):
            assert farm.runs(f"--command={command}", "--salt=same")["outcome"] == "ok"
    assert (tmp_path / "ran").read_text().splitlines() == ["ran"] * runs


def test_a_declared_property_has_to_be_offered(tmp_path: Path) -> None:
    with Farm(tmp_path) as farm:
        assert farm.runs(cpu_count="4", OSFamily="another", note="anything", undeclared="anything")["outcome"] == "ok"
        for misfit in ({"cpu_count": "5"}, {"memory_kb": "1"}, {"container-image": "any"}):
            assert farm.runs("--timeout=2", **misfit)["outcome"] != "ok", misfit


@pytest.mark.parametrize(
    ("edits", "told"),
    [
        ((put(f"{SERVICES}.capabilities.0.remote_cache_compression", True),), {"taken, and read back"}),
        ((), {"refused"}),
    ],
    ids=["on", "off"],
)
def test_content_travels_as_zstd_where_the_capabilities_have_it(
    tmp_path: Path, edits: tuple[Edit], told: set[str]
) -> None:
    with Farm(tmp_path, *edits) as farm:
        found = farm.client.put("--right", "--compressed")
    assert {text.partition(":")[0] for way, text in found.items() if way.endswith("ZSTD")} == told
