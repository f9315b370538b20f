"""The stand-in for NativeLink refuses what the original refuses, and behaves as the original does.

It has the messages of the original (v1.6.6, and v1.3.2 where named): testbed/go/standin/README.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed import build, components, images
from testbed.ports import free_port, free_ports
from testbed.waiting import patient, until
from testkit.authority import Authority

Object = dict[str, Any]
Edit = Callable[[Object], object]
CACHES = ("cas", "ac")
NEWEST, V132 = (images.nativelink_schema(version) for version in (images.NATIVELINK_VERSIONS[-1], "v1.3.2"))


def program(name: str) -> str:
    return str(build.program(name))


def configuration(folder: Path, public: int = 0, internal: int = 0) -> Object:
    """Return a configuration with CAS, scheduler and worker in one process. Port 0 is any free port."""
    main = {"instance_name": "main"}
    fast = {"filesystem": {"content_path": f"{folder}/store/content", "temp_path": f"{folder}/store/temp"}}
    worker = {
        "name": "${WORKER_NAME:-worker-}",
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


def store(**kind: object) -> Edit:
    return put("stores.+", {"name": "MORE", **kind})


# Refused configurations --------------------------------------------------------------------------------------------


def refusal(folder: Path, *edits: Edit, schema: Path = NEWEST) -> str:
    """Return the stand-in's error about a configuration. The stand-in must end at once."""
    config = configuration(folder)
    for edit in edits:
        edit(config)
    (folder / "bad.json5").write_text(json.dumps(config))
    command = [program("nativelink"), str(folder / "bad.json5")]
    environment = {**os.environ, "NATIVELINK_SCHEMA": str(schema)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=patient(20))
    assert done.returncode == 1, done.stdout
    return done.stderr


def grpc_to(address: str, kind: str = "cas", **tls: str) -> Object:
    """Return the settings of a store at another server."""
    endpoint = {"address": address} | ({"tls_config": tls} if tls else {})
    return {"instance_name": "main", "endpoints": [endpoint], "store_type": kind}


def grpc(address: str, **tls: str) -> Edit:
    """Add such a store."""
    return store(grpc=grpc_to(address, **tls))


