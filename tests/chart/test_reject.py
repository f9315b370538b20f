"""What preflight refuses and Helm can know, Helm refuses as well. The cases and their lines are those of preflight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from chart import values
from testkit.trees import values_of
from tests.chart.conftest import Done
from tests.preflight.cases import CASES, Case

# What Helm cannot know, or what is not in the chart.
OTHERS = {
    "ingress_namespace": "an empty namespace of the ingress stands for that of its provider",
    "gitops_repository": "the engine's own object has the repository",
    "nativelink_redis_address: the cluster": "Helm knows one cluster",
    "nativelink_namespace": "Helm has the namespace",
}


def concerns_rendering(case: Case) -> bool:
    stated = case.variables.keys()
    others = any(f"{case.place}: {case.text}".startswith(each) for each in OTHERS)
    return bool(stated) and stated <= values.variables().keys() and not others


RENDERING = [case for case in CASES if concerns_rendering(case)]


def test_most_cases_concern_rendering() -> None:
    assert len(RENDERING) > 170


@pytest.mark.parametrize("case", RENDERING, ids=lambda case: f"{case.place}-{case.name}")
def test_a_fault_is_refused(case: Case, template: Callable[..., Done]) -> None:
    done = template(values_of(case.name[:50], **{"nativelink_cas_storage_class": "gp3", **case.variables}))
    assert done.returncode == 1
    place = values.translated(case.place).partition("[")[0].replace(".", "/")
    # The rules have preflight's line in the names of the chart, without a similar name. The schema names the place.
    by_the_rules = values.translated(case.line).rpartition("; ")[0] in done.stderr
    by_the_schema = any(f"- at '/{part}" in done.stderr for part in (place, place.split("/")[0]))
    assert by_the_rules or by_the_schema, done.stderr


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        (
            {"nativelink_scheduler_replicas": 2},
            "test: scheduler.replicas: is 2, but each scheduler in memory has its own queue; write 1, or set "
            "scheduler.backend to redis",
        ),
        (
            {"nativelink_cas_store_size": "160Gi", "nativelink_cas_ac_store_size": "30Gi"},
            "test: cas.storeSize: is 160Gi, which together with 30Gi of cas.acStoreSize is more than 180Gi (90 % of "
            "the volume of 200Gi); lower one of them, or raise cas.volumeSize",
        ),
        (
            {"nativelink_worker_pools": [{"name": "linux", "min_replicas": 10, "max_replicas": 5}]},
            "test: workerPools[linux].minReplicas: is 10, which is more than maxReplicas (5); lower it, or raise "
            "maxReplicas",
        ),
        (
            {"nativelink_cas_volume_size": "80"},
            "test: cas.volumeSize: '80' is only 80 bytes, less than the minimum of 1Mi; write a size with its unit, "
            "such as 200Gi",
        ),
        (
            {"nativelink_worker_pools": [{"name": "linux", "longest_action": "0s"}]},
            "test: workerPools[linux].longestAction: must be greater than 0, not '0s'; write 30m, 1h30m or a number of "
            "seconds",
        ),
        (
            {"nativelink_client_peers": [{"ipBlock": {"cidr": "10.0.0.1/8"}}]},
            "test: clientPeers[0].ipBlock.cidr: '10.0.0.1/8' is an address inside of a range; write 10.0.0.0/8",
        ),
    ],
)
def test_messages_are_those_of_preflight_in_the_names_of_the_chart(
    variables: dict[str, Any], line: str, template: Callable[..., Done]
) -> None:
    done = template(values_of(**{"nativelink_cas_storage_class": "gp3", **variables}))
    assert done.returncode == 1
    assert line in done.stderr


def test_all_faults_come_at_once(template: Callable[..., Done]) -> None:
    faults = {"nativelink_scheduler_replicas": 2, "nativelink_workers_namespace": "nativelink"}
    done = template(values_of(**{"nativelink_cas_storage_class": "gp3", **faults}))
    assert "the values have faults:\n" in done.stderr
    assert "test: scheduler.replicas: is 2, " in done.stderr
    assert "test: workersNamespace: is nativelink, which is also the namespace of the release; " in done.stderr


def test_a_class_for_the_volumes_is_required(template: Callable[..., Done]) -> None:
    done = template(values_of(storage_classes_list=[]))
    assert "- at '/cas/storageClass': minLength: got 0, want 1" in done.stderr


def test_an_unknown_value_is_refused(helm: Callable[..., Done]) -> None:
    chart = "charts/nativelink"
    done = helm("template", "x", chart, "--set", "cas.storageClass=gp3", "--set", "cas.replica=3")
    assert "at '/cas': additional properties 'replica' not allowed" in done.stderr
