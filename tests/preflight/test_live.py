"""The live checks, which ask the cluster. A cluster that does not answer fails them in time."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils.api import Api, ApiError
from ansible_collections.nativelink.gitops.plugins.plugin_utils.live import live_findings

from testbed import cluster
from testbed.cluster import Cluster
from testbed.waiting import patient
from tests.inventories import kubeconfig, minimal, write_inventory
from tests.playbooks import Run, run_playbook

TIMEOUT = 2


def values(kubeconfig: Path | str, context: str = "good", **more: Any) -> dict[str, Any]:
    return {
        "cluster": "prod",
        "cluster_kubeconfig": str(kubeconfig),
        "cluster_context": context,
        "preflight_api_timeout": TIMEOUT,
        "preflight_minimum_kubernetes": "1.31",
        "nativelink_namespace": "nativelink",
        "nativelink_workers_namespace": "nativelink-workers",
        "node_agent_guard": False,
        "node_agent_namespace": "nativelink-node-agent",
        "nativelink_mutual_tls_secret": "",
        "worker_certificates_create": False,
        "nativelink_cas_storage_class": "",
        "nativelink_redis_storage_class": "",
        "nativelink_redis_provider": "bundled",
        "nativelink_scheduler_backend": "redis",
        "nativelink_worker_pools": [{"name": "linux"}],
        "nativelink_worker_user_namespaces": False,
        "storage_classes_list": [{"name": "fast", "preset": "local-path"}],
        "gitops_provider": "none",
        **more,
    }


def lines(*arguments: Any, **more: Any) -> list[str]:
    """Return the faults, and check that they came in time. One more second is for the work."""
    start = time.monotonic()
    faults, notices = live_findings(values(*arguments, **more))
    assert time.monotonic() - start < patient(TIMEOUT + 1)
    assert notices == []
    return [str(fault) for fault in faults]


def test_no_kubeconfig() -> None:
    assert lines("/nowhere/kubeconfig") == [
        "prod: cluster_kubeconfig: /nowhere/kubeconfig does not exist; write the path of the cluster's kubeconfig"
    ]


def test_a_file_that_is_not_a_kubeconfig(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for text in ("contexts: [a]", "- a", "text", "a: [", "\x00"):
        file.write_text(text)
        assert lines(file) in (
            [f"prod: cluster_kubeconfig: {file} is not a kubeconfig; write the path of the cluster's kubeconfig"],
            [f"prod: cluster_context: {file} has no context good; write one that it has: none"],
        )
    assert lines(tmp_path) == [
        f"prod: cluster_kubeconfig: {tmp_path} cannot be read (Is a directory); "
        "write the path of the cluster's kubeconfig"
    ]


def test_no_such_context(tmp_path: Path) -> None:
    file = kubeconfig(tmp_path / "kubeconfig", "https://127.0.0.1:1")
    assert lines(file, "better") == [
        f"prod: cluster_context: {file} has no context better; write one that it has: good"
    ]


@pytest.mark.parametrize(
    ("part", "key"),
    [("cluster", "certificate-authority-data"), ("user", "client-certificate-data"), ("user", "client-key-data")],
)
def test_a_kubeconfig_with_damaged_certificates(tmp_path: Path, part: str, key: str) -> None:
    file = kubeconfig(tmp_path / "kubeconfig", "https://127.0.0.1:1")
    config = yaml.safe_load(file.read_text())
    config[f"{part}s"][0][part][key] = "QUJDR"
    file.write_text(yaml.safe_dump(config))

    assert lines(file) == [
        f"prod: cluster_context: {file}: context good has damaged certificates or keys: Invalid base64-encoded "
        "string: number of data characters (5) cannot be 1 more than a multiple of 4; correct this context in that file"
    ]


def silent(address: str) -> list[str]:
    return [
        f"prod: cluster_context: the API server {address} did not answer within 2 s; "
        "start it, check the network to it, or raise preflight_api_timeout"
    ]


@contextmanager
def server(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Accept connections on the yielded port, and leave each of them to `answer`."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=[connection], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


def say_nothing(connection: socket.socket) -> None:
    time.sleep(20)
    connection.close()


def dribble(connection: socket.socket) -> None:
    """Send an answer that never ends, and never pauses for as long as a timeout of the client."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(100):
        connection.sendall(b" ")
        time.sleep(0.2)


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_a_server_that_says_nothing(tmp_path: Path, scheme: str) -> None:
    with server(say_nothing) as port:
        address = f"{scheme}://127.0.0.1:{port}"
        assert lines(kubeconfig(tmp_path / "kubeconfig", address)) == silent(address)


