"""reapi-load, the client of the tests. Only this module puts its command line together."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from ansible_collections.nativelink.gitops.plugins.plugin_utils.reapi import CallError, Identity, Reapi, digest

from testbed import build
from testbed.waiting import patient
from testkit import nativelink

Object = dict[str, Any]
Process = subprocess.Popen[str]
_PART = 2**20  # bytes of an upload that a message has


@dataclass(frozen=True)
class Client:
    """A client of a scheduler and a CAS. Addresses look like ``grpc://10.96.0.17:50052``."""

    execute: str
    cas: str
    more: tuple[str, ...] = ()
    """Further options of its connections, such as ``--tls-certificate=FILE``."""

    def command(self, *arguments: str, **platform: str) -> list[str]:
        """Return a command line. The first argument may be a subcommand, and actions ask for ``pool="default"``."""
        tool, cas = str(build.program("reapi-load")), f"--cas-endpoint={self.cas}"
        if arguments and not arguments[0].startswith("-"):
            return [tool, arguments[0], cas, *self.more, *arguments[1:]]
        asked = [f"--platform={name}={value}" for name, value in platform.items()]
        return [tool, f"--execute-endpoint={self.execute}", cas, *self.more, *asked, *arguments]

    def start(self, *arguments: str, **platform: str) -> Process:
        """Start a client, whose report ``reported`` returns."""
        pipe = subprocess.PIPE
        return subprocess.Popen(self.command(*arguments, **platform), stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def report(self, *arguments: str, **platform: str) -> Object:
        """Run a client, and return its report: ``{"ok": 1, "failed": 0, "actions": [{"outcome": "ok", …}]}``."""
        return reported(self.start(*arguments, **platform))

    def act(self, script: str, *arguments: str, **platform: str) -> str:
        """Run a script of bash as an action. Return how it ended and what it printed, in one line."""
        command = json.dumps(["/bin/bash", "-c", script])
        (action,) = self.report(f"--command={command}", *arguments, **platform)["actions"]
        return " ".join([action["outcome"], action["line"], action["errors"]])

    def put(self, *arguments: str) -> dict[str, str]:
        """Write blobs, and return what became of each: ``{"batch": "refused: …", "stream": "taken, …"}``."""
        return reported(self.start("put", *arguments))

    def codes(self) -> dict[str, str]:
        """Call each method once, of blobs and actions that do not exist. Return the codes of the answers by method."""
        content, unknown = os.urandom(16), digest(os.urandom(16))
        blob, upload = _names(content)
        calls: dict[str, Object] = {
            "Capabilities.GetCapabilities": {"instance_name": "main"},
            "ContentAddressableStorage.FindMissingBlobs": {"instance_name": "main", "blob_digests": [unknown]},
            "ContentAddressableStorage.BatchReadBlobs": {"instance_name": "main", "digests": [unknown]},
            "ByteStream.Read": {"resource_name": blob},
            "ActionCache.GetActionResult": {"instance_name": "main", "action_digest": unknown},
            "ContentAddressableStorage.BatchUpdateBlobs": {"instance_name": "main"},
            "ByteStream.Write": {"resource_name": upload, "data": content, "finish_write": True},
            "ByteStream.QueryWriteStatus": {"resource_name": upload},
            "Execution.Execute": {"instance_name": "main", "action_digest": unknown},
            "ActionCache.UpdateActionResult": {
                "instance_name": "main",
                "action_digest": unknown,
                "action_result": {"stdout_raw": content},
            },
        }
        channel, found = self._channel(), {}
        for name, fields in calls.items():
            try:
                answer = channel.call(name, timeout=30, **fields)
                if isinstance(answer, Iterator):
                    next(answer, None)
                code = "OK"
            except CallError as error:
                code = error.code
            found[name.partition(".")[2]] = code
        return found

    def resumed(self, uploads: int) -> Counter[str]:
        """Cut the connection of each upload in its middle, and go on from where the server says on another connection.

        A server that does not say it gets all of it again, as from Bazel. Return how often each thing happened:
        ``{"resumed": 28, "from the beginning": 1, "INVALID_ARGUMENT": 1}``.
        """
        told: Counter[str] = Counter()
        for _ in range(uploads):
            content = os.urandom(3 * _PART)
            name, channel = _names(content)[1], self._channel()
            with contextlib.suppress(CallError):
                channel.send("ByteStream.Write", channel.cut(islice(_parts(name, content), 2)), 60)
            told[_went_on(self._channel(), name, content)] += 1
        return told

    def _channel(self) -> _Channel:
        """Connect to the CAS, or to what stands in front of it, with the options of the connections."""
        scheme, _, address = self.cas.partition("://")
        options = [option.removeprefix("--").split("=", 1) for option in self.more]
        files = {name: Path(value).read_bytes() for name, value in options if name.startswith("tls-")}
        who = Identity(
            files.get("tls-client-certificate"),
            files.get("tls-client-key"),
            dict(value.split("=", 1) for name, value in options if name == "header"),
        )
        to, name = dict(options).get("connect-to", address), address.partition(":")[0]
        return _Channel(to, "main", tls=scheme == "grpcs", name=name, ca=files.get("tls-certificate"), who=who)


class _Channel(Reapi):
    """A connection that can break."""

    def cut(self, parts: Iterable[Object]) -> Iterator[Object]:
        """Close the connection after parts of an upload, when they have arrived."""
        yield from parts
        time.sleep(0.2)
        self._channel.close()


def _names(content: bytes) -> tuple[str, str]:
    """Return the names of a blob and of a new upload of it."""
    blob = "blobs/{hash}/{size_bytes}".format(**digest(content))
    return f"main/{blob}", f"main/uploads/{uuid.uuid4()}/{blob}"


def _parts(name: str, content: bytes, begin: int = 0) -> Iterator[Object]:
    for at in range(begin, len(content), _PART):
        end = at + _PART
        yield {
            "resource_name": name,
            "write_offset": at,
            "data": content[at:end],
            "finish_write": end >= len(content),
        }


def _went_on(channel: Reapi, name: str, content: bytes) -> str:
    try:
        begin = channel.call("ByteStream.QueryWriteStatus", resource_name=name).committed_size
    except CallError as error:
        if error.code != "UNIMPLEMENTED":
            return error.code
        begin = 0
    try:
        channel.send("ByteStream.Write", _parts(name, content, begin), 60)
    except CallError as error:
        return error.code
    return "resumed" if begin else "from the beginning"


def reported(client: Process) -> Object:
    """Wait for the end of a client, and return its report. AssertionError with its errors if it has none.

    Each action has in ``moments`` when a part of its execution ended, in seconds since 1970 by the clocks of scheduler
    and worker: ``{"executionStart": 1795990948.79, …}``. Moments that they do not report are missing.
    """
    said, errors = client.communicate()
    assert said, errors
    report = dict(json.loads(said))
    for action in report.get("actions", ()):
        told = {name: text for name, text in action.get("metadata", {}).items() if name.endswith("Timestamp")}
        action["moments"] = {
            name.removesuffix("Timestamp"): datetime.fromisoformat(text).timestamp() for name, text in told.items()
        }
    return report


def watched(client: Process, look: Callable[[], object], seconds: float = 1) -> str:
    """Look again and again until a client ends, and return what it said. A report may be larger than a pipe."""
    while True:
        look()
        try:
            return "".join(client.communicate(timeout=seconds))
        except subprocess.TimeoutExpired:
            continue


@contextlib.contextmanager
def repeated(command: list[str]) -> Iterator[None]:
    """Run a client again and again, whether it succeeds or not."""
    loop, nowhere = 'while :; do "$@"; sleep 0.2; done', subprocess.DEVNULL
    command = ["sh", "-c", loop, "sh", *command]
    with subprocess.Popen(command, stdout=nowhere, stderr=nowhere, start_new_session=True) as process:
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)


