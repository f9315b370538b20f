"""Reads the action cache and the CAS over one connection, for which gRPC's own library takes an address only.

NativeLink answers gRPC over HTTP/1.1, too.
"""

import http.client
from datetime import UTC, datetime
from typing import Any

from .api import ApiError
from .reapi import message

_API = "/build.bazel.remote.execution.v2"
# The times of ExecutedActionMetadata, in their order.
_STAGES = (
    "queued",
    "worker_start",
    "input_fetch_start",
    "input_fetch_completed",
    "execution_start",
    "execution_completed",
    "output_upload_start",
    "output_upload_completed",
    "worker_completed",
)
_NOT_FOUND = "5"


class Results:
    """A CAS pod's listener for clients, which answers for all shards. `instance` is the name that clients use."""

    def __init__(self, connection: http.client.HTTPConnection, instance: str) -> None:
        """Take a connection to the pod."""
        self._connection, self._instance = connection, instance

    def result(self, digest: str) -> dict[str, Any] | None:
        """What the action cache has of an action: exit code, worker, and the times of its stages. None if nothing."""
        method = "ActionCache/GetActionResult"
        answer = self._call(method, "GetActionResultRequest", "ActionResult", action_digest=_digest(digest))
        if answer is None:
            return None
        told = answer.execution_metadata
        stages = {
            name: datetime.fromtimestamp(at.seconds + at.nanos / 1e9, UTC)
            for name in _STAGES
            if (at := getattr(told, f"{name}_timestamp")).seconds
        }
        return {"exit_code": answer.exit_code, "worker": told.worker, "stages": stages}

    def properties(self, digest: str) -> dict[str, str] | None:
        """The platform properties that an action asks for; None if the CAS does not have it."""
        action = self._blob("Action", _digest(digest))
        if action is None:
            return None
        # Clients of an older protocol say it in the command only.
        command = None if action.HasField("platform") else self._blob("Command", action.command_digest)
        return {each.name: each.value for each in (command or action).platform.properties}

    def _blob(self, kind: str, digest: Any) -> Any | None:
        """The message of a kind that is a blob; None if the CAS does not have it."""
        method = "ContentAddressableStorage/BatchReadBlobs"
        answer = self._call(method, "BatchReadBlobsRequest", "BatchReadBlobsResponse", digests=[digest])
        found = answer.responses[0] if answer and answer.responses else None
        return None if found is None or found.status.code else message(kind).FromString(found.data)

    def _call(self, method: str, request: str, kind: str, **fields: Any) -> Any | None:
        """The answer, a message of a kind; None if what was asked for is not there."""
        sent = message(request)(instance_name=self._instance, **fields).SerializeToString()
        headers = {"Content-Type": "application/grpc", "TE": "trailers"}
        try:
            self._connection.request("POST", f"{_API}.{method}", b"\0" + len(sent).to_bytes(4, "big") + sent, headers)
            answer = self._connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ApiError(f"the CAS does not answer ({error})", "check that its pods work") from error
        status = answer.getheader("grpc-status", "0")
        if status == _NOT_FOUND:
            return None
        if answer.status != 200 or status != "0":
            raise ApiError(f"the CAS answers {method} with {status}", "check that its pods work")
        return message(kind).FromString(body[5:])


def _digest(digest: str) -> dict[str, Any]:
    hash_, _unused, size = digest.partition("/")
    return {"hash": hash_, "size_bytes": int(size)}
