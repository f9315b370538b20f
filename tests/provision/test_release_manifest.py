"""The action release_manifest installs a small release on a real API server. Each story shows one of its rules."""

import hashlib
import inspect
import socket
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils import specs

from testbed.cluster import Cluster
from testbed.waiting import until
from testkit.servers import served, server

from .conftest import Object, Play, Run

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
ARGUMENTS = ("version", "namespace", "source", "sha256", "timeout")
INSTALL = {
    "nativelink.gitops.release_manifest": {
        **{"name": "app", "prefix": "keda", "existing": "keda_install: existing"},
        **{name: f"{{{{ {name} | default(omit) }}}}" for name in ARGUMENTS},
    }
}


@dataclass(frozen=True)
class App:
    """A small release in a namespace of its own: ``app("1.0.0", JOB, timeout=3)`` are the arguments that install it."""

    name: str
    dev: Cluster
    folder: Path

    def __call__(self, version: str, more: str = "", **arguments: object) -> Object:
        file = self.folder / f"{self.name}-{version}.yaml"
        file.write_text((DEPLOYMENT + more).format(namespace=self.name, version=version))
        return {"version": version, "namespace": self.name, "source": str(file), **arguments}

    def run(self, *arguments: str, stdin: str | None = None) -> str:
        return self.dev.run("-n", self.name, *arguments, stdin=stdin)

    def get(self, what: str, path: str = "{.metadata.name}") -> str:
        """Return a field of an object, or nothing if there is no such object."""
        return self.run("get", *what.split("/"), "--ignore-not-found", "-o", f"jsonpath={path}")

    @property
    def image(self) -> str:
        return self.get("deployment/app", "{.spec.template.spec.containers[0].image}")


# A story yields what is to be installed and gets the run that did it, and so on. All stories go on side by side: the
# first step of each is one run of ansible-playbook, in which each story is a host, and so is the second.

Story = Generator[Object, Run, None]


def another_checksum_is_refused(app: App) -> Story:
    wrong = app("1.0.0", sha256="0" * 64)
    found = hashlib.sha256(Path(wrong["source"]).read_bytes()).hexdigest()
    assert (yield wrong).message == (
        f"{app.name}: keda_manifest_sha256: the manifest of version 1.0.0 has {found}, not {'0' * 64}; "
        "nothing was applied: find out why it differs, or write the checksum of the copy that you have changed"
    )
    assert app.get(f"namespace/{app.name}") == ""
    assert not (yield app("1.0.0", sha256=found.upper())).failed


def the_checksum_of_the_default_version_checks_no_other(app: App) -> Story:
    version, known = (specs.written()[f"keda_{what}"] for what in ("version", "manifest_sha256"))
    assert (yield app(version, sha256=known)).message.startswith(f"{app.name}: keda_manifest_sha256: the manifest of ")
    assert not (yield app("1.0.0", sha256=known)).failed


def a_manifest_of_another_version_is_refused(app: App) -> Story:
    other = app("2.19.0")["source"]
    assert (yield app("2.21.0", source=other)).message == (
        f"{app.name}: keda_manifest: {other} is the manifest of version 2.19.0, but keda_version is 2.21.0; "
        "set keda_version to 2.19.0, or name the manifest of version 2.21.0 in keda_manifest"
    )
    assert app.get(f"namespace/{app.name}") == ""
    # The counter-runs: the version that the manifest states, and a manifest that does not state one.
    assert not (yield app("v2.19.0", source=other)).failed
    silent = app.folder / "silent.yaml"
    silent.write_text(Path(other).read_text().replace("app:2.19.0", "app@sha256:0"))
    assert not (yield app("2.21.0", source=str(silent))).failed


