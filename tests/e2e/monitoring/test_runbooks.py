"""The commands of the runbooks on a farm with an edge, KEDA and an action that no pool can run.

The blocks for Redis run in tests/e2e/scaling, and those for Flux and Argo CD in tests/e2e/engines.
"""

from pathlib import Path

import pytest

from testbed.waiting import until
from testkit import nativelink
from testkit.edge import CAS
from testkit.runbooks import PLACEHOLDERS, blocks, faults, run
from tests.e2e.monitoring.conftest import Monitored

# No test has these parts. The shell reads blocks that need them, and does not run them.
NOT_COVERED = {
    "cert-manager": "cert-manager",
    "certificate": "the files of a new certificate",
    "mutual-tls": "certificates of workers",
    "inventory": "the inventory of a real cluster",
    "prometheus": "another Prometheus",
}
COVERED = {"", "memory", "envoy", "original", "redis", "flux", "argocd"}


def test_each_part_that_a_block_needs_is_known() -> None:
    found = blocks()
    assert len(found) > 70
    assert {block.needs for block in found} == {*COVERED, *NOT_COVERED}


def test_commands_run(farm: Monitored) -> None:
    where = farm.where
    assert all(told.startswith("refused") for told in farm.client().put().values())
    path, volume = f"/api/v1/nodes/{PLACEHOLDERS['NODE']}/proxy/metrics", 'claim="data-nativelink-cas-0"'
    until("the kubelet to measure the volume", lambda: volume in where.run("get", "--raw", path), 60)
    until("Prometheus to have the workers", lambda: farm.series("nativelink_worker_connected_count") != [], 60)
    farm.caller("impostor").codes()  # the edge refuses it
    with farm.without("deployment/nativelink-scheduler"), farm.requests():
        until("the edge to give calls up", lambda: run(where, "envoy") == "", 120, lambda: f": {run(where, 'envoy')}")
    with farm.load(pool="no-pool-has-it") as load:
        load.hold(1)
        # Prometheus does not have the new scheduler at once.
        said: list[str] = []
        printed = "the commands to print what the pages say"
        until(printed, lambda: said.append(run(where, "", "memory")) or said[-1] == "", 60, lambda: f": {said[-1]}")
        if nativelink.SAVED:  # the stand-in does not log the reason
            log = ("-n", CAS, "logs", "deployment/nativelink-scheduler")
            until("the scheduler to log the action", lambda: "No candidate workers" in where.run(*log), 90)
            assert run(where, "original") == ""


def test_commands_that_need_more_are_valid_for_the_shell(farm: Monitored) -> None:
    wanted = [block for block in blocks() if block.needs in NOT_COVERED]
    assert [fault for block in wanted if (fault := faults(block, farm.where, parse=True))] == []


@pytest.mark.parametrize(
    ("code", "said", "fault"),
    [
        ("kubectl -n nativelink get statefulset nativelink-css", "", "not found"),
        ("kubectl -n nativelink get statefulset nativelink-cas", "NAME   READY   RESTARTS", "['RESTARTS']"),
        ("kubectl -n nativelink get statefulset nativelink-cas; echo $NOWHERE", "", "NOWHERE: unbound variable"),
    ],
)
def test_a_wrong_command_or_output_is_found(farm: Monitored, tmp_path: Path, code: str, said: str, fault: str) -> None:
    """The counter-run of the tests above."""
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n```sh\n{code}\n```\n\n```text\n{said}\n```\n")
    (block,) = blocks([page])
    found = faults(block, farm.where)
    assert found.startswith("page.md:3 ")
    assert fault in found
