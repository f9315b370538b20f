"""The live checks, which ask the cluster. A cluster that does not answer fails them in time."""

import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils.api import Api, ApiError
from ansible_collections.nativelink.gitops.plugins.plugin_utils.live import live_findings

from testbed.cluster import Cluster
from testkit.inventories import CONTEXT, kubeconfig, minimal, write_inventory
from testkit.playbooks import run_playbook
from testkit.servers import answering, server
from testkit.trees import values_of

# Seconds: what is expected to answer may take long on a busy machine, and what does not stays silent for longer.
PATIENT, SHORT = 60, 2


def values(kubeconfig: Path | str, context: str = "good", **more: Any) -> dict[str, Any]:
    stated = {
        "cluster_kubeconfig": str(kubeconfig),
        "cluster_context": context,
        "preflight_api_timeout": PATIENT,
        "preflight_minimum_kubernetes": "1.31",
        "nativelink_namespace": "absent",
        "nativelink_workers_namespace": "absent-workers",
        "node_agent_guard": False,
        "nativelink_scheduler_backend": "redis",
        "nativelink_worker_pools": [{"name": "linux"}],
        "storage_classes_list": [{"name": "fast", "preset": "local-path"}],
        "gitops_provider": "none",
    }
    return values_of("prod", **{**stated, **more})


def lines(*arguments: Any, **more: Any) -> list[str]:
    """Return the faults of a cluster named prod, without its name."""
    faults, notices = live_findings(values(*arguments, **more))
    assert notices == []
    return [str(fault).removeprefix("prod: ") for fault in faults]


def test_a_file_that_is_not_a_kubeconfig(tmp_path: Path) -> None:
    file, write = tmp_path / "file", "write the path of the cluster's kubeconfig"
    assert lines(file) == [f"cluster_kubeconfig: {file} does not exist; {write}"]
    assert lines(tmp_path) == [f"cluster_kubeconfig: {tmp_path} cannot be read (Is a directory); {write}"]
    for text in ("contexts: [a]", "- a", "text", "a: [", "\x00"):
        file.write_text(text)
        assert lines(file) in (
            [f"cluster_kubeconfig: {file} is not a kubeconfig; {write}"],
            [f"cluster_context: {file} has no context good; write one that it has: none"],
        )
    kubeconfig(file, "https://127.0.0.1:1")
    assert lines(file, "better") == [f"cluster_context: {file} has no context better; write one that it has: good"]


@pytest.mark.parametrize("key", ["certificate-authority-data", "client-certificate-data", "client-key-data"])
def test_a_kubeconfig_with_damaged_certificates(tmp_path: Path, key: str) -> None:
    file = kubeconfig(tmp_path / "kubeconfig", "https://127.0.0.1:1")
    config = yaml.safe_load(file.read_text())
    part = "cluster" if "authority" in key else "user"
    config[f"{part}s"][0][part][key] = "QUJDR"
    file.write_text(yaml.safe_dump(config))
    assert lines(file) == [
        f"cluster_context: {file}: context good has damaged certificates or keys: Invalid base64-encoded "
        "string: number of data characters (5) cannot be 1 more than a multiple of 4; correct this context in that file"
    ]


def say_nothing(connection: socket.socket) -> None:
    time.sleep(PATIENT)
    connection.close()


