"""What clients may and may not do: capabilities, blobs, action results, and what the edge keeps to itself."""

import hashlib
import os
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from random import Random
from typing import Any

from ..ports import PORTS
from ..reapi import REFUSALS, CallError, digest, repeated
from . import Farm, Fault, Skipped, may_write

_CHUNK = 1024**2
_SHA256 = 1  # DigestFunction.Value
_SECONDS = 3  # for a connection
_PAUSE = 3  # between attempts to reach a farm that starts
_FORWARDS = ("localhost", "127.0.0.1", "[::1]")  # this machine forwards a port, and may have others of its own
_FIND = "ContentAddressableStorage.FindMissingBlobs"
_BATCH = "ContentAddressableStorage.BatchUpdateBlobs"
_UPDATE = "ActionCache.UpdateActionResult"
_WORKER_API = "/com.github.trace_machina.nativelink.remote_execution.WorkerApi/ConnectWorker"
_ROUTES = "render and push the tree, and look for routes and policies that are not of it"


def capabilities(farm: Farm) -> str:
    """The farm executes, and takes digests of SHA-256. Inside the cluster, this waits for a farm that starts."""
    name, instance = "Capabilities.GetCapabilities", farm.cas.instance

    def ask() -> tuple[Any, Any]:
        cache = farm.cas.call(name, instance_name=instance).cache_capabilities
        return cache, farm.scheduler.call(name, instance_name=instance).execution_capabilities

    (cache, execution), _unused = repeated(ask, () if farm.api else [_PAUSE] * (int(farm.timeout) // _PAUSE))
    if not execution.exec_enabled or _SHA256 not in cache.digest_functions:
        problem = f"the instance {instance} offers no execution, or no SHA-256"
        raise Fault(problem, "let clients and cluster have the same nativelink_instance_name")
    way = farm.address or ("a port-forward" if farm.api else "the Services")
    return f"instance {instance} at {way}: cache and execution"


def small_blobs(farm: Farm) -> str:
    """Small blobs come back as they were written."""
    may_write(farm)
    blobs = [os.urandom(1000) for _unused in range(20)]
    farm.cas.upload(*blobs)
    asked = [digest(each) for each in blobs]
    if missing := farm.cas.missing(*asked):
        raise Fault(f"{missing} of {len(blobs)} blobs are missing after their upload", "look at the CAS pods' logs")
    answer = farm.cas.call("ContentAddressableStorage.BatchReadBlobs", instance_name=farm.cas.instance, digests=asked)
    if sorted(each.data for each in answer.responses) != sorted(blobs):
        raise Fault("blobs come back with other bytes", "look at the disks of the CAS pods")
    return f"{len(blobs)} of 1 kB written, found and read"


def large_blob(farm: Farm) -> str:
    """A large blob comes back as it was written."""
    may_write(farm)
    block = Random(os.urandom(16)).randbytes(_CHUNK)

    def chunks() -> Iterator[bytes]:
        return (number.to_bytes(8, "big") + block[8:] for number in range(farm.megabytes))

    whole = hashlib.sha256()
    for each in chunks():
        whole.update(each)
    size = farm.megabytes * _CHUNK
    named = {"hash": whole.hexdigest(), "size_bytes": size}

    def write() -> float:
        began = time.monotonic()
        _write(farm, named, chunks(), farm.timeout)
        return farm.megabytes / (time.monotonic() - began)

    def read() -> float:
        began, back = time.monotonic(), hashlib.sha256()
        name = f"{farm.cas.instance}/blobs/{whole.hexdigest()}/{size}"
        for answer in farm.cas.call("ByteStream.Read", resource_name=name, timeout=farm.timeout):
            back.update(answer.data)
        if back.digest() != whole.digest():
            raise Fault("a large blob comes back with other bytes", "look at the disks of the CAS pods")
        return farm.megabytes / (time.monotonic() - began)

    written, cut = repeated(write)
    returned, broken = repeated(read)
    return f"{farm.megabytes} MiB written at {written:.0f} MiB/s{cut}, read at {returned:.0f} MiB/s{broken}"


def wrong_bytes(farm: Farm) -> str:
    """The CAS stores no bytes under the digest of others, and has no other instance."""
    may_write(farm)
    wrong, named = os.urandom(1000), [digest(os.urandom(1000)) for _unused in range(2)]
    update = {"instance_name": farm.cas.instance, "requests": [{"digest": named[0], "data": wrong}]}
    # How it refuses them does not count: an object store lets the client wait instead.
    with suppress(CallError):
        farm.cas.call(_BATCH, timeout=20, **update)
    with suppress(CallError):
        _write(farm, named[1], [wrong], 20)
    if stored := len(named) - farm.cas.missing(*named):
        fix = "render and push, because the tree's stores verify; for blobs that are already stored see docs/changes.md"
        raise Fault(f"{stored} of 2 uploads of wrong bytes were stored", fix)
    other = f"no-{farm.cas.instance}"
    with suppress(CallError):
        farm.cas.call(_FIND, instance_name=other, blob_digests=named)
        raise Fault(f"it answers for the instance {other}, which it should not have", _ROUTES)
    return "not stored; another instance is refused"


def results(farm: Farm) -> str:
    """Only who has the role `write` may write action results. A client with the role `read` may not upload either."""
    instance, name = farm.cas.instance, digest(os.urandom(8))
    result = {"stdout_raw": b"nativelink.gitops.verify"}
    calls: dict[str, dict[str, Any]] = {
        _UPDATE: {"action_digest": name, "action_result": result},
        _BATCH: {"requests": []},
        "Execution.Execute": {"action_digest": name},
    }
    closed = {"read": [*calls], "execute": [_UPDATE], "write": []}[farm.role]
    for method in closed:
        client = farm.scheduler if method.startswith("Execution") else farm.cas
        if taken := _taken(client.call, method, instance_name=instance, **calls[method]):
            fix = f"remove its role, {_ROUTES}; if it may do so, set verify_role"
            raise Fault(f"a client with the role {farm.role} may call {method}: {taken}", fix)
    if not closed:
        farm.cas.call(_UPDATE, instance_name=instance, **calls[_UPDATE])
        return "the role write may write them"
    return f"the role {farm.role} cannot call {', '.join(each.partition('.')[2] for each in closed)}"


def strangers(farm: Farm) -> str:
    """Who shows no identity cannot read."""
    if not farm.stranger:
        raise Skipped(farm.values["nativelink_edge_open"] or "clients do not come through an edge that identifies them")
    asked = {"instance_name": farm.cas.instance, "blob_digests": [digest(b"")]}
    # An edge that wants a certificate from everybody closes the connection.
    refusals = (*REFUSALS, "UNAVAILABLE")
    if taken := _taken(farm.stranger.call, _FIND, refusals=refusals, **asked):
        raise Fault(f"a client without an identity may call FindMissingBlobs: {taken}", _ROUTES)
    return "a client without an identity cannot read"


def worker_api(farm: Farm) -> str:
    """The edge has no route to the worker API, and the ports of pods are closed where clients are."""
    if not farm.address:
        raise Skipped("clients do not come through the edge")
    if taken := _taken(farm.cas.raw, _WORKER_API):
        fix = f"anyone could act as a worker: {_ROUTES}"
        raise Fault(f"the edge leads to the worker API: {taken}", fix)
    host, _unused, own = farm.address.rpartition(":")
    if host in _FORWARDS:
        return f"no route to it; {host} says nothing about other ports"
    ports = sorted({*PORTS.values()} - {int(own)})
    with ThreadPoolExecutor(len(ports)) as at_once:
        opened = [str(each) for each in at_once.map(lambda port: port if _open(host, port) else 0, ports) if each]
    if opened:
        fix = f"close them at the load balancer of {host}; only {own} is for clients"
        raise Fault(f"ports of pods are open at {host}: {', '.join(opened)}", fix)
    return f"no route to it, and {len(ports)} ports of pods are closed"


def _taken(call: Any, *arguments: Any, refusals: Sequence[str] = REFUSALS, **fields: Any) -> str:
    """What the farm answers to a call that it should refuse; empty if it refuses it."""
    try:
        answer = call(*arguments, **fields)
        next(iter(answer if hasattr(answer, "__next__") else [answer]), None)
    except CallError as error:
        return "" if error.code in refusals else str(error)
    return "OK"


def _open(host: str, port: int) -> bool:
    try:
        socket.create_connection((host.strip("[]"), port), timeout=_SECONDS).close()
    except OSError:
        return False
    return True


def _write(farm: Farm, named: Mapping[str, Any], chunks: Iterable[bytes], timeout: float) -> None:
    """Write a blob as a stream. CallError if it is refused."""
    name = f"{farm.cas.instance}/uploads/{uuid.uuid4()}/blobs/{named['hash']}/{named['size_bytes']}"

    def requests() -> Iterator[dict[str, Any]]:
        sent = 0
        for each in chunks:
            last = sent + len(each) >= named["size_bytes"]
            yield {"resource_name": name, "write_offset": sent, "data": each, "finish_write": last}
            sent += len(each)

    farm.cas.send("ByteStream.Write", requests(), timeout)