def test_a_server_whose_answer_never_ends(tmp_path: Path) -> None:
    with server(dribble) as port:
        address = f"http://127.0.0.1:{port}"
        assert lines(kubeconfig(tmp_path / "kubeconfig", address)) == silent(address)


def with_plugin(file: Path, *command: str) -> Path:
    """Write a kubeconfig whose user logs in with the output of a command."""
    kubeconfig(file, "https://127.0.0.1:1")
    config = yaml.safe_load(file.read_text())
    plugin = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": command[0],
        "args": list(command[1:]),
        "interactiveMode": "Never",
    }
    config["users"] = [{"name": "good", "user": {"exec": plugin}}]
    file.write_text(yaml.safe_dump(config))
    return file


def test_a_credential_plugin_that_hangs(tmp_path: Path) -> None:
    assert lines(with_plugin(tmp_path / "kubeconfig", "sleep", "20")) == silent("https://127.0.0.1:1")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["sh", "-c", "echo 'the session expired' >&2; exit 7"], "exec: process returned 7. the session expired"),
        (["sh", "-c", "echo Signed in."], "exec: failed to decode process output: Expecting value: line 1 column 1"),
        (["echo", "[]"], "exec: malformed response. missing key 'apiVersion'"),
        (["/nowhere/plugin"], "[Errno 2] No such file or directory: '/nowhere/plugin'"),
    ],
)
def test_a_credential_plugin_that_fails(tmp_path: Path, command: list[str], said: str) -> None:
    file = with_plugin(tmp_path / "kubeconfig", *command)
    (line,) = lines(file)
    assert line.startswith(f"prod: cluster_context: the credential plugin of context good in {file} failed: {said}")
    assert line.endswith("; run its command by hand, correct it or sign in, then run again")


def test_a_credential_plugin_that_works(tmp_path: Path) -> None:
    """With a plugin that works, the check asks the API server, which does not run. This is the counter-run."""
    credential = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "t"},
    }
    (line,) = lines(with_plugin(tmp_path / "kubeconfig", "echo", json.dumps(credential)))
    assert line.startswith("prod: cluster_context: the API server https://127.0.0.1:1 does not answer (")


def answering(status: str, body: str, *headers: str) -> Callable[[socket.socket], None]:
    """Return a function that answers each request in this way."""
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", body]

    def answer(connection: socket.socket) -> None:
        connection.recv(10_000)
        connection.sendall("\r\n".join(head).encode())
        connection.close()

    return answer


