"""The CAS of a real node is in a bucket of SeaweedFS: its pods and their disks come and go while Bazel builds."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.cluster import Cluster
from testkit import nativelink
from testkit.authority import Authority
from testkit.bazel import Bazel
from testkit.bucket import KEYS, Bucket
from testkit.farm import Farm, repeated, secret, secure_namespace
from testkit.git_server import address_for
from testkit.site import pool
from testkit.trees import resource

pytestmark = nativelink.only_original("its object stores")

NAME = "bucket"
PODS = ("pods", "-l", "app.kubernetes.io/component=cas")
POOLS = [pool("default", slots=8)]


@pytest.fixture(scope="module")
def bucket(where: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    authority = Authority("object store")
    made = Bucket(tmp_path_factory.mktemp("bucket"), authority, address_for(where))
    where.apply(
        secure_namespace(NAME, "restricted"),
        secret("nativelink-object-store", "Opaque", {key: value.encode() for key, value in KEYS.items()}, NAME),
        resource("v1/ConfigMap", "nativelink-ca", NAME, data={"ca-certificates.crt": authority.pem.decode()}),
    )
    yield made
    made.stop()


def scale(farm: Farm, bucket: Bucket, replicas: int) -> None:
    """Push a tree with this many CAS pods, and wait until they are ready."""
    farm.apply(POOLS, nativelink_cas_replicas=replicas, **bucket.variables)
    farm.ready("deployment/nativelink-worker-default")


@pytest.fixture(scope="module")
def farm(where: Cluster, bucket: Bucket, tmp_path_factory: pytest.TempPathFactory) -> Farm:
    made = Farm(where, NAME, tmp_path_factory.mktemp("clusters"))
    scale(made, bucket, 2)
    return made


@pytest.fixture
def bazel(farm: Farm, tmp_path: Path) -> Iterator[Bazel]:
    with Bazel.started(tmp_path) as made:
        yield made.at(farm.client())


def test_all_disks_are_lost_and_no_result_is(farm: Farm, bazel: Bazel) -> None:
    assert bazel.build("lost") == {"remote": 20}
    farm.where.run("-n", NAME, "delete", "persistentvolumeclaims", "--all", "--wait=false")
    farm.where.run("-n", NAME, "delete", *PODS)
    farm.ready()
    assert bazel.build("lost") == {"remote cache hit": 20}


def test_pods_come_and_go_during_builds(farm: Farm, bucket: Bucket, bazel: Bazel) -> None:
    """2, 4 and 2 CAS pods, and one that is killed: each build succeeds, and all have their results afterwards."""

    def build(number: int) -> float:
        """Return how long a build took, in seconds."""
        began = time.monotonic()
        assert bazel.build(f"going-{number}") == {"remote": 20}
        return time.monotonic() - began

    with repeated(build) as builds:
        for replicas in (4, 2):
            scale(farm, bucket, replicas)
        farm.where.run("-n", NAME, "delete", "pod", "nativelink-cas-0", "--force", "--grace-period=0")
        farm.ready()
    took = builds.result()
    print(f"{len(took)} builds during the changes took {min(took):.1f} to {max(took):.1f} s")
    for number in range(len(took)):
        assert bazel.build(f"going-{number}") == {"remote cache hit": 20}
    assert bucket.wrong() == []
