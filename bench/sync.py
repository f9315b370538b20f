"""Measure syncing: from a pushed commit to the cluster, with Flux and with Argo CD, for a changed limit of the CAS.

The clusters are embedded ones with a real node, one CAS pod, and a Git server on this machine. Each run pushes another
memory limit, and asks the engine to look at once, as a webhook does. The output shows separately what the engine's own
poll would add. With --polled the run does not ask the engine, and the numbers include the wait for its poll.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.nativelink.gitops.plugins.plugin_utils.api import Api

from bench import numbers
from testbed import cluster, components
from testbed.cluster import Cluster
from testbed.waiting import until
from testkit.git_server import GitServer, address_for
from testkit.site import SMALL, Site, pool

NAME = "bench"
OBJECT = f"nativelink-{NAME}"
# The time that each engine's own poll adds, with its defaults.
POLLS = {
    "flux": "every gitops_interval, by default 60 s: 0 to 60 s more",
    "argocd": "every timeout.reconciliation, by default 120 s and up to 60 s of jitter: 0 to 180 s more",
}
_ENOUGH = 300.0


@dataclass(frozen=True)
class Synced:
    """A cluster whose engine applies the commits of a checkout."""

    engine: str
    where: Cluster
    site: Site
    api: Api

    def limit_to(self, mebibytes: int) -> None:
        """Render another memory limit of the CAS."""
        resources = {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": f"{mebibytes}Mi"}}
        self.site.set(NAME, nativelink_cas_resources=resources)
        self.site.playbook("render")

    def ask(self) -> None:
        """Ask the engine to look into Git now."""
        if self.engine == "flux":
            kind, space, note = "gitrepository", "flux-system", f"reconcile.fluxcd.io/requestedAt={time.time_ns()}"
        else:
            kind, space, note = "application.argoproj.io", "argocd", "argocd.argoproj.io/refresh=normal"
        self.where.run("-n", space, "annotate", "--overwrite", kind, OBJECT, note)

    def applied(self, mebibytes: int) -> bool:
        """Return True if the StatefulSet has the limit."""
        found = self.api.read("apps/v1", "StatefulSet", "nativelink-cas", "nativelink")
        return found is not None and _limit(found["spec"]["template"]["spec"]) == f"{mebibytes}Mi"

    def ready(self, mebibytes: int) -> bool:
        """Return True if the pod has the limit and is ready."""
        found = self.api.read("v1", "Pod", "nativelink-cas-0", "nativelink")
        if found is None or _limit(found["spec"]) != f"{mebibytes}Mi":
            return False
        conditions = found["status"].get("conditions", ())
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    def done(self, commit: str) -> bool:
        """Return True if the engine says that all of a commit is applied and ready. Then the next run can begin."""
        if self.engine == "flux":
            found = self._status("kustomization.kustomize.toolkit.fluxcd.io", "flux-system")
            ready = [each["status"] for each in found.get("conditions", ()) if each["type"] == "Ready"]
            return str(found.get("lastAppliedRevision", "")).endswith(commit) and ready == ["True"]
        found = self._status("application.argoproj.io", "argocd")
        sync, health = found.get("sync", {}), found.get("health", {})
        return (sync.get("revision"), sync.get("status"), health.get("status")) == (commit, "Synced", "Healthy")

    def _status(self, kind: str, space: str) -> dict[str, Any]:
        return dict(json.loads(self.where.run("-n", space, "get", kind, OBJECT, "-o", "json")).get("status", {}))


def main(arguments: list[str] | None = None) -> int:
    """Measure and print. Return 1 if a run failed; a high number is not an error."""
    parser = argparse.ArgumentParser(prog="python -m bench sync", description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--engines", nargs="+", choices=[*POLLS], default=[*POLLS])
    parser.add_argument("--polled", action="store_true", help="wait for the engine's own poll")
    parser.add_argument("--interval", default="1m", help="gitops_interval, which Flux polls with")
    given = parser.parse_args(arguments)
    print(numbers.machine(), flush=True)
    for engine in given.engines:
        applied: list[float] = []
        ready: list[float] = []
        with _synced(engine, given.interval) as synced:
            for number in range(given.runs):
                mebibytes = 300 + number
                synced.limit_to(mebibytes)
                commit = synced.site.commit(f"{mebibytes} MiB for the CAS")
                began = time.monotonic()
                if not given.polled:
                    synced.ask()
                until("the limit to be applied", lambda wanted=mebibytes: synced.applied(wanted), _ENOUGH)  # type: ignore[misc]
                applied.append(time.monotonic() - began)
                until("the pod to be ready", lambda wanted=mebibytes: synced.ready(wanted), _ENOUGH)  # type: ignore[misc]
                ready.append(time.monotonic() - began)
                until("the engine to be done", lambda wanted=commit: synced.done(wanted), _ENOUGH)  # type: ignore[misc]
        numbers.head(f"{engine}: seconds from the push")
        numbers.row("  applied", applied)
        numbers.row("  the new pod is ready", ready)
        how = "in the numbers above" if given.polled else "added without a webhook"
        print(f"  its own poll, {how}: {POLLS[engine]}", flush=True)
    return 0


def _limit(pod: dict[str, Any]) -> str:
    return str(pod["containers"][0]["resources"]["limits"]["memory"])


@contextmanager
def _synced(engine: str, interval: str) -> Iterator[Synced]:
    """Yield a cluster after its first sync, and remove it afterwards."""
    with cluster.fresh(f"bench-{engine}", nodes=0, real=True) as where:
        where.load(*components.images_of(engine))
        with tempfile.TemporaryDirectory(prefix="bench-") as name_of_folder:
            folder = Path(name_of_folder)
            with GitServer(folder / "git", address_for(where)) as server:
                site = Site.make(folder / "checkout")
                variables = SMALL | {"nativelink_worker_pools": [pool("default")], "gitops_interval": interval}
                address = {"gitops_provider": engine, "gitops_repository": server.http_url}
                site.add(NAME, where, **variables, **address)
                site.bootstrap()
                synced = Synced(engine, where, site, Api(str(where.kubeconfig), where.context))
                commit = site.publish(server)
                synced.ask()
                until("the first sync", lambda: synced.done(commit), _ENOUGH)
                yield synced
