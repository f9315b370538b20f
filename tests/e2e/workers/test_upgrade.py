"""NativeLink is upgraded and rolled back on a real node while Bazel builds, each by one push of the rendered tree.

The tests run in the order of the file. Each rule of a build leaves a file on a volume of all workers when it begins, so
more files than rules mean that actions were killed and began again.
"""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from testbed import images
from testbed.cluster import Cluster
from testbed.waiting import until
from testkit import nativelink
from testkit.bazel import Bazel
from testkit.farm import BEGUN, Farm, repeated
from testkit.site import pool

pytestmark = pytest.mark.skipif(
    0 < len(nativelink.SAVED) < len(images.NATIVELINK_VERSIONS),
    reason="TESTBED_IMAGES has one version of NativeLink, which does not work with the stand-in for the other one",
)

OLD, NEW = images.NATIVELINK_VERSIONS[-2:]
CAS = 2 if nativelink.SAVED else 1  # only shards of the original say something about shards of two versions
REPLICAS, SLOTS = 2, 3  # the number of workers, and of each worker's actions
RUNNING = 2 * REPLICAS * SLOTS  # the most actions that run at a time: old workers drain while all new ones work
RULES, SECONDS = 24, 3  # of each build of a load
FEW = 6  # the rules of other builds


@dataclass(frozen=True)
class Upgraded(Farm):
    """A small farm, and a Bazel that tries as often as the documentation recommends."""

    bazel: Bazel
    built: dict[str, tuple[int, int]] = field(default_factory=dict)  # rules and seconds by word

    def push(self, cas: str, scheduler: str, worker: str) -> None:
        """Render the tree with these versions, apply it, and wait until all new pods are ready.

        Workers that drain may then still be there.
        """
        pools = [pool("default", slots=SLOTS, min_replicas=REPLICAS)]
        trees = {each: self.tree(pools, nativelink_cas_replicas=CAS, nativelink_version=each) for each in (OLD, NEW)}
        versions = {"cas": cas, "worker": worker}  # by folder; all other folders are the scheduler's
        mixed = {path: trees[versions.get(path.split("/")[0], scheduler)][path] for path in trees[scheduler]}
        self.apply_files(mixed, BEGUN)
        self.ready("deployment/nativelink-worker-default")

    def versions(self) -> dict[str, list[str]]:
        """Return the versions of the pods by component. Terminating pods count too."""
        found: dict[str, list[str]] = {}
        for namespace in (self.name, self.workers):
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
        assert len(self.begun(f"{word}-*")) >= rules
        self.built[word] = rules, seconds

    def hits(self, *words: str) -> int:
        """Build words again, by default all words so far, and return the number of rules. All have to be hits."""
        for word in words or self.built:
            rules, seconds = self.built[word]
            assert self.bazel.build(word, rules, seconds) == {"remote cache hit": rules}
        return sum(self.built[word][0] for word in words or self.built)


@pytest.fixture(scope="module")
def farm(where: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upgraded]:
    with Bazel.started(tmp_path_factory.mktemp("bazel")) as bazel:
        made = Upgraded(where, "upgrade", tmp_path_factory.mktemp("clusters"), bazel)
        made.push(OLD, OLD, OLD)
        bazel.at(made.client(), "--remote_retries=20")
        made.build("before")
        yield made


@pytest.mark.parametrize(("word", "version"), [("upgrade", NEW), ("rollback", OLD)])
def test_one_push_under_load_loses_no_action_and_no_result(farm: Upgraded, word: str, version: str) -> None:
    """Every build succeeds. At most the actions that run when the scheduler stops begin a second time."""
    with repeated(lambda number: farm.build(f"{word}-{number}", RULES, SECONDS, missed=RUNNING)) as builds:
        until("busy workers", lambda: builds.done() or len(farm.begun(f"{word}-*")) >= REPLICAS * SLOTS, 60)
        pushed = time.monotonic()
        farm.push(version, version, version)
        seconds = time.monotonic() - pushed
    actions = len(builds.result()) * RULES
    again = len(farm.begun(f"{word}-*")) - actions
    print(f"{word} to {version}: all new in {seconds:.0f} s, {again} of {actions} actions began twice")
    assert 0 <= again <= RUNNING
    print(f"{word} to {version}: {farm.hits()} cache hits")
    there = farm.versions()
    assert there["cas"] + there["scheduler"] == [version] * (CAS + 1)
    assert there["worker"].count(version) == REPLICAS, "the others should be workers that still drain"


def test_counter_run_a_build_that_does_not_try_again_fails_with_the_scheduler(farm: Upgraded) -> None:
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as background:
        patch.setattr(farm.bazel, "endpoints", [*farm.bazel.endpoints, "--remote_retries=0"])
        building = background.submit(farm.build, "impatient", REPLICAS * SLOTS, 30)
        until("busy workers", lambda: building.done() or len(farm.begun("impatient-*")) >= REPLICAS * SLOTS, 60)
        farm.where.run("-n", farm.name, "rollout", "restart", "deployment/nativelink-scheduler")
        with pytest.raises(AssertionError, match="UNAVAILABLE"):
            building.result()


@nativelink.only_original("whether its versions work together")
def test_versions_work_together(farm: Upgraded) -> None:
    """Every mix that a push passes through, whatever its order, builds and has the results of the others."""
    mixes = [(NEW, OLD, OLD), (NEW, NEW, OLD), (OLD, NEW, OLD), (OLD, NEW, NEW), (OLD, OLD, NEW), (NEW, OLD, NEW)]
    earlier = "before"
    for number, (cas, scheduler, worker) in enumerate(mixes):
        farm.push(cas, scheduler, worker)
        wanted = {"cas": [cas] * CAS, "scheduler": [scheduler], "worker": [worker] * REPLICAS}

        def is_alone(wanted: dict[str, list[str]] = wanted) -> bool:
            return farm.versions() == wanted

        until(f"only pods of {wanted}", is_alone, 90, lambda: f": {farm.versions()}")
        farm.build(f"mix-{number}")
        assert len(farm.begun(f"mix-{number}-*")) == FEW
        farm.hits("before", earlier)
        earlier = f"mix-{number}"
        print(f"CAS {cas}, scheduler {scheduler}, workers {worker}: built, and had the results of the mix before")
