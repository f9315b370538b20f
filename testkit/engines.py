"""Flux and Argo CD on a cluster with a real node, each of which applies a tree from a private Git server.

The tests ask for a look at Git as a webhook does, so that they do not wait for a poll.
"""

import contextlib
import json
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from testbed import build, cluster
from testbed.cluster import Cluster
from testbed.ports import free_port
from testbed.waiting import until
from testkit.farm import load_images
from testkit.git_server import GitServer, address_for
from testkit.prometheus import Alerts, engine_alerts, forwarded
from testkit.site import SMALL, Site

Object = dict[str, Any]

NAME = "prod"
OBJECT = f"nativelink-{NAME}"
"""The name of the objects that point an engine at the tree."""
CAS, WORKERS = "nativelink", "nativelink-workers"
USER, PASSWORD = "deployer", "n0t-in-Git-4b7d"
SYNC_TIMEOUT = 90
"""Seconds of an operation of Argo CD. They are few, but enough for a good sync on a slow machine."""


@dataclass(frozen=True)
class Engine(ABC):
    """An engine that applies the tree of a site from a Git server."""

    where: Cluster
    site: Site
    server: GitServer
    kind: ClassVar[str]
    namespace: ClassVar[str]
    pointer: ClassVar[str]
    """The object that names the tree, as an argument of kubectl."""
    suspension: ClassVar[Object]
    """The fields of its ``spec`` that suspend the engine."""
    fetched: ClassVar[str]
    """How docs/changes.md tells users to wait until the engine has read a commit from Git."""
    variables: ClassVar[Object]

    @abstractmethod
    def ask(self) -> None:
        """Ask the engine to look at Git now, and to forget its caches."""

    def looked(self) -> bool:
        """Return True if the engine has done what it was asked last."""
        return True

    @abstractmethod
    def finished(self, commit: str) -> bool:
        """Return True if the engine has applied a commit."""

    @abstractmethod
    def healthy(self) -> bool:
        """Return True if all that the engine has applied is ready."""

    def unread(self) -> bool:
        """Return True if the engine could not read Git, and will not look again for minutes."""
        return False

    @abstractmethod
    def told(self) -> str:
        """Return what the engine says about its state."""

    @abstractmethod
    def jobs(self, folder: Path) -> AbstractContextManager[dict[str, str]]:
        """Yield the addresses at which Prometheus finds the engine, by the name of the job."""

    @contextlib.contextmanager
    def alerts(self, folder: Path) -> Iterator[Alerts]:
        """Start a Prometheus on this machine that has the alerts about the engine."""
        stated = {"cluster": NAME, "gitops_provider": self.kind, "gitops_namespace": self.namespace}
        with self.jobs(folder) as jobs, engine_alerts(folder, jobs, **stated) as found:
            yield found

    def get(self, thing: str, namespace: str = CAS) -> Object:
        """Return an object (``deployment/NAME``), or {} if it does not exist."""
        text = self.where.run("-n", namespace, "get", *thing.split("/"), "--ignore-not-found", "-o", "json")
        return dict(json.loads(text or "{}"))

    def names(self, kind: str, namespace: str) -> set[str]:
        """Return the names of all objects of a kind."""
        return {each.partition("/")[2] for each in self.where.run("-n", namespace, "get", kind, "-o", "name").split()}

    def patch(self, thing: str, change: Object, namespace: str = CAS) -> None:
        """Change an object by hand."""
        self.where.run("-n", namespace, "patch", *thing.split("/"), "--type=merge", "-p", json.dumps(change))

    def status(self) -> Object:
        """Return the status of the object that names the tree."""
        return dict(self.get(self.pointer, self.namespace).get("status", {}))

    def eventually(self, what: str, check: Callable[[], bool], seconds: float = 40) -> None:
        """Wait for a condition. The error has what the engine says."""
        until(what, check, seconds, lambda: f"\n{self.told()}\n{self.where.run('get', 'pods', '-A', '-o', 'wide')}")

    def applied(self, commit: str, seconds: float = 60, *, ready: bool = True) -> None:
        """Ask, and wait until a commit is applied, and all is ready. Ask again if the engine could not read Git."""

        def seen() -> bool:
            if self.unread():
                self.ask()
            return self.finished(commit) and (self.healthy() or not ready)

        self.ask()
        self.eventually(commit, seen, seconds)

    def says(self, *words: str, seconds: float = 40) -> None:
        """Ask until the engine says all of these words."""

        def seen() -> bool:
            looked, told = self.looked(), self.told()  # in this order: Flux says nothing else while it looks
            if looked:
                self.ask()
            return all(word in told for word in words)

        self.ask()
        self.eventually(f"{self.kind} to say {words}", seen, seconds)

    def file(self, path: str) -> Path:
        """Return the path of a file of the tree."""
        return self.site.trees / NAME / path

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace a text that occurs once in a file of the tree."""
        text = self.file(path).read_text()
        assert text.count(old) == 1, (path, old)
        self.file(path).write_text(text.replace(old, new))

    def add(self, path: str, *documents: Object, **more: Any) -> None:
        """Write a file of the user's, and name it among the resources of the tree, or in other fields."""
        self.file(path).write_text(yaml.safe_dump_all(documents))
        own = yaml.safe_load(self.file("kustomization.yaml").read_text())
        more = more or {"resources": [*own["resources"], path]}
        self.file("kustomization.yaml").write_text(yaml.safe_dump({**own, **more}))