NOT_KUBERNETES = (
    "which is not a Kubernetes API server's answer; correct the server of this context in its kubeconfig, "
    "or sign in to the network or proxy that answers in its place"
)
UNHEALTHY = "see that the API server and what is in front of it work, then run again"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            answering("200 OK", "<!DOCTYPE html><html><head><title>\nSign in &amp; surf</title></head></html>"),
            f'200 and the HTML page "Sign in & surf", {NOT_KUBERNETES}',
        ),
        (answering("200 OK", "<html></html>"), f"200 and an HTML page, {NOT_KUBERNETES}"),
        (answering("200 OK", '"v1.36"'), f'200 and the text "\\"v1.36\\"", {NOT_KUBERNETES}'),
        (answering("200 OK", "[]"), f'200 and the text "[]", {NOT_KUBERNETES}'),
        (answering("200 OK", '{"status": "ok"}'), f'200 and the text "{{\\"status\\": \\"ok\\"}}", {NOT_KUBERNETES}'),
        (answering("200 OK", ""), f"200 and an empty body, {NOT_KUBERNETES}"),
        (answering("404 Not Found", "<html></html>"), f"404 and an HTML page, {NOT_KUBERNETES}"),
        (
            answering("302 Found", "", "Location: https://login.example.com/?next=secret"),
            f"302 and a redirect to https://login.example.com/, {NOT_KUBERNETES}",
        ),
        (answering("500 Oops", "Out of order"), f'500 and the text "Out of order"; {UNHEALTHY}'),
        (answering("503 Service Unavailable", "<html></html>"), f"503 and an HTML page; {UNHEALTHY}"),
    ],
)
def test_a_server_that_is_not_kubernetes(tmp_path: Path, answer: Callable[[socket.socket], None], said: str) -> None:
    with server(answer) as port:
        address = f"http://127.0.0.1:{port}"
        assert lines(kubeconfig(tmp_path / "kubeconfig", address)) == [
            f"prod: cluster_context: {address} answers GET /version with {said}"
        ]


def test_a_server_of_an_unknown_version(tmp_path: Path) -> None:
    with server(answering("200 OK", '{"gitVersion": "latest"}')) as port:
        address = f"http://127.0.0.1:{port}"
        (line,) = lines(kubeconfig(tmp_path / "kubeconfig", address))
        assert line.startswith(f"prod: cluster_context: {address} does not tell a Kubernetes version at /version")


def test_a_server_that_speaks_no_tls(tmp_path: Path) -> None:
    with server(answering("200 OK", "{}")) as port:
        address = f"https://127.0.0.1:{port}"
        (line,) = lines(kubeconfig(tmp_path / "kubeconfig", address))
        assert line.startswith(f"prod: cluster_context: the API server {address} does not answer ([SSL")


def test_a_server_that_hangs_up(tmp_path: Path) -> None:
    with server(lambda connection: connection.close()) as port:
        address = f"http://127.0.0.1:{port}"
        (line,) = lines(kubeconfig(tmp_path / "kubeconfig", address), preflight_api_timeout="10")
        assert line.startswith(f"prod: cluster_context: the API server {address} does not answer (")
        assert line.endswith("; start the cluster, or correct its kubeconfig")


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    assert lines(kubeconfig(tmp_path / "kubeconfig", "https://127.0.0.1:1")) == [
        "prod: cluster_context: the API server https://127.0.0.1:1 does not answer ([Errno 111] Connection refused); "
        "start the cluster, or correct its kubeconfig"
    ]


def test_without_the_kubernetes_package(tmp_path: Path) -> None:
    (tmp_path / "kubernetes.py").write_text("raise ImportError(name='kubernetes')")
    file = write_inventory(tmp_path, {"prod": minimal("prod", tmp_path)})

    run = run_playbook("validate", file, PYTHONPATH=str(tmp_path))

    assert run.status == 2
    assert "prod: Python: the package kubernetes is missing; install it for " in run.output


# On a real API server ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> Iterator[Cluster]:
    with cluster.fresh("preflight") as running:
        yield running


def test_a_sound_cluster(real: Cluster) -> None:
    assert lines(real.kubeconfig, real.context) == []


def test_a_cluster_that_is_too_old(real: Cluster) -> None:
    (line,) = lines(real.kubeconfig, real.context, preflight_minimum_kubernetes="1.99")
    assert line.startswith("prod: cluster_context: the cluster runs Kubernetes v1.")
    assert line.endswith(", older than 1.99; upgrade it")


