"""Measures the CAS on volumes and in a bucket: latency, throughput, and the requests that a bucket is paid for.

Client, CAS and bucket share this machine, so a bucket far away adds its own latency to each of its requests.
"""

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping

import pytest

from conformance.farm import CPUS, Farm, Tell, pool, succeeded
from testkit.bucket import Bucket

_LARGE = 16 * 1024**2  # bytes
_ACTIONS = 200
_POOLS = {"nativelink_worker_pools": [pool("default", 1)]}


def _variables(store: str, bucket: Bucket) -> Mapping[str, object]:
    return {**_POOLS, **(bucket.variables if store == "bucket" else {})}


@pytest.mark.parametrize("store", ["volumes", "bucket"])
def test_latency(new_farm: Callable[..., Farm], bucket: Bucket, store: str, tell: Tell) -> None:
    """CAS in {store}: requests one after another

    What "the other" pod reads, the first one has just got. In front of a bucket it is not on the other's disk yet.
    """
    with new_farm(**_variables(store, bucket)) as farm:
        other = f"--other=grpc://{farm.cas[1].address}:50051"
        command = farm.api.command("cas", "--seconds=2", f"--large={_LARGE}", other)
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    seen = []
    for each in map(json.loads, told.splitlines()):
        took = statistics.median(each["ms"])
        speed = f"{_LARGE / 1024**2 / took * 1000:.0f} MiB/s" if "large" in each["kind"] else f"{took:.1f} ms"
        seen.append(f"{each['kind'].replace('Blobs of 1, small', '')} {speed}")
    tell("; ".join(seen))


def test_requests(new_farm: Callable[..., Farm], bucket: Bucket, tell: Tell) -> None:
    """the requests to the bucket of 200 small actions

    Cold is a build of which nothing is known, and warm its repetition. Then the CAS pods have lost their disks.
    """
    with new_farm(**_variables("bucket", bucket)) as farm:
        seen = []
        for name in ("cold", "warm", "lost disks"):
            if name == "lost disks":
                for pod in farm.cas:
                    farm.restart(pod, lost="data")
            before = bucket.requests()
            arguments = ["--lookup", "--salt=requests", "--seconds=0-0", "--input=a=text", "--timeout=300"]
            succeeded(farm.load(f"--actions={_ACTIONS}", f"--concurrency={CPUS}", *arguments))
            made = bucket.requests() - before
            seen.append(f"{name}: {', '.join(f'{number} {kind}' for kind, number in sorted(made.items())) or 'none'}")
        before = bucket.requests()
        time.sleep(30)
        seen.append(f"30 s of probes: {(bucket.requests() - before).total()}")
    tell("; ".join(seen))