class Flux(Engine):
    kind, namespace = "flux", "flux-system"
    pointer = f"kustomization.kustomize.toolkit.fluxcd.io/{OBJECT}"
    suspension: ClassVar[Object] = {"suspend": True}
    fetched = f"gitrepository/{OBJECT} --for=jsonpath={{.status.artifact.revision}}=main@sha1:"
    variables: ClassVar[Object] = {"gitops_interval": "20s", "gitops_sync_timeout": "30s"}

    def ask(self, name: str = NAME) -> str:
        """Ask for the tree of a cluster of the inventory. Return the stamp of the request."""
        stamp = str(time.time_ns())
        for kind in ("gitrepository", "kustomization"):
            asked = f"reconcile.fluxcd.io/requestedAt={stamp}"
            self.where.run("-n", self.namespace, "annotate", "--overwrite", kind, f"nativelink-{name}", asked)
        return stamp

    def looked(self) -> bool:
        def done(thing: str) -> bool:
            found = self.get(thing, self.namespace)
            asked = found["metadata"].get("annotations", {}).get("reconcile.fluxcd.io/requestedAt")
            return bool(found.get("status", {}).get("lastHandledReconcileAt") == asked)

        return done(f"gitrepository/{OBJECT}") and done(self.pointer)

    def finished(self, commit: str) -> bool:
        return self.status().get("lastAppliedRevision") == f"main@sha1:{commit}" and self.healthy()

    def healthy(self) -> bool:
        """Return True if the newest generation is ready."""
        found = self.get(self.pointer, self.namespace)
        ready = [each for each in found.get("status", {}).get("conditions", ()) if each["type"] == "Ready"]
        generation = found["metadata"]["generation"]
        return [(each["status"], each.get("observedGeneration")) for each in ready] == [("True", generation)]

    def told(self) -> str:
        source = self.get(f"gitrepository/{OBJECT}", self.namespace).get("status", {})
        return f"{source.get('conditions')}\n{self.status().get('conditions')}"

    @contextlib.contextmanager
    def jobs(self, folder: Path) -> Iterator[dict[str, str]]:
        (folder / "states.yaml").write_text(_STATES)
        port = free_port()
        command = [build.program("kube-state-metrics"), f"--kubeconfig={self.where.kubeconfig}"]
        command += ["--custom-resource-state-only", f"--custom-resource-state-config-file={folder / 'states.yaml'}"]
        command += ["--host=127.0.0.1", f"--port={port}", f"--telemetry-port={free_port()}"]
        with (
            (folder / "states.log").open("w") as log,
            subprocess.Popen(command, stdout=log, stderr=log) as states,
            forwarded(self.where, self.namespace, "deployment/kustomize-controller", 8080) as address,
        ):
            try:
                yield {"nativelink-gitops": address, "nativelink-kube-state-metrics": f"127.0.0.1:{port}"}
            finally:
                states.kill()


