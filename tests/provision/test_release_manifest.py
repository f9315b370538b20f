"""The action release_manifest installs a small release on a real API server. Each test shows one of its rules."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed.cluster import Cluster
from testbed.waiting import until

from .conftest import Live, Object, Play, Run

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {{name: app, namespace: {namespace}}}
spec:
  selector: {{matchLabels: {{app: app}}}}
  template:
    metadata: {{labels: {{app: app}}}}
    spec: {{containers: [{{name: app, image: "app:{version}"}}]}}
"""
JOB = """
---
apiVersion: batch/v1
kind: Job
metadata: {{name: setup, namespace: {namespace}}}
spec:
  template:
    spec: {{restartPolicy: Never, containers: [{{name: setup, image: "setup:{version}"}}]}}
"""


@dataclass(frozen=True)
class Release:
    """A small release in a namespace of its own: ``release("1.0.0", JOB, timeout=3)`` is the task that installs it."""

    namespace: str
    folder: Path

    def __call__(self, version: str, more: str = "", **arguments: object) -> Object:
        file = self.folder / f"app-{version}.yaml"
        file.write_text((DEPLOYMENT + more).format(namespace=self.namespace, version=version))
        given = {"name": "app", "version": version, "namespace": self.namespace, "source": [str(file)]}
        return {"release_manifest": {**given, "prefix": "keda", "existing": "keda_install: existing", **arguments}}


@pytest.fixture
def release(request: pytest.FixtureRequest, tmp_path: Path) -> Release:
    return Release(request.node.originalname.removeprefix("test_").replace("_", "-")[:40].strip("-"), tmp_path)


def test_another_checksum_is_refused(play: Play, release: Release, live: Live, tmp_path: Path) -> None:
    task = release("1.0.0", sha256="0" * 64)
    found = hashlib.sha256((tmp_path / "app-1.0.0.yaml").read_bytes()).hexdigest()
    run = play([task])
    assert run.message == (
        f"dev: keda_manifest_sha256: the manifest of version 1.0.0 has {found}, not {'0' * 64}; "
        "nothing was applied: find out why the checksum differs before you correct it"
    )
    assert live("namespace", release.namespace) == {}
    assert play([release("1.0.0", sha256=found.upper())]).status == 0


def test_a_manifest_of_another_version_is_refused(play: Play, release: Release, live: Live, tmp_path: Path) -> None:
    release("2.19.0")
    other, silent = tmp_path / "app-2.19.0.yaml", tmp_path / "silent.yaml"
    silent.write_text(other.read_text().replace("app:2.19.0", "app@sha256:0"))
    run = play([release("2.21.0", source=[str(other)])])
    assert run.message == (
        f"dev: keda_manifest: {other} is the manifest of version 2.19.0, but keda_version is 2.21.0; "
        "set keda_version to 2.19.0, or name the manifest of version 2.21.0 in keda_manifest"
    )
    assert live("namespace", release.namespace) == {}
    # The counter-runs: the version that the manifest states, and a manifest that does not state one.
    assert play([release("v2.19.0", source=[str(other)])]).status == 0
    assert play([release("2.21.0", source=[str(silent)])]).status == 0


def test_jobs_of_an_unchanged_version_do_not_run_again(play: Play, release: Release, live: Live, dev: Cluster) -> None:
    assert play([release("1.0.0", JOB)]).status == 0
    assert live("job", "setup", release.namespace)
    dev.run("delete", "job", "setup", "-n", release.namespace)  # as ttlSecondsAfterFinished does
    again = play([release("1.0.0", JOB)])
    assert (again.status, again.changed) == (0, [])
    assert live("job", "setup", release.namespace) == {}

    assert play([release("1.1.0", JOB)]).status == 0
    assert play([release("1.2.0", JOB)]).status == 0  # a Job with another template exists
    template = live("job", "setup", release.namespace)["spec"]["template"]["spec"]
    assert template["containers"][0]["image"] == "setup:1.2.0"


def test_a_failed_wait_says_what_it_waited_for(play: Play, release: Release, live: Live, dev: Cluster) -> None:
    namespace = release.namespace
    dev.never_ready(namespace)
    run = play([release("1.0.0", timeout=3)])
    assert run.message.startswith(f"dev: keda_version: waited 3 s for Deployment {namespace}/app to be available: ")
    assert run.message.endswith(
        "; fix that, or correct keda_version or keda_manifest, and run again; "
        "raise keda_wait_timeout if it only needs more time"
    )
    reason = run.message.partition("to be available: ")[2].partition(";")[0]
    assert reason.startswith(("pod app-", "0 of 1 pods are up to date and ready"))
    assert live("configmap", "app-release", namespace)["data"]["complete"] == "false"

    dev.never_ready(namespace, on=False)
    assert play([release("1.0.0")]).status == 0
    assert live("configmap", "app-release", namespace)["data"]["complete"] == "true"


@dataclass(frozen=True)
class Waiting:
    """A run that waits for the pods of a release, which do not become ready."""

    dev: Cluster
    namespace: str
    run: Future[Run]


@pytest.fixture
def waiting(request: pytest.FixtureRequest, play: Play, release: Release, dev: Cluster) -> Iterator[Waiting]:
    """Start a run that waits for as many seconds as the parameter says."""
    dev.never_ready(release.namespace)
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(play, [release("1.0.0", timeout=request.param)])
        until(
            "the pod", lambda: bool(dev.run("-n", release.namespace, "get", "pods", "-l", "app=app", "-o", "name")), 60
        )
        yield Waiting(dev, release.namespace, run)


