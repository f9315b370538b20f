"""Copies what the volume of a CAS pod has and another pod should have, by the layout of the CAS.

    python3 copier.py SETTINGS

SETTINGS is JSON: `volume` is a folder with the stores `cas` and `ac`, `own` the host of the volume's pod, `shards` a
list of hosts with the last key of each, `slice` and `writers` their ports, `rate` the most bytes a second, and `tls`
the files of the certificate for the port of writers, or empty.

NativeLink has no call that lists content, so the names of its files do. It writes a file elsewhere and renames it, so
that each one is whole. Content goes to the slice of its pod, which refuses what its digest does not name. Action
results go to the port of those that may write them, which refuses other bytes, such as those of NativeLink's health
probe. What a pod has already is not sent again, so that another run goes on where one ended. NativeLink answers gRPC
over HTTP/1.1, too, with which the standard library suffices.
"""

import http.client
import json
import os
import re
import ssl
import struct
import sys
import time
import uuid
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial, reduce
from itertools import islice
from operator import xor
from pathlib import Path
from urllib.parse import unquote

_API = "/build.bazel.remote.execution.v2"
_INSTANCE = "slice"
_CHUNK = 1024**2
_BATCH = 500  # digests of a question
_PATIENCE = 300  # seconds that a pod may be away, or take to answer
_PAUSE = 2  # seconds until the next attempt
_REPORT = 60  # seconds between two lines of the log
_NAME = re.compile(r"([0-9a-f]{64})-(\d+)")
_NOT_FOUND = "5"
_LATER = ("4", "8", "14")  # gRPC's codes for a pod that is late, has too much to do, or is not there

Digest = tuple[str, int]
Field = int | str | bytes


class RefusedError(Exception):
    """A pod answered with an error. Its status is `status`."""

    def __init__(self, status: str, message: str) -> None:
        """Take the parts of a gRPC status."""
        super().__init__(message)
        self.status = status


def key(digest: Digest) -> int:
    """The number by which NativeLink's `shard` store chooses an entry."""
    words = struct.unpack("<8I", bytes.fromhex(digest[0])) + struct.unpack("<2I", digest[1].to_bytes(8, "little"))
    return reduce(xor, words)


def message(*fields: tuple[int, Field]) -> bytes:
    """A message of Protocol Buffers, from the numbers of its fields and their values."""
    return b"".join(
        _number(number << 3) + _number(value)
        if isinstance(value, int)
        else _number(number << 3 | 2) + _number(len(value)) + value
        for number, value in ((number, value.encode() if isinstance(value, str) else value) for number, value in fields)
    )