class ArgoCD(Engine):
    kind, namespace = "argocd", "argocd"
    pointer = f"application.argoproj.io/{OBJECT}"
    suspension: ClassVar[Object] = {"syncPolicy": {"automated": {"enabled": False}}}
    fetched = f"application/{OBJECT} --for=jsonpath={{.status.sync.revision}}="
    variables: ClassVar[Object] = {"gitops_argocd_sync_timeout": SYNC_TIMEOUT}

    def ask(self) -> None:
        """Ask for a hard refresh. Argo CD 3.6.1 forgets a request that comes during one, so it is repeated."""
        key = "argocd.argoproj.io/refresh"

        def annotate() -> None:
            self.patch(self.pointer, {"metadata": {"annotations": {key: "hard"}}}, self.namespace)

        def looked() -> bool:
            found = self.get(self.pointer, self.namespace)
            if key in found["metadata"].get("annotations", {}):
                return False
            if found.get("status", {}).get("reconciledAt", "") >= asked:  # when the last refresh began
                return True
            annotate()
            return False

        asked = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        annotate()
        self.eventually("a refresh", looked, 30)

    def finished(self, commit: str) -> bool:
        sync, operation = (self.status().get(name, {}) for name in ("sync", "operationState"))
        if sync.get("revision") != commit or operation.get("phase") == "Running":
            return False
        # A commit that changes no object is not applied, nor is the revert of one that was refused.
        return sync["status"] == "Synced" or (
            operation.get("phase") == "Succeeded" and operation.get("syncResult", {}).get("revision") == commit
        )

    def healthy(self) -> bool:
        status = self.status()
        return [status.get(name, {}).get("status") for name in ("sync", "health")] == ["Synced", "Healthy"]

    def unread(self) -> bool:
        return any(each["type"] == "ComparisonError" for each in self.status().get("conditions", ()))

    def told(self) -> str:
        return str({name: each for name, each in self.status().items() if name not in ("history", "resources")})

    @contextlib.contextmanager
    def jobs(self, folder: Path) -> Iterator[dict[str, str]]:
        controller = "statefulset/argocd-application-controller"
        with forwarded(self.where, self.namespace, controller, 8082) as address:
            yield {"nativelink-gitops": address}


# The state of Flux's objects as Flux's documentation has kube-state-metrics tell it.
_STATES = """
kind: CustomResourceStateMetrics
spec:
  resources:
    - groupVersionKind: {group: kustomize.toolkit.fluxcd.io, version: v1, kind: Kustomization}
      metricNamePrefix: gotk
      metrics:
        - name: resource_info
          help: The state of an object of Flux.
          each: {type: Info, info: {labelsFromPath: {name: [metadata, name]}}}
          labelsFromPath:
            exported_namespace: [metadata, namespace]
            ready: [status, conditions, "[type=Ready]", status]
"""
ENGINES: dict[str, type[Engine]] = {each.kind: each for each in (Flux, ArgoCD)}


@contextlib.contextmanager
def engine(kind: str, folder: Path, *loaded: str, **variables: Any) -> Iterator[Engine]:
    """Bootstrap a cluster, push its first tree, and wait until it is applied. Load the images of more components."""
    made = ENGINES[kind]
    with cluster.fresh(f"e2e-{kind}", nodes=0, real=True) as where, pytest.MonkeyPatch.context() as patch:
        load_images(where, kind, *loaded)
        with GitServer(folder / "git", address_for(where), USER, PASSWORD) as server:
            patch.setenv("GITOPS_PASSWORD", PASSWORD)
            site = Site.make(folder / "checkout")
            stated = {
                **SMALL,
                **made.variables,
                "gitops_provider": kind,
                "gitops_repository": server.url,
                "gitops_username": USER,
                "gitops_password": "{{ lookup('env', 'GITOPS_PASSWORD') }}",
                "gitops_ca_file": str(server.ca),
                **variables,
            }
            site.add(NAME, where, **stated)
            said = site.playbook("bootstrap").summary[NAME]
            assert f"push clusters/{NAME} to main of {server.url}: {kind} applies it from there" in said
            found = made(where, site, server)
            assert found.names("statefulset", CAS) == set()
            found.applied(site.publish(server), 180)
            yield found
