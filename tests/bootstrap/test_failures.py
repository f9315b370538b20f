"""Runs with clusters that are down or hang. The other clusters are completed, and the summary names all of them."""

from __future__ import annotations

import re
from collections.abc import Callable

from testbed.cluster import Cluster
from testkit.inventories import LOCAL_PATH, NO_ADD_ONS
from testkit.playbooks import Project

VARIABLES = {"preflight_api_timeout": 15, **LOCAL_PATH, **NO_ADD_ONS}


def test_dead_and_hanging_clusters_do_not_delay_others(project: Project, embedded: Callable[[str], Cluster]) -> None:
    alive, hanging = embedded("failures-alive"), embedded("failures-hanging")
    project.add("alive", alive, **VARIABLES)
    project.add("dead", **VARIABLES)
    project.add("hanging", hanging, **VARIABLES)

    hanging.pause()
    run = project.run()

    assert run.status == 2
    assert run.recap["alive"]["failed"] == 0
    assert run.recap["dead"]["failed"] == 1
    assert run.recap["hanging"]["failed"] == 1
    assert re.search(r"Make the namespaces\].*\nchanged: \[alive\](?s:.)*\nfatal: \[hanging\]", run.output)
    assert (project.trees / "alive" / "rendered" / "kustomization.yaml").exists()
    assert not (project.trees / "dead").exists()
    assert not (project.trees / "hanging").exists()
    assert alive.run("get", "namespace", "nativelink", "-o", "name") == "namespace/nativelink\n"
    assert sorted(run.summary) == ["alive", "dead", "hanging"]
    assert run.summary["alive"].startswith("alive: changed (")
    for name in ("dead", "hanging"):
        assert run.summary[name].startswith(f"{name}: failed\n")
        assert "  failed       cluster_context: the API server https://127.0.0.1:" in run.summary[name]

    # If every cluster fails, there is still a summary.
    run = project.run("--limit", "dead,hanging")
    assert run.status == 2
    assert sorted(run.summary) == ["dead", "hanging"]

    # The counter-run: when the cluster answers again, it is completed like the other.
    hanging.resume()
    run = project.run("--limit", "alive,hanging")
    assert run.status == 0
    assert run.summary["alive"].startswith("alive: nothing changed\n")
    assert run.summary["hanging"].startswith("hanging: changed (")