def test_classes_that_do_not_exist(real: Cluster) -> None:
    found = lines(
        real.kubeconfig,
        real.context,
        nativelink_redis_storage_class="fast",
        nativelink_worker_pools=[{"name": "linux", "scratch_storage_class": "io2"}],
        storage_classes_list=[{"name": "fast", "preset": "local-path"}, {"name": "gp3", "preset": "existing"}],
    )
    assert found == [
        "prod: nativelink_worker_pools[linux].scratch_storage_class: the cluster has no StorageClass io2; "
        "name one that it has (none), or list it in storage_classes_list",
        "prod: storage_classes_list[gp3].name: the cluster has no StorageClass gp3; "
        "name one that it has (none), or give it a preset that makes it",
    ]


def test_a_user_who_may_not_create_namespaces(real: Cluster, tmp_path: Path) -> None:
    token = real.run("create", "token", "default", "--namespace", "default").strip()
    file = real.kubeconfig_of(token, tmp_path / "kubeconfig")

    assert lines(file, real.context, nativelink_cas_storage_class="gp3", storage_classes_list=[]) == [
        "prod: cluster_context: GET /apis/storage.k8s.io/v1/storageclasses: 403 storageclasses.storage.k8s.io "
        'is forbidden: User "system:serviceaccount:default:default" cannot list resource "storageclasses" '
        'in API group "storage.k8s.io" at the cluster scope; '
        "correct the credentials of this context, or let its user do that"
    ]
    *others, agent = [
        f"prod: {variable}: this user can neither find nor create the namespace {name}; "
        "create it, or let the user of cluster_context create namespaces"
        for variable, name in (
            ("nativelink_namespace", "nativelink"),
            ("nativelink_workers_namespace", "nativelink-workers"),
            ("node_agent_namespace", "nativelink-node-agent"),
        )
    ]
    assert lines(file, real.context) == others
    for switch in ("node_agent_guard", "node_agent_low_latency"):
        assert lines(file, real.context, **{switch: True}) == [*others, agent]


NO_NODE = "nativelink_worker_user_namespaces: is true, but no node that pool {} may use"
UNSUPPORTED = (
    f"prod: {NO_NODE} supports user namespaces; use nodes with containerd 2.0 and Linux 6.3, or newer, or write false"
)
UNKNOWN = (
    f"{NO_NODE} tells whether it supports user namespaces; check that it has containerd 2.0 and Linux 6.3, or newer"
)


def test_user_namespaces_that_no_node_supports(real: Cluster, tmp_path: Path) -> None:
    def report(number: int, *handlers: tuple[str, bool]) -> None:
        """Have a node report its container runtimes as the kubelet does."""
        features = [{"name": name, "features": {"userNamespaces": supported}} for name, supported in handlers]
        patch = json.dumps({"status": {"runtimeHandlers": features}})
        real.run("patch", "node", f"node-{number}", "--subresource=status", "--type=merge", "-p", patch)

    def said(kubeconfig: Path = real.kubeconfig, **more: Any) -> tuple[list[str], list[str]]:
        on = {"nativelink_worker_user_namespaces": True, **more}
        faults, notices = live_findings(values(kubeconfig, real.context, **on))
        return [str(fault) for fault in faults if "namespaces" in fault.variable], notices

    def on_node(number: int) -> dict[str, Any]:
        selector = {"kubernetes.io/hostname": f"node-{number}"}
        return {"name": f"on-{number}", "node_selector": selector}

    assert said() == ([], [UNKNOWN.format("linux")])
    # Only the default runtime counts.
    report(1, ("", False), ("other", True))
    report(2, ("other", True))
    assert said() == ([UNSUPPORTED.format("linux")], [])
    report(3, ("", True))
    assert said() == ([], [])
    pools = [*map(on_node, (1, 2, 3)), {"name": "spot", "spot": "gke"}]
    unknown = [UNKNOWN.format("on-2"), UNKNOWN.format("spot")]
    assert said(nativelink_worker_pools=pools) == ([UNSUPPORTED.format("on-1")], unknown)

    token = real.run("create", "token", "default", "--namespace", "default").strip()
    assert said(real.kubeconfig_of(token, tmp_path / "kubeconfig")) == ([], [UNKNOWN.format("linux")])


