"""NativeLink is upgraded and rolled back on a real node while Bazel builds, each by one push of the rendered tree.

The tests share one cluster and run in the order of the file. Each rule of a build leaves a file on a volume of all
workers when it begins, so more files than rules mean that actions were killed and began again.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render
from ansible_collections.nativelink.gitops.plugins.plugin_utils.tree import write

from testbed import cluster, images, node
from testbed.cluster import Cluster
from testbed.waiting import until
from testkit import nativelink
from testkit.bazel import Bazel
from testkit.chain import Entry, secure_namespace
from testkit.site import SMALL, pool
from testkit.trees import values_of

pytestmark = pytest.mark.skipif(
    0 < len(nativelink.SAVED) < len(images.NATIVELINK_VERSIONS),
    reason="TESTBED_IMAGES has one version of NativeLink, which does not work with the stand-in for the other one",
)

NAME, WORKERS = "nativelink", "nativelink-workers"
WORKLOADS = {
    NAME: ("statefulset/nativelink-cas", "deployment/nativelink-scheduler"),
    WORKERS: ("deployment/nativelink-worker-default",),
}
OLD, NEW = images.NATIVELINK_VERSIONS
CAS = 2 if nativelink.SAVED else 1  # only shards of the original say something about shards of two versions
REPLICAS, SLOTS = 2, 3  # the number of workers, and of each worker's actions
RUNNING = 2 * REPLICAS * SLOTS  # the most actions that run at a time: old workers drain while all new ones work
RULES, SECONDS = 24, 3  # of each build of a load
FEW = 6  # the rules of other builds

# A volume of all workers, on which each rule of a build leaves a file when it begins.
SHARED = nativelink.claim(WORKERS, "begun")
PATCH = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "nativelink-worker-default", "namespace": WORKERS},
    "spec": {
        "template": {
            "spec": {
                "containers": [{"name": "worker", "volumeMounts": [{"name": "begun", "mountPath": "/begun"}]}],
                "volumes": [{"name": "begun", "persistentVolumeClaim": {"claimName": "begun"}}],
            }
        }
    },
}


class Farm:
    """A small farm, the folder of its tree, and a Bazel that tries as often as the documentation recommends."""

    def __init__(self, where: Cluster, folder: Path, bazel: Bazel) -> None:
        self.where, self.folder, self.bazel = where, folder, bazel
        self.entry = Entry(where, NAME, folder)
        self.built: dict[str, tuple[int, int]] = {}  # rules and seconds by word

    def push(self, cas: str, scheduler: str, worker: str) -> None:
        """Render the tree with these versions, and apply it as an engine does. Wait until all new pods are ready.

        Workers that drain may then still be there.
        """
        network = node.network(self.where.home)
        assert network
        stated = {
            **SMALL,
            "nativelink_cas_replicas": CAS,
            "nativelink_worker_pools": [pool("default", slots=SLOTS, min_replicas=REPLICAS)],
            "nativelink_client_peers": [{"ipBlock": {"cidr": f"{network.machine}/32"}}],
        }
        trees = {each: render.tree(values_of("upgrade", **stated, nativelink_version=each)) for each in (OLD, NEW)}
        versions = {"cas": cas, "worker": worker}  # by folder; all other folders are the scheduler's
        mixed = {path: trees[versions.get(path.split("/")[0], scheduler)][path] for path in trees[scheduler]}
        write(self.folder, mixed)
        self.entry.apply_folder()
        for namespace, workloads in WORKLOADS.items():
            self.where.rolled_out(namespace, *workloads)

    def only(self, cas: str, scheduler: str, worker: str) -> None:
        """Wait until there are only pods of these versions."""
        wanted = {"cas": [cas] * CAS, "scheduler": [scheduler], "worker": [worker] * REPLICAS}
        until(f"pods of {wanted}", lambda: self.versions() == wanted, 90, lambda: f": {self.versions()}")

    def versions(self) -> dict[str, list[str]]:
        """Return the versions of the pods by component. Terminating pods count too."""
        found: dict[str, list[str]] = {}
        for namespace in WORKLOADS:
            for pod in json.loads(self.where.run("-n", namespace, "get", "pods", "-o", "json"))["items"]:
                containers = (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"])
                used = {each["image"] for each in containers if each["image"].startswith(images.NATIVELINK)}
                component = pod["metadata"]["labels"]["app.kubernetes.io/component"]
                found.setdefault(component, []).extend(image.rpartition(":")[2] for image in used)
        return found

    def build(self, word: str, rules: int = FEW, seconds: int = 1, *, missed: int = 0) -> None:
        """Build rules of a new word, all of which have to run.

        A client that misses an answer because the scheduler stops asks again, and then gets the result as a cache hit.
        At most ``missed`` rules may be such hits.
        """
        kinds = self.bazel.build(word, rules, seconds)
        hits = kinds.pop("remote cache hit", 0)
        assert hits <= missed
        assert kinds == {"remote": rules - hits}
        assert self.begun(f"{word}-") >= rules
        self.built[word] = rules, seconds

    def hits(self, *words: str) -> int:
        """Build words again, by default all words so far, and return the number of rules. All have to be hits."""
        for word in words or self.built:
            rules, seconds = self.built[word]
            assert self.bazel.build(word, rules, seconds) == {"remote cache hit": rules}
        return sum(self.built[word][0] for word in words or self.built)

    def begun(self, word: str) -> int:
        """Return how often rules of words that start like this began."""
        return len([*nativelink.claimed(self.where, WORKERS, "begun").glob(f"{word}*")])


@pytest.fixture(scope="module")
def farm(state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    with cluster.fresh("e2e-upgrade", nodes=0, real=True) as where:
        folder = tmp_path_factory.mktemp("clusters") / "upgrade"
        made = Farm(where, folder, Bazel(tmp_path_factory.mktemp("bazel")))
        with ThreadPoolExecutor(1) as background:
            started = background.submit(made.bazel.run, "info", "release")
            where.apply(secure_namespace(NAME, "restricted"), secure_namespace(WORKERS, "baseline"))
            where.apply(SHARED)
            folder.mkdir()
            patches = [{"patch": yaml.safe_dump(PATCH)}]
            (folder / "kustomization.yaml").write_text(yaml.safe_dump({"resources": ["rendered"], "patches": patches}))
            made.push(OLD, OLD, OLD)
            started.result()
        made.bazel.endpoints = [
            f"--remote_executor=grpc://{made.entry.address('nativelink-scheduler')}:50052",
            f"--remote_cache=grpc://{made.entry.address('nativelink-cas')}:50051",
            "--remote_retries=20",
        ]
        try:
            made.build("before")
            yield made
        finally:
            made.bazel.run("shutdown")


@pytest.mark.parametrize(("word", "version"), [("upgrade", NEW), ("rollback", OLD)])
def test_one_push_under_load_loses_no_action_and_no_result(farm: Farm, word: str, version: str) -> None:
    """Every build succeeds. At most the actions that run when the scheduler stops begin a second time."""
    over = threading.Event()

    def load() -> int:
        """Build until the push is over, and return the number of rules."""
        builds = 0
        while not builds or not over.is_set():
            builds += 1
            farm.build(f"{word}-{builds}", RULES, SECONDS, missed=RUNNING)
        return builds * RULES

    with ThreadPoolExecutor(1) as background:
        building = background.submit(load)
        try:
            until("busy workers", lambda: building.done() or farm.begun(word) >= REPLICAS * SLOTS, 60)
            pushed = time.monotonic()
            farm.push(version, version, version)
            seconds = time.monotonic() - pushed
        finally:
            over.set()
        actions = building.result()
    again = farm.begun(word) - actions
    print(f"{word} to {version}: all new in {seconds:.0f} s, {again} of {actions} actions began twice")
    assert 0 <= again <= RUNNING
    print(f"{word} to {version}: {farm.hits()} cache hits")
    there = farm.versions()
    assert there["cas"] + there["scheduler"] == [version] * (CAS + 1)
    assert there["worker"].count(version) == REPLICAS, "the others should be workers that still drain"


def test_counter_run_a_build_that_does_not_try_again_fails_with_the_scheduler(farm: Farm) -> None:
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as background:
        patch.setattr(farm.bazel, "endpoints", [*farm.bazel.endpoints, "--remote_retries=0"])
        building = background.submit(farm.build, "impatient", REPLICAS * SLOTS, 30)
        until("busy workers", lambda: building.done() or farm.begun("impatient") >= REPLICAS * SLOTS, 60)
        farm.where.run("-n", NAME, "rollout", "restart", "deployment/nativelink-scheduler")
        with pytest.raises(AssertionError, match="UNAVAILABLE"):
            building.result()


@nativelink.only_original("whether its versions work together")
def test_versions_work_together(farm: Farm) -> None:
    """Every mix that a push passes through, whatever its order, builds and has the results of the others."""
    mixes = [
        (NEW, OLD, OLD),
        (NEW, NEW, OLD),
        (OLD, NEW, OLD),
        (OLD, NEW, NEW),
        (OLD, OLD, NEW),
        (NEW, OLD, NEW),
    ]
    earlier = "before"
    for number, mix in enumerate(mixes):
        farm.push(*mix)
        farm.only(*mix)
        farm.build(f"mix-{number}")
        assert farm.begun(f"mix-{number}") == FEW
        farm.hits("before", earlier)
        earlier = f"mix-{number}"
        print(f"CAS {mix[0]}, scheduler {mix[1]}, workers {mix[2]}: built, and had the results of the mix before")
