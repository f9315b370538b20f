"""The checks of farms whose CAS is in a bucket: pods that lose their disks, and a bucket that is away."""

import itertools
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from conformance.farm import PATIENCE, Farm, Tell, on, succeeded
from conformance.pods import Pod
from testbed.waiting import until
from testkit.bazel import Bazel
from testkit.bucket import KEYS, Bucket
from testkit.client import Client, reported

_KINDS = ("cas", "ac")
_AWAY = 15  # seconds, longer than NativeLink tries


@on("bucket")
def test_lost_disks(farm: Farm, bazel: Bazel) -> None:
    """the disks of all CAS pods are lost: all cache hits through each of them"""
    assert bazel.build("lost", timeout=2 * PATIENCE) == {"remote": 20}
    for pod in farm.cas:
        farm.restart(pod, lost="data")
    for pod in farm.cas:
        through = Client(farm.api.execute, f"grpc://{pod.address}:50051")
        assert bazel.at(through).build("lost", timeout=PATIENCE) == {"remote cache hit": 20}


@on("memory")
def test_lost_disk(farm: Farm, bazel: Bazel, tell: Tell) -> None:
    """counter-run with volumes: one disk is lost, and results with it"""
    assert bazel.build("lost", timeout=2 * PATIENCE) == {"remote": 20}
    farm.restart(farm.cas[0], lost="data")
    hits = bazel.build("lost", timeout=2 * PATIENCE).get("remote cache hit", 0)
    assert hits < 20
    tell(f"{hits} of 20 hits")


def test_moved(new_farm: Callable[..., Farm], bucket: Bucket, client: Bazel) -> None:
    """content moves from volumes into the bucket, and back: all cache hits

    Files and objects have the same names. On the way back each volume gets all of them.
    """
    volumes, shared, again = new_farm(), new_farm(**bucket.variables), new_farm()
    with volumes:
        assert client.at(volumes.api).build("moved", timeout=2 * PATIENCE) == {"remote": 20}
        for pod, kind in itertools.product(volumes.cas, _KINDS):
            for file in _files(pod, kind).iterdir():
                bucket.put(f"{kind}/{file.name}", file.read_bytes())
    with shared:
        assert client.at(shared.api).build("moved", timeout=2 * PATIENCE) == {"remote cache hit": 20}
        assert client.build("moved-since", timeout=2 * PATIENCE) == {"remote": 20}
    for pod, kind in itertools.product(again.cas, _KINDS):
        _files(pod, kind).mkdir(parents=True)
        for name, content in bucket.objects(f"{kind}/"):
            (_files(pod, kind) / name).write_bytes(content)
    with again:
        for word in ("moved", "moved-since"):
            assert client.at(again.api).build(word, timeout=2 * PATIENCE) == {"remote cache hit": 20}


def _files(pod: Pod, kind: str) -> Path:
    return pod.folder / "volumes" / "data" / kind / "content" / "d"


@on("bucket")
@pytest.mark.parametrize("how", ["refuses connections", "does not answer"])
def test_away(farm: Farm, bucket: Bucket, how: str, tell: Tell) -> None:
    """the bucket {how} during actions: they go on, or fail with words

    Nothing wrong is in the bucket, and all of them run afterwards.
    """
    salt, actions = f"away-{how.replace(' ', '-')}", 60
    arguments = farm.recorded("0.5", salt, actions, 4 * PATIENCE)
    with farm.loaded(*arguments) as client:
        until("actions to begin", lambda: len(farm.begun(salt)) >= 10, 30)
        leaves, returns = (bucket.freeze, bucket.thaw) if how == "does not answer" else (bucket.stop, bucket.start)
        leaves()
        assert client.poll() is None, "the load ended before the bucket was away, so the check shows nothing"
        time.sleep(_AWAY)
        returns()
        outcomes = [each["outcome"] for each in reported(client)["actions"]]
    failed = Counter(outcome.partition("(")[0].strip() for outcome in outcomes if outcome != "ok")
    succeeded(farm.load(*arguments))
    assert bucket.wrong() == []
    tell(f"{failed.total()} of {actions} failed{': ' if failed else ''}{'; '.join(failed)}")


@on("bucket")
def test_wrong_content(farm: Farm, bucket: Bucket) -> None:
    """wrong bytes are not in the bucket, but without verify_hash they are

    In front of a bucket of S3 NativeLink does not refuse an upload below 5 MiB: it leaves the client waiting.
    """
    pod = farm.cas[0]
    through = Client(farm.api.execute, f"grpc://{pod.address}:50051")
    with through.start("put", "--instance=main") as client:
        with pytest.raises(subprocess.TimeoutExpired):
            client.wait(5)
        client.kill()
    assert bucket.wrong() == []
    farm.change = lambda text: text.replace("verify_hash: true", "verify_hash: false")
    farm.restart(pod)
    farm.change = str
    assert {*through.put("--instance=main").values()} == {"taken, and read back"}
    wrong = bucket.wrong()
    assert len(wrong) == 2
    for name in wrong:
        bucket.remove(f"cas/{name}")
    farm.restart(pod)


@on("bucket")
def test_wrong_key(farm: Farm, bucket: Bucket, tell: Tell) -> None:
    """a CAS pod with a wrong key refuses content, and stores nothing"""
    before, pod = len([*bucket.objects("cas/")]), farm.cas[0]
    pod.environment = {**KEYS, "AWS_SECRET_ACCESS_KEY": "wrong"}
    farm.restart(pod)
    put = Client(farm.api.execute, f"grpc://{pod.address}:50051").put("--right", "--instance=main")
    pod.environment = {}
    farm.restart(pod)
    assert all(told.startswith("refused") for told in put.values()), put
    assert len([*bucket.objects("cas/")]) == before
    tell("; ".join(put.values()))
