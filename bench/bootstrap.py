"""Measure the bootstrap: the first run on a fresh cluster, and the runs after it, which change nothing.

The clusters are embedded ones with fake nodes. A run installs KEDA, Gateway API, Envoy Gateway and an engine. The
seconds include the start of Ansible but not that of the cluster. Pods do not really start. On a real cluster the first
run also waits until images are pulled.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from testbed import cluster
from testkit import numbers
from testkit.inventories import LOCAL_PATH
from testkit.playbooks import Project

SECOND_RUN = 20.0  # seconds, the target of the p95
NAME = "bench-bootstrap"
VARIABLES = {
    **LOCAL_PATH,
    "nativelink_hostname": "nativelink.example.com",
    "gitops_repository": "https://git.example.com/platform/clusters.git",
}


def main(arguments: list[str] | None = None) -> int:
    """Measure and print. Return 1 if a run failed or a later run changed something; a high number is not an error."""
    parser = argparse.ArgumentParser(prog="python -m bench bootstrap", description=__doc__)
    parser.add_argument("--first", type=int, default=3, metavar="RUNS")
    parser.add_argument("--next", type=int, default=5, metavar="RUNS", help="runs after each first run")
    parser.add_argument("--engine", choices=["argocd", "flux"], default="argocd")
    given = parser.parse_args(arguments)
    print(f"{numbers.machine()}; engine {given.engine}", flush=True)
    first: list[float] = []
    again: list[float] = []
    for _ in range(given.first):
        with tempfile.TemporaryDirectory(prefix="bench-") as folder, cluster.fresh(NAME) as where:
            project = Project(Path(folder))
            project.add("bench", where, **VARIABLES, gitops_provider=given.engine)
            first.append(_timed(project, changes=True))
            again += [_timed(project, changes=False) for _ in range(given.next)]
    numbers.head("seconds")
    numbers.row("first run on a fresh cluster", first)
    numbers.row("next run, which changes nothing", again, SECOND_RUN)
    return 0


def _timed(project: Project, *, changes: bool) -> float:
    began = time.monotonic()
    run = project.run()
    took = time.monotonic() - began
    if run.status or bool(run.changed) != changes:
        raise SystemExit(f"the run failed, or changed {run.changed}:\n{run.output[-4000:]}")
    return took