def jobs_of_an_unchanged_version_do_not_run_again(app: App) -> Story:
    assert not (yield app("1.0.0", JOB)).failed
    assert app.get("job/setup")
    app.run("delete", "job", "setup")  # as ttlSecondsAfterFinished does
    again = yield app("1.0.0", JOB)
    assert (again.failed, again.changed) == (False, [])
    assert app.get("job/setup") == ""
    assert not (yield app("1.1.0", JOB)).failed
    assert not (yield app("1.2.0", JOB)).failed  # a Job with another template exists
    assert app.get("job/setup", "{.spec.template.spec.containers[0].image}") == "setup:1.2.0"


def a_failed_wait_says_what_it_waited_for(app: App) -> Story:
    app.dev.never_ready(app.name)
    message = (yield app("1.0.0", timeout=20)).message
    what, _, rest = message.partition(" to be available: ")
    reason, _, remedy = rest.partition("; ")
    assert what == f"{app.name}: keda_version: waited 20 s for Deployment {app.name}/app"
    assert reason.startswith(("pod app-", "0 of 1 pods are up to date and ready"))
    assert remedy == (
        "fix that, or correct keda_version or keda_manifest, and run again; "
        "raise keda_wait_timeout if it only needs more time"
    )
    assert app.get("configmap/app-release", "{.data.complete}") == "false"
    app.dev.never_ready(app.name, on=False)
    assert not (yield app("1.0.0")).failed
    assert app.get("configmap/app-release", "{.data.complete}") == "true"


def an_installation_of_another_manager_is_left_alone(app: App) -> Story:
    app.dev.run("create", "namespace", app.name)
    foreign = DEPLOYMENT.format(namespace=app.name, version="foreign")
    app.run("apply", "--server-side", "--field-manager=helm", "-f", "-", stdin=foreign)
    assert (yield app("1.0.0")).message == (
        f"{app.name}: keda_install: Deployment {app.name}/app was installed by another manager: helm; "
        "nothing was applied: set keda_install: existing to use that installation, or remove it first"
    )
    assert app.image == "app:foreign"
    assert app.get("configmap/app-release") == ""


def a_field_that_another_manager_took_is_not_taken_back(app: App) -> Story:
    assert not (yield app("1.0.0")).failed
    app.run("set", "image", "deployment/app", "app=app:fixed", "--field-manager=another-tool")
    message = (yield app("1.0.0")).message
    assert f'Deployment {app.name}/app: Apply failed with 1 conflict: conflict with "another-tool"' in message
    assert "set keda_install: existing" in message
    assert app.image == "app:fixed"


def an_object_that_was_removed_is_put_back(app: App) -> Story:
    assert not (yield app("1.0.0")).failed
    app.run("delete", "deployment", "app")
    assert (yield app("1.0.0")).summary["provisioned"] == ["app 1.0.0: repaired"]
    assert app.image == "app:1.0.0"


def changed_fields_are_put_back_and_added_fields_stay(app: App) -> Story:
    settings = "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: settings}}\ndata: {{ours: wanted}}\n"
    assert not (yield app("1.0.0", settings)).failed
    patch = '[{"op": "remove", "path": "/data/ours"}, {"op": "add", "path": "/data/theirs", "value": "too"}]'
    app.run("patch", "configmap", "settings", "--type=json", "-p", patch)
    assert (yield app("1.0.0", settings)).summary["provisioned"] == ["app 1.0.0: repaired"]
    assert app.get("configmap/settings", "{.data.ours} {.data.theirs}") == "wanted too"
    assert (yield app("1.0.0", settings)).summary["provisioned"] == ["app 1.0.0: unchanged"]


def objects_that_a_new_version_lacks_are_named(app: App) -> Story:
    account = "\n---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{{{name: {}}}}}\n"
    assert not (yield app("1.0.0", account.format("old"))).failed
    app.dev.never_ready(app.name)
    assert (yield app("1.1.0", account.format("between"), timeout=3)).failed  # a failed run forgets nothing
    app.dev.never_ready(app.name, on=False)
    named = ", ".join(f"ServiceAccount {app.name}/{name}" for name in ("between", "old"))
    assert (yield app("1.2.0")).summary["next"] == [f"app 1.2.0: removed upstream, left in the cluster: {named}"]
    assert app.get("serviceaccount/old")
    assert "next" not in (yield app("1.2.0")).summary