def _number(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _digest(digest: Digest) -> bytes:
    return message((1, digest[0]), (2, digest[1]))


class Pod:
    """The connections to a pod of the CAS, which may restart meanwhile."""

    def __init__(self, host: str, settings: dict) -> None:
        """Take the settings of the module's text. Nothing connects until the first call."""
        self._rate, tls = settings["rate"], settings["tls"]
        self._slice, self._writers = (
            http.client.HTTPConnection(host, settings[port], timeout=_PATIENCE) for port in ("slice", "writers")
        )
        if tls:
            context = ssl.create_default_context(cafile=tls["ca_file"])
            context.load_cert_chain(tls["cert_file"], tls["key_file"])
            self._writers = http.client.HTTPSConnection(host, settings["writers"], timeout=_PATIENCE, context=context)

    def missing(self, digests: list[Digest]) -> set[str]:
        """The hashes of the content that the pod lacks."""
        asked = message((1, _INSTANCE), *((2, _digest(each)) for each in digests))
        answer = _call(self._slice, f"{_API}.ContentAddressableStorage/FindMissingBlobs", lambda: iter([asked]))
        return {found.decode() for found in re.findall(rb"[0-9a-f]{64}", answer)}

    def put(self, digest: Digest, path: Path) -> None:
        """Send content, whose digest may be one of SHA-256 or of BLAKE3."""
        for function in ("", "blake3/"):
            name = f"{_INSTANCE}/uploads/{uuid.uuid4()}/blobs/{function}{digest[0]}/{digest[1]}"
            sent = partial(self._written, name, digest, path)
            try:
                _call(self._slice, "/google.bytestream.ByteStream/Write", sent)
            except RefusedError:
                if function:
                    raise
            else:
                return

    def has_result(self, digest: Digest) -> bool:
        """Whether the pod has a result of an action."""
        asked = message((1, _INSTANCE), (2, _digest(digest)))
        try:
            _call(self._slice, f"{_API}.ActionCache/GetActionResult", lambda: iter([asked]))
        except RefusedError as refused:
            if refused.status == _NOT_FOUND:
                return False
            raise
        return True

    def put_result(self, digest: Digest, path: Path) -> None:
        """Send a result of an action."""
        sent = message((1, _INSTANCE), (2, _digest(digest)), (3, path.read_bytes()))
        _call(self._writers, f"{_API}.ActionCache/UpdateActionResult", lambda: iter([sent]))

    def _written(self, name: str, digest: Digest, path: Path) -> Iterator[bytes]:
        """The messages that write content, not more than the rate allows."""
        offset = 0
        with path.open("rb") as file:
            while offset < digest[1] and (data := file.read(_CHUNK)):
                end = offset + len(data)
                yield message((1, name), (2, offset), (3, end == digest[1]), (10, data))
                time.sleep(len(data) / self._rate)
                offset = end


def _call(connection: http.client.HTTPConnection, path: str, sent: Callable[[], Iterator[bytes]]) -> bytes:
    """The answer to a call. OSError if the pod is away for too long, RefusedError if it answers with an error."""
    deadline = time.monotonic() + _PATIENCE
    headers = {"Content-Type": "application/grpc", "TE": "trailers"}
    while True:
        try:
            framed = (b"\0" + struct.pack(">I", len(each)) + each for each in sent())
            connection.request("POST", path, framed, headers)
            answer = connection.getresponse()
            body = answer.read()
            status, text = answer.getheader("grpc-status", "0"), unquote(answer.getheader("grpc-message", ""))
            if status not in _LATER:
                break
            raise OSError(text)
        except FileNotFoundError:  # NativeLink has evicted what was to be sent
            connection.close()
            raise
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            if time.monotonic() > deadline:
                raise OSError(f"{connection.host}:{connection.port}: {error}") from error
            time.sleep(_PAUSE)
    if answer.status != 200 or status != "0" or len(body) < 5:
        raise RefusedError(status, text or f"status {answer.status}")
    return body[5:]


class Copier:
    """Copies the stores of a volume. `counted` says what became of the files that belong elsewhere."""

    def __init__(self, settings: dict) -> None:
        """Take the settings of the module's text."""
        self._volume, self._own = Path(settings["volume"]), settings["own"]
        self._hosts = [host for host, _unused in settings["shards"]]
        self._ends = [end for _unused, end in settings["shards"]]
        self._pods = {host: Pod(host, settings) for host in self._hosts}
        self._told = time.monotonic()
        self.counted: Counter[str] = Counter()

    def run(self) -> None:
        """Copy content, and then the results that name it."""
        for store, copy in (("cas", self._contents), ("ac", self._results)):
            files = self._elsewhere(store)
            while batch := list(islice(files, _BATCH)):
                found = defaultdict(list)
                for host, digest in batch:
                    found[host].append(digest)
                for host, digests in found.items():
                    copy(self._pods[host], digests)

    def _elsewhere(self, store: str) -> Iterator[tuple[str, Digest]]:
        """The files of a store that belong to another pod."""
        folder = self._folder(store)
        for entry in os.scandir(folder) if folder.is_dir() else ():
            if name := _NAME.fullmatch(entry.name):
                digest = name[1], int(name[2])
                host = self._hosts[bisect_left(self._ends, key(digest))]
                if host != self._own:
                    yield host, digest

    def _folder(self, store: str) -> Path:
        return self._volume / store / "content/d"

    def _contents(self, pod: Pod, digests: list[Digest]) -> None:
        missing = pod.missing(digests)
        for digest in digests:
            if digest[0] in missing and digest[1]:
                self._send("content", digest, pod.put)
            else:
                self._count("there")

    def _results(self, pod: Pod, digests: list[Digest]) -> None:
        for digest in digests:
            if pod.has_result(digest):
                self._count("there")
            else:
                self._send("result", digest, pod.put_result)

    def _send(self, kind: str, digest: Digest, put: Callable[[Digest, Path], None]) -> None:
        path = self._folder("cas" if kind == "content" else "ac") / f"{digest[0]}-{digest[1]}"
        try:
            size = path.stat().st_size
            put(digest, path)
        except FileNotFoundError:
            self._count("evicted")
            return
        except RefusedError as refused:
            print(f"{path.name}: refused: {refused}", flush=True)
            self._count("refused")
            return
        self.counted["bytes"] += size
        self._count(kind)

    def _count(self, what: str) -> None:
        self.counted[what] += 1
        if time.monotonic() > self._told + _REPORT:
            self._told = time.monotonic()
            print(self, flush=True)

    def __str__(self) -> str:
        """Return what was done so far."""
        of = self.counted
        done = f"copied {of['content']} blobs and {of['result']} results, {of['bytes'] / 1e6:.1f} MB"
        more = [f"{of[each]} {each}" for each in ("there", "evicted", "refused") if of[each]]
        return "; ".join([done, *more])


if __name__ == "__main__":
    copier = Copier(json.loads(sys.argv[1]))
    copier.run()
    print(copier)