SERVICES = "servers.0.services"
WORKER = "workers.0.local"
REDIS = {"mode": "standard", "experimental_pub_sub_channel": "nativelink"}
ON_REDIS = put("schedulers.0.simple.experimental_backend", {"redis": {"redis_store": "MORE"}})


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (put("stroes", []), "additional properties 'stroes' not allowed"),
        (store(shard={"stores": [{"store": {"memory": {}}}]}), "missing property 'weight'"),
        (store(shard={"stores": []}), "ShardStore must have at least one store"),
        (put("stores.+", {"name": "AC", "memory": {}}), "Store name 'AC' already exists in the store manager"),
        (store(ref_store={"name": "NOPE"}), "Failed to find store 'NOPE' in StoreManager in RefStore"),
        (store(verify={"backend": {"ref_store": {"name": "NOPE"}}}), "Failed to find store 'NOPE'"),
        (put(f"{SERVICES}.cas.0.cas_store", "NOPE"), "create CAS service: 'cas_store': 'NOPE' does not exist"),
        (put(f"{SERVICES}.ac.0.ac_store", "NOPE"), "create AC service: 'ac_store': 'NOPE' does not exist"),
        (put(f"{SERVICES}.execution.0.scheduler", "NOPE"), "config for 'NOPE' because it exists in execution"),
        (
            put(f"{SERVICES}.capabilities.0.remote_execution.scheduler", "NOPE"),
            "config for 'NOPE' because it exists in capabilities",
        ),
        (put("servers.1.services.worker_api.scheduler", "NOPE"), "config for 'NOPE' because it exists in worker_api"),
        (put("servers.0.listener.http.socket_address", "localhost:0"), "Invalid address 'localhost:0'"),
        (
            put("schedulers.0", {"name": "MAIN", "cache_lookup": {"ac_store": "NOPE", "scheduler": {"simple": {}}}}),
            "Failed to create scheduler 'MAIN': 'ac_store': 'NOPE' does not exist",
        ),
        (put("schedulers.0.simple.supported_platform_properties.cpu_count", "most"), "supported_platform_properties"),
        (put(f"{WORKER}.cas_fast_slow_store", "CAS"), "Expected store for LocalWorker's store to be a FastSlowStore"),
        (put("stores.2.fast_slow.fast", {"memory": {}}), "Expected FilesystemStore store for .fast_store()"),
        (put(f"{WORKER}.upload_action_result.ac_store", "NOPE"), "Failed to find store for ac_store in worker config"),
        (put(f"{WORKER}.work_directory", "/proc/none/actions"), "/proc/none"),
        (put(f"{WORKER}.name", "${NOT_SET}"), "error looking key 'NOT_SET' up: environment variable not found"),
        (store(redis_store={**REDIS, "addresses": []}), "No addresses were specified in redis store configuration"),
        (store(redis_store={**REDIS, "addresses": ["redis://:s3cret@127.0.0.1:1"]}), "While connecting to redis"),
        (ON_REDIS, "'redis_store': 'MORE' does not exist"),
        (grpc("grpcs://localhost:1"), "is https or grpcs, but no TLS configuration was provided"),
        (grpc("grpc://localhost:1", ca_file="/etc/ssl/certs/ca-certificates.crt"), "the scheme is not https or grpcs"),
        (grpc("grpcs://localhost:1", cert_file="/none", key_file="/none"), "CA certificate must be provided"),
        (grpc("grpcs://localhost:1", ca_file="/none"), "no such file"),
        (grpc("grpcs://localhost:1", ca_file="/none", cert_file="/none"), "certificate specified, but no key"),
        (grpc("grpcs://localhost:1", ca_file="/none", key_file="/none"), "key specified, but no certificate"),
        (
            put("servers.0.listener.http.tls", {"cert_file": "/none", "key_file": "/none", "client_ca_file": "/none"}),
            "Could not open cert file /none",
        ),
        (lambda config: (store(memory={})(config), ON_REDIS(config)), "Could not downcast to redis store"),
    ],
)
def test_the_stand_in_refuses_what_the_original_refuses(tmp_path: Path, edit: Edit, says: str) -> None:
    said = refusal(tmp_path, edit)
    assert says in said
    assert "s3cret" not in said


def test_a_second_worker_of_a_name_and_a_taken_port_are_refused(tmp_path: Path) -> None:
    twice = put(f"{WORKER}.name", "one")
    same = refusal(tmp_path, twice, lambda config: config["workers"].append(config["workers"][0]))
    assert "Duplicate worker name 'one' found in config" in same
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = refusal(tmp_path, put("servers.0.listener.http.socket_address", address))
    assert f"Address '{address}' is already in use by another process." in said


def test_the_stand_in_does_not_start_without_a_schema(tmp_path: Path) -> None:
    shutil.copy(program("nativelink"), tmp_path / "nativelink")
    (tmp_path / "good.json5").write_text(json.dumps({"stores": [], "servers": []}))
    command = [tmp_path / "nativelink", tmp_path / "good.json5"]
    plain = {name: value for name, value in os.environ.items() if name != "NATIVELINK_SCHEMA"}
    done = subprocess.run(command, env=plain, capture_output=True, text=True, check=False, timeout=patient(20))
    assert (done.returncode, "no JSON Schema to check the configuration with" in done.stderr) == (1, True)
    assert f"there is no {tmp_path}/nativelink.schema.json" in done.stderr
    # A schema that does not name its version is refused, too.
    (tmp_path / "nativelink.schema.json").write_text("{}")
    done = subprocess.run(command, env=plain, capture_output=True, text=True, check=False, timeout=patient(20))
    assert (done.returncode, 'its title is ""' in done.stderr) == (1, True)