def a_manifest_comes_from_an_address(app: App) -> Story:
    def unread(problem: str) -> str:
        return (
            f"{app.name}: keda_manifest: {problem}; "
            "check keda_version, or name a mirror or a local file in keda_manifest"
        )

    def end_early(connection: socket.socket) -> None:
        connection.recv(10_000)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\napiVersion: v1")
        connection.close()

    with served(app.folder) as files, server(end_early) as port:
        file = Path(app("1.0.0")["source"]).name
        assert not (yield app("1.0.0", source=f"http://{files}/{file}")).failed
        missing = yield app("1.0.0", source=f"http://{files}/app-9.yaml")
        assert missing.message == unread(f"http://{files}/app-9.yaml cannot be read: HTTP Error 404: File not found")
        short = yield app("1.0.0", source=f"http://127.0.0.1:{port}/short.yaml")
        cut = f"http://127.0.0.1:{port}/short.yaml cannot be read: IncompleteRead(14 bytes read, 86 more expected)"
        assert short.message == unread(cut)


STORIES = {name.replace("_", "-"): tell for name, tell in [*globals().items()] if inspect.isgeneratorfunction(tell)}


@pytest.fixture(scope="module")
def told(play: Play, dev: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exception | None]:
    """Return how each story ended: with an error, or well."""
    ended: dict[str, Exception | None] = {}
    going = {name: tell(App(name, dev, tmp_path_factory.mktemp(name))) for name, tell in STORIES.items()}
    wanted = {name: next(story) for name, story in going.items()}
    while wanted:
        runs = play.cases([INSTALL], **wanted)
        wanted = {}
        for name, run in runs.items():
            try:
                wanted[name] = going[name].send(run)
            except StopIteration:
                ended[name] = None
            except Exception as error:
                ended[name] = error
    return ended


@pytest.mark.parametrize("name", STORIES)
def test_story(name: str, told: dict[str, Exception | None]) -> None:
    if error := told[name]:
        raise error


Waiting = tuple[App, Future[Run]]


@pytest.fixture
def waiting(request: pytest.FixtureRequest, play: Play, dev: Cluster, tmp_path: Path) -> Iterator[Waiting]:
    """Start a run that waits for pods, which do not get ready, for as many seconds as the parameter says."""
    app = App(f"waiting-{request.param}", dev, tmp_path)
    dev.never_ready(app.name)
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(lambda: play.cases([INSTALL], dev=app("1.0.0", timeout=request.param))["dev"])
        until("the pod", lambda: app.run("get", "pods", "-l", "app=app", "-o", "name") != "", 60)
        yield app, run


@pytest.mark.parametrize("waiting", [300], indirect=True)
def test_a_wait_outlasts_a_restart_of_the_api_server(waiting: Waiting, dev: Cluster) -> None:
    app, run = waiting
    dev.stop_api()
    dev.start_api()
    dev.never_ready(app.name, on=False)
    assert run.result().summary["provisioned"] == ["app 1.0.0: installed"]


# This test is the last, because controllers take up to a minute to see that the API server is back.


@pytest.mark.parametrize("waiting", [20], indirect=True)
def test_a_wait_without_an_api_server_ends_and_says_what_it_waited_for(waiting: Waiting, dev: Cluster) -> None:
    app, run = waiting
    dev.stop_api()
    try:
        message = run.result().message
    finally:
        dev.start_api()
    assert message == (
        f"dev: cluster_context: Task: waited 20 s for Deployment {app.name}/app to be available: the API server "
        f"{dev.endpoint} does not answer ([Errno 111] Connection refused); start the cluster, or correct its kubeconfig"
    )
