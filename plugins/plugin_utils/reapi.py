"""A client of the Remote Execution API and of ByteStream, on gRPC's own library and the public protocols.

roles/nativelink/files/reapi.binpb has their descriptors, with those of all that they import: bazelbuild/remote-apis and
googleapis, under the Apache License 2.0. `reapi-load descriptors` (testbed/go/standin) prints them. Descriptors work
with each version of protobuf, unlike generated code.
"""

from __future__ import annotations  # types of packages that may be missing

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, TypeVar

from .specs import ROOT

MISSING = "" if find_spec("grpc") else "grpcio"  # a package
try:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
except ImportError as error:
    MISSING = str(error.name)

_DESCRIPTORS = ROOT / "roles/nativelink/files/reapi.binpb"
_PACKAGES = {"ByteStream": "google.bytestream"}
_REAPI = "build.bazel.remote.execution.v2"
REFUSALS = ("PERMISSION_DENIED", "UNAUTHENTICATED", "UNIMPLEMENTED")
"""How an edge refuses a call that is not for this client, or that has no route."""
_TRANSIENT = ("ABORTED", "INTERNAL", "UNAVAILABLE", "UNKNOWN")
_PAUSES = (1, 2, 4, 8)  # seconds: a pod that restarts is back after 15
_Answer = TypeVar("_Answer")


class CallError(Exception):
    """A call failed. `code` is gRPC's name of its status, such as `UNAVAILABLE`."""

    def __init__(self, method: str, code: str, text: str) -> None:
        """Take the parts of the message."""
        super().__init__(" ".join(f"{method}: {code} {text}".split()))
        self.code = code


def repeated(attempt: Callable[[], _Answer], pauses: Iterable[float] = _PAUSES) -> tuple[_Answer, str]:
    """What an attempt returns, and what failed before. It is repeated while a pod is away, as clients do. CallError."""
    left, failed = iter(pauses), ""
    while True:
        try:
            return attempt(), failed
        except CallError as error:
            pause = next(left, 0)
            if not pause or error.code not in _TRANSIENT:
                raise
            failed = f" after {error}"
        time.sleep(pause)


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(_DESCRIPTORS.read_bytes()).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


def message(name: str) -> Any:
    """The class of a message of the Remote Execution API, such as `Command`."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"{_REAPI}.{name}"))


def digest(content: bytes) -> dict[str, Any]:
    """The digest of a blob, as a field of a message."""
    return {"hash": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}


@dataclass(frozen=True)
class Identity:
    """What a client shows: PEM of a certificate and its key (or none), and headers such as `authorization`."""

    certificate: bytes | None = None
    key: bytes | None = None
    headers: Mapping[str, str] | None = None


class Reapi:
    """A client of one address. `instance` is the name of NativeLink's instance."""

    def __init__(self, address: str, instance: str, *, tls: bool, name: str, ca: bytes | None, who: Identity) -> None:
        """`address` is host and port, and `name` the host name that the edge has. `ca` is PEM; None: public ones."""
        import grpc  # here, because it starts threads, which no fork of Ansible inherits

        self.instance, self._grpc = instance, grpc
        self._headers = [(key.lower(), value) for key, value in (who.headers or {}).items()]
        # Clients of farms do not use the proxies of the environment either.
        options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", 16 * 1024**2)]
        options += [("grpc.max_reconnect_backoff_ms", 5000)]
        options += [("grpc.default_authority", name)] if name else []
        if not tls:
            self._channel = grpc.insecure_channel(address, options)
            return
        trusted = grpc.ssl_channel_credentials(ca, who.key, who.certificate)
        options += [("grpc.ssl_target_name_override", name)] if name else []
        self._channel = grpc.secure_channel(address, trusted, options)

    def call(self, name: str, *, timeout: float = 60, **fields: Any) -> Any:
        """The answer to a method such as `Capabilities.GetCapabilities`; an iterator if it is a stream of answers.

        `fields` are those of the request. Raises CallError.
        """
        return self.send(name, iter((fields,)), timeout)

    def send(self, name: str, messages: Iterator[Mapping[str, Any]], timeout: float) -> Any:
        """As `call`, for a method that takes a stream of messages."""
        service, _unused, method = name.partition(".")
        full = f"{_PACKAGES.get(service, _REAPI)}.{service}"
        found = _pool().FindServiceByName(full).methods_by_name[method]
        asked, answer = map(message_factory.GetMessageClass, (found.input_type, found.output_type))
        kinds = ["unary", "stream"]
        kind = f"{kinds[found.client_streaming]}_{kinds[found.server_streaming]}"
        sent = (asked(**each) for each in messages)
        does = getattr(self._channel, kind)(f"/{full}/{method}", asked.SerializeToString, answer.FromString)
        return self._answer(name, does, sent if found.client_streaming else next(sent), timeout)

    def raw(self, path: str, timeout: float = 10) -> bytes:
        """The answer to an empty message to any path. Raises CallError."""
        return self._answer(path, self._channel.unary_unary(path), b"", timeout)

    def _answer(self, name: str, does: Any, sent: Any, timeout: float) -> Any:
        try:
            answer = does(sent, timeout=timeout, metadata=self._headers)
        except self._grpc.RpcError as error:
            raise CallError(name, error.code().name, error.details() or "") from None
        return self._stream(name, answer) if hasattr(answer, "__next__") else answer

    def _stream(self, name: str, answers: Any) -> Iterator[Any]:
        try:
            yield from answers
        except self._grpc.RpcError as error:
            raise CallError(name, error.code().name, error.details() or "") from None
        finally:
            answers.cancel()

    def upload(self, *blobs: bytes) -> None:
        """Write small blobs. Raises CallError if the call, or one of them, is refused."""
        sent = [{"digest": digest(each), "data": each} for each in blobs]
        name = "ContentAddressableStorage.BatchUpdateBlobs"
        answer, _unused = repeated(lambda: self.call(name, instance_name=self.instance, requests=sent))
        for each in answer.responses:
            if each.status.code:
                raise CallError("BatchUpdateBlobs", f"status {each.status.code}", each.status.message)

    def missing(self, *digests: Mapping[str, Any]) -> int:
        """How many of these blobs the CAS does not have."""
        name = "ContentAddressableStorage.FindMissingBlobs"
        return len(self.call(name, instance_name=self.instance, blob_digests=digests).missing_blob_digests)