def dribble(connection: socket.socket) -> None:
    """Send an answer that does not end, and never pauses for as long as a timeout of the client."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(5 * PATIENT):
        connection.sendall(b" ")
        time.sleep(0.2)


SILENT = (
    "cluster_context: the API server ADDRESS did not answer within 2 s; "
    "start it, check the network to it, or raise preflight_api_timeout"
)
ANSWERS = "cluster_context: ADDRESS answers GET /version with"
NOT_KUBERNETES = (
    "which is not a Kubernetes API server's answer; correct the server of this context in its kubeconfig, "
    "or sign in to the network or proxy that answers instead"
)
UNHEALTHY = "check the API server and the proxies in front of it, then run again"
PAGE = "<!DOCTYPE html><html><head><title>\nSign in &amp; surf</title></head></html>"
LOGIN = "Location: https://login.example.com/?next=secret"


# A server's scheme and answer, and the line about it. A line that ends with … is the beginning of one.
SERVERS: list[tuple[str, Callable[[socket.socket], None], str]] = [
    ("https", say_nothing, SILENT),
    ("http", say_nothing, SILENT),
    ("http", dribble, SILENT),
    ("https", answering("200 OK", "{}"), "cluster_context: the API server ADDRESS does not answer ([SSL…"),
    ("http", socket.socket.close, "cluster_context: the API server ADDRESS does not answer (…"),
    (
        *("http", answering("200 OK", '{"gitVersion": "latest"}')),
        "cluster_context: ADDRESS does not report a Kubernetes version at /version…",
    ),
    *(
        ("http", answering(status, body, *headers), f"{ANSWERS} {status.split()[0]} and {said}")
        for status, body, said, *headers in (
            ("200 OK", PAGE, f'the HTML page "Sign in & surf", {NOT_KUBERNETES}'),
            ("200 OK", "<html></html>", f"an HTML page, {NOT_KUBERNETES}"),
            ("200 OK", '"v1.36"', f'the text "\\"v1.36\\"", {NOT_KUBERNETES}'),
            ("200 OK", '{"a": 1}', f'the text "{{\\"a\\": 1}}", {NOT_KUBERNETES}'),
            ("200 OK", "", f"an empty body, {NOT_KUBERNETES}"),
            ("404 Not Found", "<html></html>", f"an HTML page, {NOT_KUBERNETES}"),
            ("302 Found", "", f"a redirect to https://login.example.com/, {NOT_KUBERNETES}", LOGIN),
            ("500 Oops", "Out of order", f'the text "Out of order"; {UNHEALTHY}'),
            ("503 Unavailable", "<html></html>", f"an HTML page; {UNHEALTHY}"),
        )
    ),
]


@pytest.mark.parametrize(("scheme", "answer", "line"), SERVERS)
def test_a_server_that_is_not_kubernetes_or_silent(
    tmp_path: Path, scheme: str, answer: Callable[[socket.socket], None], line: str
) -> None:
    with server(answer) as port:
        address = f"{scheme}://127.0.0.1:{port}"
        timeout = SHORT if line is SILENT else PATIENT
        (found,) = lines(kubeconfig(tmp_path / "kubeconfig", address), preflight_api_timeout=timeout)
    line = line.replace("ADDRESS", address)
    assert found == line or (line.endswith("…") and found.startswith(line[:-1]))


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    assert lines(kubeconfig(tmp_path / "kubeconfig", "https://127.0.0.1:1")) == [
        "cluster_context: the API server https://127.0.0.1:1 does not answer ([Errno 111] Connection refused); "
        "start the cluster, or correct its kubeconfig"
    ]


CREDENTIAL = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "t"}}
FAILED = "cluster_context: the credential plugin of context good in FILE failed: "


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("sleep 30", SILENT.replace("ADDRESS", "https://127.0.0.1:1")),
        ("echo 'the session expired' >&2; exit 7", f"{FAILED}exec: process returned 7. the session expired"),
        ("echo Signed in.", f"{FAILED}exec: failed to decode process output: Expecting value: line 1 column 1"),
        ("echo []", f"{FAILED}exec: malformed response. missing key 'apiVersion'"),
        ("", f"{FAILED}[Errno 2] No such file or directory: '/nowhere/plugin'"),
        # The counter-run: with a plugin that works, the check asks the API server, which does not run.
        (f"echo '{json.dumps(CREDENTIAL)}'", "cluster_context: the API server https://127.0.0.1:1 does not answer ("),
    ],
)
def test_a_credential_plugin(tmp_path: Path, command: str, line: str) -> None:
    file = kubeconfig(tmp_path / "kubeconfig", "https://127.0.0.1:1")
    config = yaml.safe_load(file.read_text())
    plugin = {"apiVersion": CREDENTIAL["apiVersion"], "interactiveMode": "Never"}
    plugin |= {"command": "sh", "args": ["-c", command]} if command else {"command": "/nowhere/plugin"}
    config["users"] = [{"name": "good", "user": {"exec": plugin}}]
    file.write_text(yaml.safe_dump(config))
    (found,) = lines(file, preflight_api_timeout=SHORT if "did not answer" in line else PATIENT)
    assert found.startswith(line.replace("FILE", str(file)))
    if line.startswith(FAILED):
        assert found.endswith("; run its command by hand, correct it or sign in, then run again")


def test_without_the_kubernetes_package(tmp_path: Path) -> None:
    (tmp_path / "kubernetes.py").write_text("raise ImportError(name='kubernetes')")
    path = kubeconfig(tmp_path / "kubeconfig", "https://127.0.0.1:1")
    prod = {**minimal("prod", tmp_path), "cluster_kubeconfig": str(path), "cluster_context": CONTEXT}
    file = write_inventory(tmp_path, {"prod": prod})

    run = run_playbook("validate", file, PYTHONPATH=str(tmp_path))

    assert run.status == 2
    assert "prod: Python: the package kubernetes is missing; install it for " in run.output


# On a real API server ----------------------------------------------------------------------------------------------


def test_a_sound_cluster_and_one_that_is_too_old(shared: Cluster) -> None:
    assert lines(shared.kubeconfig, shared.context) == []
    (line,) = lines(shared.kubeconfig, shared.context, preflight_minimum_kubernetes="1.99")
    assert line.startswith("cluster_context: the cluster runs Kubernetes v1.")
    assert line.endswith(", older than 1.99; upgrade it")


def test_classes_that_do_not_exist(shared: Cluster) -> None:
    found = lines(
        shared.kubeconfig,
        shared.context,
        nativelink_redis_storage_class="fast",
        nativelink_worker_pools=[{"name": "linux", "scratch_storage_class": "io2"}],
        storage_classes_list=[{"name": "fast", "preset": "local-path"}, {"name": "gp3", "preset": "existing"}],
    )
    assert found == [
        "nativelink_worker_pools[linux].scratch_storage_class: the cluster has no StorageClass io2; "
        "name one that it has (none), or list it in storage_classes_list",
        "storage_classes_list[gp3].name: the cluster has no StorageClass gp3; "
        "name one that it has (none), or give it a preset that makes it",
    ]


def test_a_user_who_may_not_create_namespaces(shared: Cluster, tmp_path: Path) -> None:
    token = shared.run("create", "token", "default", "--namespace", "default").strip()
    file = shared.kubeconfig_of(token, tmp_path / "kubeconfig")

    assert lines(file, shared.context, nativelink_cas_storage_class="gp3", storage_classes_list=[]) == [
        "cluster_context: GET /apis/storage.k8s.io/v1/storageclasses: 403 storageclasses.storage.k8s.io "
        'is forbidden: User "system:serviceaccount:default:default" cannot list resource "storageclasses" '
        'in API group "storage.k8s.io" at the cluster scope; '
        "correct the credentials of this context, or let its user do that"
    ]
    *others, agent = [
        f"{variable}: this user can neither find nor create the namespace {name}; "
        "create it, or let the user of cluster_context create namespaces"
        for variable, name in (
            ("nativelink_namespace", "absent"),
            ("nativelink_workers_namespace", "absent-workers"),
            ("node_agent_namespace", "nativelink-node-agent"),
        )
    ]
    assert lines(file, shared.context) == others
    for switch in ("node_agent_guard", "node_agent_low_latency"):
        assert lines(file, shared.context, **{switch: True}) == [*others, agent]


def test_what_the_bundled_prometheus_would_not_reach_or_find(shared: Cluster, tmp_path: Path) -> None:
    port = shared.port
    scraping = {"nativelink_prometheus": "bundled", "nativelink_prometheus_scrapes": ["edge"]}
    assert lines(shared.kubeconfig, shared.context, **scraping) == [
        f"nativelink_prometheus_api_server_ports: the API server listens on {port}, which the bundled Prometheus "
        f"could not reach; add {port} to [443, 6443]"
    ]
    scraping["nativelink_prometheus_api_server_ports"] = [443, port]
    assert lines(shared.kubeconfig, shared.context, **scraping) == []

    def notices(kubeconfig: Path = shared.kubeconfig) -> list[str]:
        return live_findings(values(kubeconfig, shared.context, **scraping))[1]

    scraping |= {"nativelink_prometheus_scrapes": ["cluster"], "nativelink_kube_state_metrics_namespace": "default"}
    assert notices() == [
        "nativelink_prometheus_scrapes: has cluster, but the namespace default has no pod with "
        "app.kubernetes.io/name=kube-state-metrics, so alerts on pods and pools cannot fire; "
        "install kube-state-metrics, or set nativelink_kube_state_metrics_namespace"
    ]
    token = shared.run("create", "token", "default", "--namespace", "default").strip()
    assert notices(shared.kubeconfig_of(token, tmp_path / "kubeconfig")) == []
    shared.run("run", "states", "--image=states", "--labels=app.kubernetes.io/name=kube-state-metrics")
    try:
        assert notices() == []
    finally:
        shared.run("delete", "pod", "states", "--now")


NO_NODE = "nativelink_worker_user_namespaces: is true, but no node that pool {} may use"
UNSUPPORTED = (
    f"{NO_NODE} supports user namespaces; use nodes with containerd 2.0 and Linux 6.3, or newer, or write false"
)
UNKNOWN = (
    f"{NO_NODE} tells whether it supports user namespaces; check that it has containerd 2.0 and Linux 6.3, or newer"
)


def test_user_namespaces_that_no_node_supports(shared: Cluster, tmp_path: Path) -> None:
    def report(number: int, *handlers: tuple[str, bool]) -> None:
        """Have a node report its container runtimes as the kubelet does."""
        features = [{"name": name, "features": {"userNamespaces": supported}} for name, supported in handlers]
        patch = json.dumps({"status": {"runtimeHandlers": features}})
        shared.run("patch", "node", f"node-{number}", "--subresource=status", "--type=merge", "-p", patch)

    def said(kubeconfig: Path = shared.kubeconfig, **more: Any) -> tuple[list[str], list[str]]:
        on = {"nativelink_worker_user_namespaces": True, **more}
        faults, notices = live_findings(values(kubeconfig, shared.context, **on))
        return [str(fault).removeprefix("prod: ") for fault in faults if "namespaces" in fault.variable], notices

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

    token = shared.run("create", "token", "default", "--namespace", "default").strip()
    assert said(shared.kubeconfig_of(token, tmp_path / "kubeconfig")) == ([], [UNKNOWN.format("linux")])


def test_a_user_or_an_authority_that_is_not_the_servers(shared: Cluster, tmp_path: Path) -> None:
    assert lines(shared.kubeconfig_of("nonsense", tmp_path / "user"), shared.context) == [
        "cluster_context: GET /version: 401 Unauthorized; "
        "correct the credentials of this context, or let its user do that"
    ]
    (line,) = lines(kubeconfig(tmp_path / "authority", shared.endpoint))
    assert line.startswith(f"cluster_context: the API server {shared.endpoint} does not answer (")
    assert "certificate" in line


def test_what_a_silent_server_delays_is_asked_again(shared: Cluster) -> None:
    """A request lasts a second here, and the server is silent for longer. What creates an object is sent once."""
    api = Api(str(shared.kubeconfig), shared.context, timeout=1)
    wanted = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "patient", "namespace": "default"}}
    api.apply(wanted, "test")

    def while_silent(request: Callable[[], object], seconds: float) -> object:
        end = threading.Timer(seconds, shared.resume)
        shared.pause()
        end.start()
        try:
            return request()
        finally:
            end.cancel()
            shared.resume()

    while_silent(lambda: api.apply({**wanted, "data": {"asked": "again"}}, "test"), 1.5)
    assert (api.live(wanted) or {})["data"] == {"asked": "again"}
    another = {**wanted, "metadata": {"name": "hasty", "namespace": "default"}}
    with pytest.raises(ApiError, match="does not answer"):
        while_silent(lambda: api.create(another, "test"), 1.5)


def test_the_playbook_shows_the_notices_and_faults_of_each_cluster(shared: Cluster, tmp_path: Path) -> None:
    real = minimal("real", tmp_path) | {
        "cluster_kubeconfig": str(shared.kubeconfig),
        "cluster_context": shared.context,
        "preflight_api_timeout": PATIENT,
        "nativelink_cas_storage_class": "",
        "storage_classes_list": [{"name": "fast", "preset": "local-path"}],
        "nativelink_worker_user_namespaces": True,
        "nativelink_worker_pools": [{"name": "linux", "node_selector": {"no": "node"}}],
    }
    run = run_playbook("validate", write_inventory(tmp_path, {"real": real, "gone": minimal("gone", tmp_path)}))
    assert run.status == 2
    assert "gone: cluster_kubeconfig: /nowhere/gone does not exist" in run.output
    assert "real: cluster_" not in run.output
    assert f"{NO_NODE.format('linux')} tells whether" in run.output


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
        return [str(fault).removeprefix("prod: ") for fault in faults if fault.variable.startswith("gitops_")]

    assert said("flux") == [
        "gitops_known_hosts_file: the file /nowhere/known_hosts does not exist; "
        "write the path of a file on this machine",
        "gitops_password: is empty, and gitops_username is set; set it, or the environment variable that it reads",
    ]
    assert said("none") == []