@pytest.mark.parametrize("waiting", [300], indirect=True)
def test_a_wait_outlasts_a_restart_of_the_api_server(waiting: Waiting) -> None:
    waiting.dev.stop_api()
    waiting.dev.start_api()
    waiting.dev.never_ready(waiting.namespace, on=False)
    run = waiting.run.result()
    assert run.status == 0, run.message
    assert run.summary["provisioned"] == ["app 1.0.0: installed"]


def test_an_installation_of_another_manager_is_left_alone(
    play: Play, release: Release, live: Live, dev: Cluster
) -> None:
    namespace = release.namespace
    release("1.0.0")
    foreign = DEPLOYMENT.format(namespace=namespace, version="foreign")
    dev.run("create", "namespace", namespace)
    dev.run("apply", "--server-side", "--field-manager=helm", "-f", "-", stdin=foreign)
    run = play([release("1.0.0")])
    assert run.message == (
        f"dev: keda_install: Deployment {namespace}/app was installed by another manager: helm; "
        "nothing was applied: set keda_install: existing to use that installation, or remove it first"
    )
    container = live("deployment", "app", namespace)["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "app:foreign"
    assert live("configmap", "app-release", namespace) == {}


def test_a_field_that_another_manager_took_is_not_taken_back(
    play: Play, release: Release, live: Live, dev: Cluster
) -> None:
    namespace = release.namespace
    assert play([release("1.0.0")]).status == 0
    dev.run("set", "image", "deployment/app", "app=app:fixed", "-n", namespace, "--field-manager=another-tool")
    run = play([release("1.0.0")])
    assert run.status != 0
    assert f'Deployment {namespace}/app: Apply failed with 1 conflict: conflict with "another-tool"' in run.message
    assert "set keda_install: existing" in run.message
    container = live("deployment", "app", namespace)["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "app:fixed"


def test_an_object_that_was_removed_is_put_back(play: Play, release: Release, live: Live, dev: Cluster) -> None:
    assert play([release("1.0.0")]).status == 0
    dev.run("delete", "deployment", "app", "-n", release.namespace)
    run = play([release("1.0.0")])
    assert run.summary["provisioned"] == ["app 1.0.0: repaired"]
    assert live("deployment", "app", release.namespace)


def test_changed_fields_are_put_back_and_added_fields_stay(
    play: Play, release: Release, live: Live, dev: Cluster
) -> None:
    settings = "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: settings}}\ndata: {{ours: wanted}}\n"
    assert play([release("1.0.0", settings)]).status == 0
    patch = '[{"op": "remove", "path": "/data/ours"}, {"op": "add", "path": "/data/theirs", "value": "too"}]'
    dev.run("-n", release.namespace, "patch", "configmap", "settings", "--type=json", "-p", patch)
    repaired = play([release("1.0.0", settings)])
    assert repaired.summary["provisioned"] == ["app 1.0.0: repaired"]
    assert live("configmap", "settings", release.namespace)["data"] == {"ours": "wanted", "theirs": "too"}
    assert play([release("1.0.0", settings)]).summary["provisioned"] == ["app 1.0.0: unchanged"]


def test_objects_that_a_new_version_lacks_are_named(play: Play, release: Release, live: Live, dev: Cluster) -> None:
    account = "\n---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{{{name: {}}}}}\n"
    assert play([release("1.0.0", account.format("old"))]).status == 0
    dev.never_ready(release.namespace)
    assert play([release("1.1.0", account.format("between"), timeout=3)]).status != 0  # a failed run forgets nothing
    dev.never_ready(release.namespace, on=False)
    run = play([release("1.2.0")])
    named = ", ".join(f"ServiceAccount {release.namespace}/{name}" for name in ("between", "old"))
    assert run.summary["next"] == [f"app 1.2.0: removed upstream, left in the cluster: {named}"]
    assert live("serviceaccount", "old", release.namespace)
    assert "next" not in play([release("1.2.0")]).summary


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """Return the address of a web server for this test's folder. Its short.yaml ends too early."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if self.path != "/short.yaml":
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"apiVersion: v1")  # and closes the connection
            return None

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_manifest_comes_from_an_address(play: Play, release: Release, site: str) -> None:
    release("1.0.0")
    assert play([release("1.0.0", source=[f"{site}/app-1.0.0.yaml"])]).status == 0
    missing = play([release("1.0.0", source=[f"{site}/app-9.yaml"])])
    assert missing.message == (
        f"dev: keda_manifest: {site}/app-9.yaml cannot be read: HTTP Error 404: File not found; "
        "check keda_version, or name a mirror or a local file in keda_manifest"
    )


def test_a_manifest_that_ends_too_early_is_refused(play: Play, release: Release, site: str) -> None:
    run = play([release("1.0.0", source=[f"{site}/short.yaml"])])
    assert run.message == (
        f"dev: keda_manifest: {site}/short.yaml cannot be read: IncompleteRead(14 bytes read, 86 more expected); "
        "check keda_version, or name a mirror or a local file in keda_manifest"
    )


# This test is the last, because controllers take up to a minute to see that the API server is back.


@pytest.mark.parametrize("waiting", [20], indirect=True)
def test_a_wait_without_an_api_server_ends_and_says_what_it_waited_for(waiting: Waiting) -> None:
    waiting.dev.stop_api()
    try:
        message = waiting.run.result().message
    finally:
        waiting.dev.start_api()
    what = f"Task: waited 20 s for Deployment {waiting.namespace}/app to be available"
    assert message == (
        f"dev: cluster_context: {what}: the API server {waiting.dev.endpoint} does not answer "
        "([Errno 111] Connection refused); start the cluster, or correct its kubeconfig"
    )
