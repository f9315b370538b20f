"""Reads what the scheduler's log says about actions (v1.6.6: seen): who ran them, and why they wait.

`nativelink_log_format` has to be `json`. That a worker gets an action, and that this ends, are lines of `debug`, which
the default of `nativelink_log_level` has.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

_ASSIGNED = "Notifying worker of operation"
_ENDED = ("inner_update_operation START", '"update_type":"Stage:Completed"')
_LACKING = re.compile(r"lack of (?:matching|key) '(.+?)'(?: =|\. Job asked for) \w+\((?:\\?\")?([^\"\\)]*)")
_TOO_SMALL = re.compile(r"Property mismatch on worker property (.+?)\. \w+\(\d+\) < \w+\((\d+)\)")
_NO_NUMBER = re.compile(r"Cannot convert to platform property to u64: (.+?) - ")
_REQUEST = re.compile(r"ExecuteRequest .*?hash: \\?\"([0-9a-f]+)\\?\", size_bytes: (\d+)")
_DIGEST = re.compile(r"ActionUniqueKey \{.*?digest: DigestInfo\(\"([0-9a-f]+)-(\d+)\"\)")
_QUEUED = re.compile(r"insert_timestamp: SystemTime \{ tv_sec: (\d+), tv_nsec: (\d+)")
_PROPERTIES = re.compile(r"[^ ]* platform_properties: \{(.*?)\}, priority")
_PAIR = re.compile(r"\"([^\"]+)\": \"([^\"]*)\"")
_BAZEL = re.compile(r"\b(tool_invocation_id|action_mnemonic|target_id): \"([^\"]*)\"")


@dataclass(frozen=True)
class Assignment:
    """An operation that a worker got. `digest` is `HASH/SIZE`, `bazel` what Bazel says of the action, by field."""

    at: datetime
    worker: str
    operation: str
    digest: str
    queued: datetime
    properties: Mapping[str, str]
    bazel: Mapping[str, str]

    @property
    def waited(self) -> float:
        """Seconds in the queue."""
        return (self.at - self.queued).total_seconds()


def unmatched(log: str) -> set[tuple[str, str]]:
    """The properties and values for which a pass found no worker. A value that should be a number has the name ""."""
    numbers = {("", value) for value in _NO_NUMBER.findall(log)}
    return numbers | {pair for pattern in (_LACKING, _TOO_SMALL) for pair in pattern.findall(log)}


def assignments(log: str, wanted: str) -> Iterator[Assignment]:
    """Yield what was given to workers of an action (its hash) or of an invocation of Bazel (its ID)."""
    for line in log.splitlines():
        if _ASSIGNED not in line or wanted not in line:
            continue
        fields = json.loads(line)["fields"]
        info = fields["action_info"]
        digest, properties, bazel = _DIGEST.search(info), _PROPERTIES.search(info), dict(_BAZEL.findall(info))
        if digest and wanted in (digest[1], bazel.get("tool_invocation_id")):
            yield Assignment(
                at=time_of(line),
                worker=fields["worker_id"],
                operation=fields["operation_id"],
                digest="/".join(digest.groups()),
                queued=_queued(info),
                properties=dict(_PAIR.findall(properties[1])) if properties else {},
                bazel=bazel,
            )


def request(log: str, hash_: str) -> tuple[datetime, str] | None:
    """When an action was asked for last without a result in the action cache, and its digest."""
    found = None
    for line in log.splitlines():
        if hash_ in line and (digest := _REQUEST.search(line)) and digest[1] == hash_:
            found = time_of(line), "/".join(digest.groups())
    return found


def ended(log: str, operation: str) -> datetime | None:
    """When a worker reported the end of an operation."""
    lines = (line for line in log.splitlines() if operation in line and all(part in line for part in _ENDED))
    return next(map(time_of, lines), None)


def time_of(line: str) -> datetime:
    """The time of a line of NativeLink's log."""
    return datetime.fromisoformat(json.loads(line)["timestamp"])


def said(line: str) -> str:
    """What a line of NativeLink's log says, without its place in the program."""
    told: dict[str, Any] = json.loads(line)
    more = ", ".join(f"{key} {value}" for key, value in told["fields"].items() if key != "message")
    return f"{told['timestamp']} {told['level']} {told['fields'].get('message', '')}" + (f" ({more})" if more else "")


def _queued(info: str) -> datetime:
    seconds, nanos = map(int, _QUEUED.search(info).groups())  # type: ignore[union-attr]
    return datetime.fromtimestamp(seconds + nanos / 1e9, UTC)