def test_a_user_whom_the_server_does_not_know(real: Cluster, tmp_path: Path) -> None:
    file = real.kubeconfig_of("nonsense", tmp_path / "kubeconfig")
    assert lines(file, real.context) == [
        "prod: cluster_context: GET /version: 401 Unauthorized; "
        "correct the credentials of this context, or let its user do that"
    ]


def test_a_server_of_another_authority(real: Cluster, tmp_path: Path) -> None:
    file = kubeconfig(tmp_path / "kubeconfig", real.endpoint)
    (line,) = lines(file)
    assert line.startswith(f"prod: cluster_context: the API server {real.endpoint} does not answer (")
    assert "certificate" in line


def test_what_a_silent_server_delays_is_asked_again(real: Cluster) -> None:
    """A request lasts a second here, and the server is silent for longer. What creates an object is sent once."""
    api = Api(str(real.kubeconfig), real.context, timeout=1)
    wanted = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "patient", "namespace": "default"}}
    api.apply(wanted, "test")

    def while_silent(request: Callable[[], object]) -> object:
        end = threading.Timer(1.5, real.resume)
        real.pause()
        end.start()
        try:
            return request()
        finally:
            end.cancel()
            real.resume()

    while_silent(lambda: api.apply({**wanted, "data": {"asked": "again"}}, "test"))
    assert (api.live(wanted) or {})["data"] == {"asked": "again"}
    another = {**wanted, "metadata": {"name": "hasty", "namespace": "default"}}
    with pytest.raises(ApiError, match="does not answer"):
        while_silent(lambda: api.create(another, "test"))


def test_a_paused_server_stops_only_its_own_cluster(real: Cluster, tmp_path: Path) -> None:
    def run(timeout: int) -> Run:
        own = {
            "cluster_kubeconfig": str(real.kubeconfig),
            "cluster_context": real.context,
            "preflight_api_timeout": timeout,
        }
        hosts = {"real": {**minimal("real", tmp_path), "nativelink_cas_storage_class": "", **own}}
        hosts["real"]["storage_classes_list"] = [{"name": "fast", "preset": "local-path"}]
        hosts["real"]["nativelink_worker_user_namespaces"] = True
        hosts["real"]["nativelink_worker_pools"] = [{"name": "linux", "node_selector": {"no": "node"}}]
        hosts["gone"] = minimal("gone", tmp_path)
        return run_playbook("validate", write_inventory(tmp_path, hosts))

    start = time.monotonic()
    calm = run(20)
    took = time.monotonic() - start
    assert calm.status == 2
    assert "gone: cluster_kubeconfig: /nowhere/gone does not exist" in calm.output
    assert "real: cluster_" not in calm.output
    assert f"{NO_NODE.format('linux')} tells whether" in calm.output

    real.pause()
    try:
        start = time.monotonic()
        paused = run(TIMEOUT)
        # A busy machine needs longer for both runs, and a server that is asked without a limit for ever.
        assert time.monotonic() - start < 2 * took + 5 * TIMEOUT
    finally:
        real.resume()
    assert f"real: cluster_context: the API server {real.endpoint} did not answer within 2 s" in paused.output


def test_missing_credentials_of_the_repository_are_named(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("")
    credentials = {
        "gitops_username": "bot",
        "gitops_password": "",
        "gitops_ssh_private_key_file": str(tmp_path / "key"),
        "gitops_known_hosts_file": "/nowhere/known_hosts",
        "gitops_ca_file": "",
    }

    def said(provider: str) -> list[str]:
        faults, _ = live_findings(values("/nowhere/kubeconfig", **{**credentials, "gitops_provider": provider}))
        return [str(fault) for fault in faults if fault.variable.startswith("gitops_")]

    assert said("flux") == [
        "prod: gitops_known_hosts_file: the file /nowhere/known_hosts does not exist; "
        "write the path of a file on this machine",
        "prod: gitops_password: is empty, and gitops_username is set; "
        "set it, or the environment variable that it reads",
    ]
    assert said("none") == []
