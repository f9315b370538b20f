"""kube-score and checkov judge each object of the committed trees. Findings are mended, or accepted with the reason."""

import json
import os
import platform
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path, PurePath
from typing import NamedTuple

import pytest
import yaml

from testbed import build
from testkit.trees import Object, committed, find, objects_of

# The checks whose findings are accepted, and in which objects.
ACCEPTED = (
    # Tags are pinned, and a node that has the image starts a pod although the registry is away.
    ({"container-image-pull-policy", "CKV_K8S_15"}, {"*"}),
    # A digest is the site's to set, for the images that it trusts (nativelink_image_digest and others).
    ({"CKV_K8S_43"}, {"*"}),
    # A limit of processor time would slow these down at the moment when they have most to do. They share a node by
    # their requests.
    (
        {"container-resources", "CKV_K8S_11"},
        {"nativelink-collector*", "nativelink-demand", "nativelink-scheduler", "nativelink-worker-*"},
    ),
    # They have one state of health only.
    ({"pod-probes-identical"}, {"nativelink-collector*", "nativelink-demand", "nativelink-worker-*"}),
    # A single pod, which others reach by its Service.
    ({"statefulset-has-servicename"}, {"nativelink-redis"}),
    # NativeLink runs each action as a user of its own, for which it has to be root of its container, with capabilities
    # (docs/security.md).
    (
        {"container-security-context-user-group-id", "CKV_K8S_23", "CKV_K8S_25", "CKV_K8S_40"},
        {"nativelink-worker-*"},
    ),
    # NativeLink can read the password of Redis only from its environment, so a file for the others would hide nothing.
    ({"CKV_K8S_35"}, {"nativelink-demand", "nativelink-redis", "nativelink-scheduler"}),
)
PAIRS = [(check, name) for checks, names in ACCEPTED for check in checks for name in names]
TREES = ("dev", "staging", "prod", "local")
WORKLOADS = {"Deployment", "StatefulSet", "DaemonSet"}
# The kinds that each of them judges. An object that it does not read would pass.
KINDS = {
    "kube-score": {*WORKLOADS, "Service", "NetworkPolicy", "PodDisruptionBudget", "Ingress"},
    "checkov": {*WORKLOADS, "Service", "ServiceAccount", "ConfigMap", "Ingress"},
}
CRITICAL = 1
Trees = dict[str, list[Object]]


class Judged(NamedTuple):
    """The objects that were read, as ``TREE/NAMESPACE/KIND/NAME``, and by check those in which it found something."""

    read: set[str]
    found: set[tuple[str, str]]


def path(tree: str, item: Object) -> str:
    return f"{tree}/{item['metadata']['namespace']}/{item['kind']}/{item['metadata']['name']}"


def kube_score(trees: Trees) -> Judged:
    judged = Judged(set(), set())
    command = [build.program("kube-score"), "score", "--output-format=json", "-"]
    for tree, objects in trees.items():
        text = yaml.dump_all(objects, Dumper=yaml.CSafeDumper)
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        for score in json.loads(done.stdout):
            item = path(tree, {**score["type_meta"], "metadata": score["object_meta"]})
            judged.read.add(item)
            found = [each for each in score["checks"] if each["grade"] == CRITICAL and not each["skipped"]]
            judged.found.update((each["check"]["id"], item) for each in found)
    return judged


def checkov(trees: Trees, folder: Path) -> Judged:
    # It reads nothing of prod in one file, and passes it. Of several folders it reads only the first.
    for tree, objects in trees.items():
        for each in objects:
            file = folder / f"{path(tree, each)}.yaml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(yaml.dump(each, Dumper=yaml.CSafeDumper))
    command = [sys.executable, "-m", "checkov.main", "--framework=kubernetes", "--directory=."]
    command += ["--output=json", "--compact", "--soft-fail", "--skip-download"]
    environment = {  # without the settings and the API key of a user
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PYTHONPATH": str(build.wheels("checkov", platform.python_version())),
        "CKV_SKIP_PACKAGE_UPDATE_CHECK": "true",
    }
    results = json.loads(build.run(*command, env=environment, cwd=folder))["results"]
    failed, passed = (
        {(each["check_id"], each["file_path"].removeprefix("/").removesuffix(".yaml")) for each in results[result]}
        for result in ("failed_checks", "passed_checks")
    )
    return Judged({item for _, item in failed | passed}, failed)


@pytest.fixture(scope="module")
def trees() -> Trees:
    """The committed trees, and ``bad`` with a container that may do more."""
    bad = find(objects_of(committed("dev")), "Deployment", "nativelink-scheduler")
    (container,) = bad["spec"]["template"]["spec"]["containers"]
    container |= {"securityContext": {"privileged": True}, "resources": {}}
    return {**{tree: objects_of(committed(tree)) for tree in TREES}, "bad": [bad]}


@pytest.fixture(scope="module")
def judged(trees: Trees, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Judged]:
    return {"kube-score": kube_score(trees), "checkov": checkov(trees, tmp_path_factory.mktemp("checkov"))}


@pytest.fixture(scope="module")
def found(judged: dict[str, Judged]) -> set[tuple[str, str]]:
    return {each for one in judged.values() for each in one.found if not each[1].startswith("bad/")}


def is_accepted(finding: tuple[str, str], pair: tuple[str, str]) -> bool:
    return finding[0] == pair[0] and fnmatch(PurePath(finding[1]).name, pair[1])


@pytest.mark.parametrize("judge", KINDS)
def test_each_object_is_read(judge: str, trees: Trees, judged: dict[str, Judged]) -> None:
    wanted = [path(tree, each) for tree, objects in trees.items() for each in objects if each["kind"] in KINDS[judge]]
    assert sorted(judged[judge].read) == sorted(wanted)


def test_nothing_is_found_that_is_not_accepted(found: set[tuple[str, str]]) -> None:
    assert [each for each in found if not any(is_accepted(each, pair) for pair in PAIRS)] == []


def test_each_accepted_finding_is_found(found: set[tuple[str, str]]) -> None:
    assert [pair for pair in PAIRS if not any(is_accepted(each, pair) for each in found)] == []


@pytest.mark.parametrize(
    ("judge", "privileges", "memory"),
    [
        ("kube-score", "container-security-context-privileged", "container-resources"),
        ("checkov", "CKV_K8S_16", "CKV_K8S_13"),
    ],
)
def test_a_container_that_may_do_more_is_found(
    judge: str, privileges: str, memory: str, judged: dict[str, Judged]
) -> None:
    item = "bad/nativelink/Deployment/nativelink-scheduler"
    assert {(privileges, item), (memory, item)} <= judged[judge].found
