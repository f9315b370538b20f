"""Reads the action cache and the CAS: calls of the Remote Execution API. NativeLink answers gRPC over HTTP/1.1, too."""

import http.client
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

from .api import ApiError

_API = "/build.bazel.remote.execution.v2"
# The fields of ExecutedActionMetadata, in the order of time.
_STAGES = {
    2: "queued",
    3: "worker_start",
    5: "input_fetch_start",
    6: "input_fetch_completed",
    7: "execution_start",
    8: "execution_completed",
    9: "output_upload_start",
    10: "output_upload_completed",
    4: "worker_completed",
}
Fields = dict[int, list[Any]]


class Results:
    """A CAS pod's listener for clients, which answers for all shards. `instance` is the name that clients use."""

    def __init__(self, connection: http.client.HTTPConnection, instance: str) -> None:
        """Take a connection to the pod."""
        self._connection, self._instance = connection, instance

    def result(self, digest: str) -> dict[str, Any] | None:
        """What the action cache has of an action: exit code, worker, and the times of its stages. None if nothing."""
        asked = _message((1, self._instance.encode()), (2, _digest(digest)))
        answer = self._call("ActionCache/GetActionResult", asked)
        if answer is None:
            return None
        metadata = _fields(answer.get(9, [b""])[-1])
        stages = {name: _time(metadata[number][-1]) for number, name in _STAGES.items() if number in metadata}
        worker = metadata.get(1, [b""])[-1].decode()
        return {"exit_code": answer.get(4, [0])[-1], "worker": worker, "stages": stages}

    def properties(self, digest: str) -> dict[str, str] | None:
        """The platform properties that an action asks for; None if the CAS does not have it."""
        action = self._blob(digest)
        if action is None:
            return None
        named = _fields(action[1][-1])
        platform = action.get(10)
        if not platform:  # clients of an older protocol say it in the command only
            command = self._blob(f"{named[1][-1].decode()}/{named.get(2, [0])[-1]}") or {}
            platform = command.get(5)
        pairs = map(_fields, _fields(platform[-1]).get(1, ())) if platform else ()
        return {pair[1][-1].decode(): pair.get(2, [b""])[-1].decode() for pair in pairs}

    def _blob(self, digest: str) -> Fields | None:
        asked = _message((1, self._instance.encode()), (2, _digest(digest)))
        answer = self._call("ContentAddressableStorage/BatchReadBlobs", asked) or {}
        found = _fields(answer[1][-1]) if 1 in answer else {}
        return _fields(found[2][-1]) if 2 in found else None

    def _call(self, method: str, message: bytes) -> Fields | None:
        """The fields of the answer; None if what was asked for is not there."""
        headers = {"Content-Type": "application/grpc", "TE": "trailers"}
        try:
            self._connection.request(
                "POST", f"{_API}.{method}", b"\0" + len(message).to_bytes(4, "big") + message, headers
            )
            answer = self._connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ApiError(f"the CAS does not answer ({error})", "see that its pods work") from error
        status = answer.getheader("grpc-status", "0")
        if status == "5":
            return None
        if answer.status != 200 or status != "0":
            raise ApiError(f"the CAS answers {method} with {status}", "see that its pods work")
        return _fields(body[5:])


def _digest(digest: str) -> bytes:
    hash_, _unused, size = digest.partition("/")
    return _message((1, hash_.encode()), (2, int(size)))


def _time(timestamp: bytes) -> datetime:
    found = _fields(timestamp)
    return datetime.fromtimestamp(found.get(1, [0])[-1] + found.get(2, [0])[-1] / 1e9, UTC)


def _message(*fields: tuple[int, bytes | int]) -> bytes:
    """A message of Protocol Buffers, from the numbers of its fields and their values."""
    return b"".join(
        _varint(number << 3) + _varint(value)
        if isinstance(value, int)
        else _varint(number << 3 | 2) + _varint(len(value)) + value
        for number, value in fields
    )


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _fields(message: bytes) -> Fields:
    """The values of a message's fields, by number: numbers, and bytes for all else. REAPI has no other wire types."""
    found: Fields = defaultdict(list)
    place = 0

    def number() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(message):
        key = number()
        if key & 7:
            size = number()
            found[key >> 3].append(message[place : place + size])
            place += size
        else:
            found[key >> 3].append(number())
    return dict(found)
