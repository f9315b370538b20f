"""The playbook `verify` as a Job of the tree: it is content with the farm, and the engine reports what it finds."""

import re

from testkit.engines import CAS, NAME, SYNC_TIMEOUT, Engine

IMAGE = "docker.io/testbed/verify:v0"
OK = ("capabilities", "small blobs", "large blob", "wrong bytes", "action results")
SKIPPED = ("strangers", "worker API", "CAS", "certificates", "GitOps", "Prometheus")
REPORTED = {
    "flux": ("HealthCheckFailed", "Job/nativelink/nativelink-verify status: 'InProgress'"),  # it is repeated
    "argocd": ("'hookPhase': 'Failed'", "'name': 'nativelink-verify'"),
}


def printed(engine: Engine) -> str:
    """Return what the Job printed."""
    return engine.where.run("-n", CAS, "logs", "job/nativelink-verify")


def results(log: str) -> dict[str, str]:
    """Return the result of each check."""
    return dict(re.findall(r"^ +(?:verified +)?(\S.*?)  +(ok|FAILED|skipped)  ", log, re.MULTILINE))


def test_a_job_verifies_the_farm_and_the_engine_reports_its_faults(engine: Engine) -> None:
    engine.site.set(NAME, nativelink_verify_image=IMAGE)
    engine.site.playbook("render")
    engine.applied(engine.site.commit("Verify the farm inside the cluster"), 120)
    pools = [each["name"] for each in engine.site.hosts[NAME]["nativelink_worker_pools"]]
    good = dict.fromkeys((*OK, *(f"{kind} {pool}" for kind in ("pool", "network") for pool in pools)), "ok")
    good |= dict.fromkeys(SKIPPED, "skipped")
    log = printed(engine)
    assert results(log) == good, log

    engine.edit("rendered/policy/workers.yaml", "\n  egress:\n", "\n  egress:\n    - {}\n")
    engine.edit("rendered/verify/job.yaml", "nativelink.gitops/tree: ", "nativelink.gitops/tree: by-hand-")
    engine.site.commit("Let actions out")
    engine.ask()
    bad = good | dict.fromkeys((f"network {pool}" for pool in pools), "FAILED")
    said = f"network {pools[0]}: an action of pool {pools[0]} reaches the API server ("
    engine.eventually("the Job's fault", lambda: results(log := printed(engine)) == bad and said in log, 90)
    engine.says(*REPORTED[engine.kind], seconds=60)

    engine.site.set(NAME, nativelink_verify_image="")
    engine.site.playbook("render")
    engine.applied(engine.site.commit("As before"), SYNC_TIMEOUT + 60)
    engine.where.run("-n", CAS, "delete", "job/nativelink-verify", "--ignore-not-found")  # Argo CD prunes no hook
