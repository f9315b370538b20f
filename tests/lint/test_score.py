"""kube-score judges each object of the committed trees. What it finds is accepted here, with the reason, or mended."""

import json
import subprocess
from collections import Counter
from fnmatch import fnmatch
from typing import Any

import pytest
import yaml

from testbed import build
from testkit.trees import Object, committed, objects_of

CRITICAL = 1
# The checks whose critical findings are accepted, and in which workloads.
ACCEPTED = {
    # Tags are pinned, and a node that has the image starts a pod although the registry is away.
    "container-image-pull-policy": {"*"},
    # A limit of processor time would slow these down at the moment when they have most to do. They share a node by
    # their requests.
    "container-resources": {
        "nativelink-collector*",
        "nativelink-demand",
        "nativelink-scheduler",
        "nativelink-worker-*",
    },
    # They have one state of health only.
    "pod-probes-identical": {"nativelink-collector*", "nativelink-demand", "nativelink-worker-*"},
    # A single pod, which others reach by its Service.
    "statefulset-has-servicename": {"nativelink-redis"},
    # NativeLink runs each action as a user of its own, for which it has to be root of its container (docs/security.md).
    "container-security-context-user-group-id": {"nativelink-worker-*"},
}
TREES = ("dev", "staging", "prod", "local")
# The kinds that it judges. An object that it does not read would pass.
KINDS = {"Deployment", "StatefulSet", "DaemonSet", "Service", "NetworkPolicy", "PodDisruptionBudget", "Ingress"}


def judged(objects: list[Object]) -> list[dict[str, Any]]:
    text = yaml.dump_all(objects, Dumper=yaml.CSafeDumper)
    command = [build.program("kube-score"), "score", "--output-format=json", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    return list(json.loads(done.stdout))


def critical(scores: list[dict[str, Any]]) -> Counter[tuple[str, str]]:
    """Return the critical findings by check and name of the object."""
    return Counter(
        (each["check"]["id"], score["object_meta"]["name"])
        for score in scores
        for each in score["checks"]
        if each["grade"] == CRITICAL and not each["skipped"]
    )


@pytest.mark.parametrize("cluster", TREES)
def test_kube_score_finds_nothing_critical_that_is_not_accepted(cluster: str) -> None:
    objects = objects_of(committed(cluster))
    scores = judged(objects)
    wanted = sorted((each["kind"], each["metadata"]["name"]) for each in objects if each["kind"] in KINDS)
    assert sorted((score["type_meta"]["kind"], score["object_meta"]["name"]) for score in scores) == wanted
    found = critical(scores)
    assert [each for each in found if not any(fnmatch(each[1], name) for name in ACCEPTED.get(each[0], ()))] == []


def test_kube_score_finds_a_container_that_may_do_more() -> None:
    (scheduler,) = (
        each
        for each in objects_of(committed("dev"))
        if each["metadata"]["name"] == "nativelink-scheduler" and each["kind"] == "Deployment"
    )
    (container,) = scheduler["spec"]["template"]["spec"]["containers"]
    container["securityContext"] = {"privileged": True}
    container["resources"] = {}
    found = {check for check, _ in critical(judged([scheduler]))}
    assert {"container-security-context-privileged", "container-resources"} <= found


def test_each_accepted_finding_is_found() -> None:
    found = {check for cluster in TREES for check, _ in critical(judged(objects_of(committed(cluster))))}
    assert found == set(ACCEPTED)