# Behavior ------------------------------------------------------------------------------------------------------------


def field(number: int, value: int | str | bytes) -> bytes:
    """Return one field of a protobuf message: https://protobuf.dev/programming-guides/encoding/."""

    def varint(rest: int) -> bytes:
        return bytes([rest]) if rest < 128 else bytes([rest & 127 | 128]) + varint(rest >> 7)

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    content = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(content)) + content


def digest(blob: bytes) -> bytes:
    return field(1, hashlib.sha256(blob).hexdigest()) + field(2, len(blob))


class Farm:
    """One process with CAS, scheduler and worker, and its clients."""

    def __init__(self, folder: Path, *edits: Edit, schema: Path = NEWEST, **environment: str) -> None:
        self.folder = folder
        self.public, self.internal = free_ports(2)
        self.config = configuration(folder, self.public, self.internal)
        for edit in edits:
            edit(self.config)
        self.environment = {"NATIVELINK_SCHEMA": str(schema), "NL_LOG": "json", **environment}
        self.started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Farm:
        self.nativelink = self.start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.started:
            process.kill()
            process.wait()

    def start(
        self, name: str = "nativelink", *, workers: int = 1, config: Object | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a process, and wait until the scheduler has so many workers."""
        (self.folder / f"{name}.json5").write_text(json.dumps(config or self.config))
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [program("nativelink"), str(self.folder / f"{name}.json5")],
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
            )
        self.started.append(process)
        self.has(workers)
        return process

    def has(self, workers: int) -> None:
        """Wait until the scheduler has so many workers."""
        until(
            f"{workers} workers",
            lambda: len(self.state()["workers"]) == workers,
            20,
            lambda: "".join(f"\n{log}: {log.read_text()[-800:]}" for log in self.folder.glob("*.log")),
        )

    def start_worker(self, name: str, *, workers: int, **properties: str) -> subprocess.Popen[bytes]:
        """Start another worker in its own process, and wait until the scheduler has so many workers."""
        address = {"address": f"grpc://127.0.0.1:{self.public}"}
        there = {
            kind: {"grpc": {"instance_name": "main", "endpoints": [address], "store_type": kind}} for kind in CACHES
        }
        fast = {"content_path": f"{self.folder}/{name}/content", "temp_path": f"{self.folder}/{name}/temp"}
        worker = self.config["workers"][0]["local"] | {
            "name": f"{name}-",
            "work_directory": f"{self.folder}/{name}/actions",
            "platform_properties": {key: {"values": [value]} for key, value in properties.items()},
        }
        both = {"name": "WORKER", "fast_slow": {"fast": {"filesystem": fast}, "slow": there["cas"]}}
        stores = [both, {"name": "AC", **there["ac"]}]
        return self.start(
            name, workers=workers, config={"stores": stores, "workers": [{"local": worker}], "servers": []}
        )

    def said(self, name: str = "nativelink") -> str:
        return (self.folder / f"{name}.log").read_text()

    def told(self, message: str, name: str = "nativelink") -> list[Object]:
        """Return the fields of the log lines with a message."""
        lines = [json.loads(line) for line in self.said(name).splitlines() if line.startswith("{")]
        return [line["fields"] for line in lines if line["fields"]["message"] == message]

    def small_read(self) -> float:
        """Return the median time of a small read, in milliseconds."""
        where = ("--cas-endpoint", f"grpc://127.0.0.1:{self.public}")
        command = [program("reapi-load"), "cas", *where, "--concurrency=1", "--seconds=0.5"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        rates = {each["kind"]: each["p50_ms"] for each in map(json.loads, lines)}
        return float(rates["BatchReadBlobs of 1, small"])

    def state(self) -> Object:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.internal}/standin/state", timeout=10) as answer:
            return json.load(answer)

    def load(self, *arguments: str) -> subprocess.Popen[str]:
        where = f"grpc://127.0.0.1:{self.public}"
        command = [program("reapi-load"), "--execute-endpoint", where, "--cas-endpoint", where, *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.started.append(process)  # type: ignore[arg-type]
        return process

    def runs(self, *arguments: str) -> Object:
        """Return the result of one action, which must end."""
        output, _ = self.load("--actions", "1", "--seconds", "0-0", *arguments).communicate(timeout=patient(40))
        return json.loads(output.splitlines()[0])["actions"][0]

    def waits(self, *arguments: str) -> bool:
        """Return True if an action stays queued for two seconds."""
        holding = self.load("--actions", "1", "--seconds", "0-0", "--hold", "2", *arguments)
        before = self.state()["completed"]
        holding.wait(patient(40))
        return self.state()["completed"] == before

    def call(self, service: str, method: str, message: bytes) -> bytes:
        """Return a method's raw answer, with its status at the end."""
        sent = self.folder / "message"
        sent.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
        command = ["curl", "-sSi", "-m", "30", "--http2-prior-knowledge", "-H", "content-type: application/grpc"]
        command += ["-H", "te: trailers", "--data-binary", f"@{sent}"]
        url = f"http://127.0.0.1:{self.public}/build.bazel.remote.execution.v2.{service}/{method}"
        return subprocess.run([*command, url], capture_output=True, check=True).stdout

    def upload(self, blob: bytes, claimed: bytes | None = None) -> bytes:
        """Store a blob, under the digest of another if that is ``claimed``."""
        message = field(1, "main") + field(2, field(1, digest(claimed or blob)) + field(2, blob))
        return self.call("ContentAddressableStorage", "BatchUpdateBlobs", message)

    def download(self, blob: bytes) -> bytes:
        """Return what is stored under a blob's digest."""
        return self.call("ContentAddressableStorage", "BatchReadBlobs", field(1, "main") + field(2, digest(blob)))

    def execute(self, arguments: list[str], *, skip_cache: bool = False, **properties: str) -> bytes:
        """Return everything that Execute answers about an action."""
        platform = b"".join(field(1, field(1, name) + field(2, text)) for name, text in sorted(properties.items()))
        command = b"".join(field(1, each) for each in arguments)
        action = field(1, digest(command)) + field(2, digest(b"")) + field(10, platform)
        self.upload(command)
        self.upload(action)
        message = field(1, "main") + field(3, int(skip_cache)) + field(6, digest(action))
        return self.call("Execution", "Execute", message)


EVIL, GOOD = b"evil bytes", b"good bytes"


def verified(config: Object) -> None:
    checks = {"verify_size": True, "verify_hash": True, "backend": {"ref_store": {"name": "CAS"}}}
    store(verify=checks)(config)
    put(f"{SERVICES}.cas.0.cas_store", "MORE")(config)


def test_bytes_are_hashed_behind_verify_only(tmp_path: Path) -> None:
    for name in ("plain", "verified"):
        (tmp_path / name).mkdir()
    with Farm(tmp_path / "plain") as farm:
        farm.upload(EVIL, claimed=GOOD)
        assert EVIL in farm.download(GOOD)
    with Farm(tmp_path / "verified", verified) as farm:
        assert b"Hash verification using SHA256 failed: client declared SHA256:" in farm.upload(EVIL, claimed=GOOD)
        assert b"Identity data size 9 does not match expected size 10" in farm.upload(EVIL[1:], claimed=GOOD)
        assert EVIL not in farm.download(GOOD)
        farm.upload(GOOD)
        assert GOOD in farm.download(GOOD)
        assert farm.runs()["outcome"] == "ok"


def test_v132_refuses_wrong_bytes_in_other_words(tmp_path: Path) -> None:
    with Farm(tmp_path, verified, schema=V132) as farm:
        good, evil = (hashlib.sha256(blob).hexdigest() for blob in (GOOD, EVIL))
        words = f"Hashes do not match, got: {good} but digest hash was {evil}"
        assert words.encode() in farm.upload(EVIL, claimed=GOOD)
        assert b"Digest for upload had mismatching sizes" in farm.upload(EVIL[1:], claimed=GOOD)


def looked_up(config: Object) -> None:
    config["schedulers"][0] = {
        "name": "MAIN",
        "cache_lookup": {"ac_store": "AC", "scheduler": {"simple": config["schedulers"][0]["simple"]}},
    }


@pytest.mark.parametrize(("edits", "runs"), [((), 2), ((looked_up,), 1)], ids=["simple", "cache_lookup"])
def test_a_repeated_execute_is_answered_by_cache_lookup_only(tmp_path: Path, edits: tuple[Edit], runs: int) -> None:
    command = ["/bin/sh", "-c", f"echo ran >> {tmp_path}/ran"]
    with Farm(tmp_path, *edits) as farm:
        assert b"ExecuteResponse" in farm.execute(command)
        assert b"ExecuteResponse" in farm.execute(command)
        assert (tmp_path / "ran").read_text().splitlines() == ["ran"] * runs
        farm.execute(command, skip_cache=True)
        assert len((tmp_path / "ran").read_text().splitlines()) == runs + 1


def test_a_declared_property_has_to_be_offered(tmp_path: Path) -> None:
    with Farm(tmp_path) as farm:
        for fits in ("cpu_count=4", "OSFamily=another", "note=anything", "undeclared=anything"):
            assert farm.runs("--platform", fits)["outcome"] == "ok", fits
        for misfit in ("cpu_count=5", "memory_kb=1", "container-image=any"):
            assert farm.waits("--platform", misfit), misfit


def test_v132_does_not_know_undeclared_properties(tmp_path: Path) -> None:
    # This version does not look for a store before the store is used.
    with Farm(tmp_path, store(ref_store={"name": "NOPE"}), schema=V132) as farm:
        assert farm.waits("--platform", "undeclared=anything")
        assert farm.runs("--platform", "cpu_count=1")["outcome"] == "ok"
        farm.start_worker("other", workers=1, undeclared="1")
        until(
            "the worker to be refused", lambda: farm.told("Bad Property during connect_worker()") != [], 20, farm.said
        )
        assert len(farm.state()["workers"]) == 1


def test_the_log_tells_of_workers_that_come_and_go(tmp_path: Path) -> None:
    with Farm(tmp_path) as farm:
        (joined,) = farm.told("Worker registered with scheduler")
        assert re.fullmatch(r"worker-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", joined["worker_id"])
        assert farm.runs("--platform", "cpu_count=1")["worker"] == joined["worker_id"]
        second = farm.start_worker("second", workers=2, memory_kb="1")
        farm.load("--actions", "1", "--seconds", "60-60", "--platform", "memory_kb=1")
        until("the action to run", lambda: farm.told("Executing command", "second") != [], 20, farm.said)
        second.send_signal(signal.SIGTERM)
        assert second.wait(patient(10)) == 143, "a worker ends a second after SIGTERM, whatever it runs"
        until("the worker to be gone", lambda: farm.told("Evicting worker from pool") != [], 20, farm.said)
        (gone,) = farm.told("Evicting worker from pool")
        (its,) = farm.told("Worker registered with scheduler", "second")
        assert (gone["worker_id"], gone["running_actions"], gone["is_disconnect"]) == (its["worker_id"], 1, False)


def certificates(folder: Path, authority: Authority, *trusted: Authority) -> Object:
    """Write a certificate, its key and the trusted CAs. Return their settings in a client."""
    folder.mkdir(exist_ok=True)
    certificate, key = authority.issue("localhost")
    files = {"cert_file": certificate, "key_file": key, "ca_file": b"".join(each.pem for each in trusted)}
    for name, text in files.items():
        (folder / name).write_bytes(text)
    return {name: str(folder / name) for name in files}


def test_only_workers_with_a_certificate_connect(tmp_path: Path) -> None:
    ours, others = Authority("ours"), Authority("others")
    port = free_port()
    where = "localhost"

    def secured(config: Object) -> None:
        files = certificates(tmp_path / "server", ours, ours)
        tls = {"client_ca_file": files.pop("ca_file"), **files}
        listener = {"http": {"socket_address": f"127.0.0.1:{port}", "tls": tls}}
        api = config["servers"][1]["services"].pop("worker_api")
        config["servers"].append({"name": "workers", "listener": listener, "services": {"worker_api": api}})
        put(f"{WORKER}.worker_api_endpoint", endpoint(certificates(tmp_path / "client", ours, ours)))(config)

    def endpoint(tls: Object) -> Object:
        return {"uri": f"grpcs://{where}:{port}", "tls_config": tls}

    def refused(name: str, its: Object, words: str) -> None:
        put(f"{WORKER}.worker_api_endpoint", its)(farm.config)
        farm.start_worker(name, workers=1)
        until(f"{name} to be refused", lambda: words in farm.said(name), 20, lambda: farm.said(name))
        farm.has(1)

    with Farm(tmp_path, secured) as farm:
        refused("plain", {"uri": f"grpc://{where}:{port}"}, "reconnecting")
        refused("unnamed", endpoint({"ca_file": str(tmp_path / "client/ca_file")}), "certificate required")
        refused("trusting", endpoint(certificates(tmp_path / "trusting", ours, others)), "unknown authority")
        refused("incomplete", {"uri": f"grpcs://{where}:{port}"}, "no TLS configuration was provided")
        refused("other", endpoint(certificates(tmp_path / "other", others, ours)), "reconnecting")
        # A worker reads its files whenever it connects, and a server reads them at its start only.
        certificates(tmp_path / "server", others, others)
        certificates(tmp_path / "other", ours, ours)
        farm.has(2)


def test_a_result_that_is_not_cached_does_not_fail_its_action(tmp_path: Path) -> None:
    nowhere = put("stores.1", {"name": "AC", "grpc": grpc_to(f"grpc://127.0.0.1:{free_port()}", "ac")})
    with Farm(tmp_path, nowhere) as farm:
        assert farm.runs("--platform", "cpu_count=1")["outcome"] == "ok"
        assert farm.told("Error saving action in store") != []


def test_rust_log_sets_the_level(tmp_path: Path) -> None:
    with Farm(tmp_path, NL_LOG="compact", RUST_LOG="warn") as farm:
        assert farm.said() == ""
        farm.nativelink.send_signal(signal.SIGTERM)
        farm.nativelink.wait(patient(10))
        assert re.search(r"^\S+Z  WARN Process terminated via SIGTERM$", farm.said(), re.MULTILINE)


@pytest.mark.parametrize(("level", "lines"), [("warn", 0), ("error", 0), ("info", 1)])
def test_rust_log_can_leave_out_the_commands_of_actions(level: str, lines: int, tmp_path: Path) -> None:
    with Farm(tmp_path, RUST_LOG=f"info,nativelink_worker::running_actions_manager={level}") as farm:
        farm.runs("--platform", "cpu_count=1")
        assert len(farm.told("Worker registered with scheduler")) == 1
        assert [len(farm.told(message)) for message in ("Executing command", "Command complete")] == [lines] * 2


TOOL = """#!/bin/sh
touch left-behind
while read -r request; do
  echo "{\\"exitCode\\":0,\\"output\\":\\"served by $$\\"}"
done
"""


def test_a_persistent_worker_serves_again_and_leaves_its_files(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text(TOOL)
    tool.chmod(0o755)
    persistent = {"supports-workers": "1", "requires-worker-protocol": "json"}
    with Farm(tmp_path, looked_up) as farm:
        for request in ("@first", "@second"):
            farm.execute([str(tool), request], **persistent)
        assert [path.name for path in (tmp_path / "actions").iterdir()] == ["left-behind"]
        outputs = {message["args"] for message in farm.told("Persistent worker command complete")}
        assert outputs == {f'["{tool}", "@first"]', f'["{tool}", "@second"]'}
        assert len({message["pid"] for message in farm.told("Persistent worker command complete")}) == 1


# On Redis ------------------------------------------------------------------------------------------------------------


class Redis:
    """A Redis with the search module and an append-only file, on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        (image,) = components.images_of("redis")
        self.files = {Path(name).name: source for name, source in image.files.items()}
        (folder / "libraries").mkdir(parents=True)
        for name, source in self.files.items():
            (folder / "libraries" / name).symlink_to(source)
        for name, target in image.links.items():
            (folder / "libraries" / Path(name).name).symlink_to(target)
        self.environment = {"LD_LIBRARY_PATH": str(folder / "libraries")}

    def __enter__(self) -> Redis:
        command = [str(self.files["redis-server"]), "--port", str(self.port), "--dir", str(self.folder)]
        command += ["--save", "", "--appendonly", "yes", "--loadmodule", str(self.files["redisearch.so"])]
        with (self.folder / "redis.log").open("ab") as log:
            self.server = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        until("Redis", lambda: self.says("PING") == ["PONG"], 20, (self.folder / "redis.log").read_text)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.kill()
        self.server.wait()

    def says(self, *words: str) -> list[str]:
        command = [str(self.files["redis-cli"]), "-p", str(self.port), *words]
        answer = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        return answer.stdout.splitlines()

    def commands(self) -> set[str]:
        """Return the last commands that NativeLink's connections show in three seconds."""
        seen: set[str] = set()
        for _ in range(15):
            lines = [line for line in self.says("CLIENT", "LIST") if " lib-name=redis-rs " in line]
            seen |= {word.removeprefix("cmd=") for line in lines for word in line.split() if word.startswith("cmd=")}
            time.sleep(0.2)
        return seen

    def backend(self, **more: object) -> Edit:
        def edit(config: Object) -> None:
            store(redis_store={**REDIS, "addresses": [f"redis://127.0.0.1:{self.port}"]})(config)
            ON_REDIS(config)
            config["schedulers"][0]["simple"] |= {"fallback_match_interval_s": 1, **more}

        return edit


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    with Redis(tmp_path / "redis") as running:
        yield running


def test_two_schedulers_share_what_is_in_redis(tmp_path: Path, redis: Redis) -> None:
    (tmp_path / "other").mkdir()
    edit = redis.backend(retain_completed_for_s=60)
    with Farm(tmp_path, edit) as farm, Farm(tmp_path / "other", edit) as other:
        assert redis.commands() == {"FT.AGGREGATE"}
        assert farm.runs()["outcome"] == "ok"
        stays = farm.load("--actions", "1", "--seconds", "0-0", "--platform", "memory_kb=1")
        until("the action to be queued", lambda: farm.state()["queued"] == 1, 20)
        until("the other scheduler to know the action", lambda: other.state()["queued"] == 1, 20)
        # Redis shows that both schedulers match: they ask for the queue, and then read each queued action.
        assert "hmget" in redis.commands()
        stays.kill()
        kinds = {key.partition("_")[0] for key in redis.says("KEYS", "*")}
        assert kinds == {"aa", "cid"}


def test_a_client_that_waits_for_long_leaves_a_key_that_never_expires(tmp_path: Path, redis: Redis) -> None:
    with Farm(tmp_path, redis.backend(retain_completed_for_s=60)) as farm:
        assert farm.runs("--seconds", "11-11")["outcome"] == "ok"
        (left,) = redis.says("KEYS", "ck_*")
        assert (redis.says("TYPE", left), redis.says("TTL", left)) == (["hash"], ["-1"])
        (done,) = redis.says("KEYS", "aa_*")
        assert redis.says("HGET", done, "state") == ["completed"]
        assert 0 < int(redis.says("TTL", done)[0]) <= 60
        (client,) = redis.says("KEYS", "cid_*")
        assert 86000 < int(redis.says("TTL", client)[0]) <= 86400


def test_the_first_starts_are_dead(tmp_path: Path, redis: Redis) -> None:
    """A dead scheduler is healthy and takes workers and actions, but never runs an action. The next start does."""
    kept = {"content_path": f"{tmp_path}/cas/content", "temp_path": f"{tmp_path}/cas/temp"}
    stays = put("stores.0", {"name": "CAS", "filesystem": kept})
    with Farm(tmp_path, redis.backend(), stays, NATIVELINK_STANDIN_DEAD_STARTS="1") as farm:
        assert "FT.AGGREGATE" not in redis.commands()
        assert [name for name in redis.says("FT._LIST") if name] == []
        with urllib.request.urlopen(f"http://127.0.0.1:{farm.internal}/status", timeout=10) as answer:
            assert answer.status == 200
        load = farm.load("--actions", "1", "--seconds", "0-0", "--retries", "100")
        until("the action to be queued", lambda: farm.state()["queued"] == 1, 20)
        time.sleep(3)
        assert farm.state()["queued"] == 1
        farm.nativelink.kill()
        farm.nativelink.wait()
        farm.nativelink = farm.start()
        output, _ = load.communicate(timeout=patient(30))
        assert json.loads(output.splitlines()[0])["ok"] == 1
        assert "FT.AGGREGATE" in redis.commands()


def test_a_result_that_redis_does_not_take_strands_its_action(tmp_path: Path, redis: Redis) -> None:
    with Farm(tmp_path, redis.backend(max_action_executing_timeout_s=6)) as farm:
        load = farm.load("--actions", "1", "--seconds", "1-1")
        until("the action to run", lambda: farm.told("Executing command") != [], 20, farm.said)
        redis.__exit__()
        until("the action to end", lambda: farm.told("Command complete") != [], 20, farm.said)
        until("the result to be lost", lambda: farm.told("Failed to update_operation on update_action") != [], 20)
        redis.__enter__()
        time.sleep(1)
        assert farm.state()["executing"] == 1, "the worker has forgotten the action, and the client waits"
        assert [worker["running"] for worker in farm.state()["workers"]] == [0]
        output, _ = load.communicate(timeout=patient(40))
        assert json.loads(output.splitlines()[0])["ok"] == 1
        assert len(farm.told("Executing command")) == 2


def test_the_subscription_is_lost_with_its_connection(tmp_path: Path, redis: Redis) -> None:
    def subscribed() -> list[bool]:
        return [" psub=1 " in line for line in redis.says("CLIENT", "LIST") if " lib-name=redis-rs " in line]

    with Farm(tmp_path, redis.backend()) as farm:
        assert subscribed() == [True]
        redis.says("CLIENT", "KILL", "TYPE", "pubsub")
        until("NativeLink to connect again", lambda: subscribed() == [False], 20)
        redis.says("CLIENT", "PAUSE", "4500", "ALL")
        with urllib.request.urlopen(f"http://127.0.0.1:{farm.internal}/status", timeout=30) as answer:
            assert answer.status == 200
        until("NativeLink to subscribe again", lambda: subscribed() == [True], 20)


def test_with_nagles_algorithm_a_small_answer_waits_for_the_receiver(tmp_path: Path) -> None:
    """With the switch an answer takes 43 ms, as with the original. Without the switch, no answer takes that long."""
    quick, slow = tmp_path / "quick", tmp_path / "slow"
    for folder in (quick, slow):
        folder.mkdir()
    with Farm(quick) as farm:
        at_once = farm.small_read()
    with Farm(slow, NATIVELINK_STANDIN_NAGLE="1") as farm:
        assert farm.small_read() > 4 * at_once