class Load:
    """Actions that wait in a scheduler: ``hold(400)`` starts or ends clients until there are 400.

    The actions ask for pools without workers, so that none begins. NativeLink counts a queued action until a minute
    after its client has disconnected. To end actions sooner, workers on this machine run them, which needs the address
    of the worker API. Without that address, or with a ``pool`` that the actions ask for, the clients just end. A client
    holds at most ``chunk`` actions. While the demand falls, up to that many actions count twice for a moment.
    """

    def __init__(self, client: Client, chunk: int = 40, pool: str = "", workers: str = "", **platform: str) -> None:
        self.client, self.chunk, self.pool, self.workers = client, chunk, pool, workers if not pool else ""
        self.platform = platform
        self._clients: list[_Held] = []

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
        ended: list[_Held] = []
        while self.held > actions:
            ended.append(self._clients.pop())
        started = []
        for first in range(self.held, actions, self.chunk):
            size = min(self.chunk, actions - first)
            pool = self.pool or f"held-{uuid.uuid4()}"
            asked = {**self.platform, "pool": pool}
            process = self.client.start("--hold=7200", "--timeout=7200", "--seconds=0-0", f"--actions={size}", **asked)
            started.append(_Held(size, pool, process))
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
                    if told != wanted:
                        client.process.kill()
                        errors = client.process.communicate()[1]
                        raise AssertionError(
                            f"a client should print {wanted!r} within {seconds:.0f} s, but printed {told!r}\n{errors}"
                        )
                    at = at if word == "queued" else time.monotonic()
        finally:
            deadline.cancel()
            self._end(ended)
        return at or time.monotonic()

    def _end(self, clients: list[_Held]) -> None:
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
            endpoints = [{"address": self.client.cas}]
            remote = {"grpc": {"instance_name": "main", "endpoints": endpoints, "store_type": "cas"}}
            files = {"content_path": f"{folder}/content", "temp_path": f"{folder}/temp", "eviction_policy": {}}
            local = {
                "name": pool,
                "worker_api_endpoint": {"uri": self.workers},
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
class _Held:
    """A client, the number of its actions, and the pool that they ask for."""

    actions: int
    pool: str
    process: Process
