"""Traffic through the edge on a real node: Envoy Gateway and a real Envoy, one host name, TLS.

Clients are on this machine, outside of the cluster's pods; NetworkPolicies let none of them past Envoy. A load balancer
is played by the node, whose address the test writes where a cloud's controller would. The tests tell one story in the
order of the file.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import socket
import ssl
import struct
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from testbed import build, cluster, components, node
from testbed.cluster import Cluster
from testbed.waiting import patient, until
from tests.e2e.authority import Authority
from tests.e2e.bazel_client import Bazel
from tests.e2e.site import SMALL, Site, pool

Object = dict[str, Any]

NAME = "site"
HOST = "nativelink.example.com"
CAS, PROXIES = "nativelink", "envoy-gateway-system"
GATEWAY = "gateway.envoyproxy.io/owning-gateway-name=nativelink"
# Where a client's calls have to end, by service.
SERVICES = {
    "build.bazel.remote.execution.v2.Execution": "scheduler",
    "build.bazel.remote.execution.v2.Capabilities": "scheduler",
    "build.bazel.remote.execution.v2.ContentAddressableStorage": "cas",
    "build.bazel.remote.execution.v2.ActionCache": "cas",
    "google.bytestream.ByteStream": "cas",
}
# The worker API of NativeLink and of its stand-in, and what else a scheduler has.
HIDDEN = {
    "/com.github.trace_machina.nativelink.remote_execution.WorkerApi/ConnectWorker",
    "/standin.Workers/Work",
    "/admin/scheduler/main/set_drain_worker/worker/1",
    "/status",
}
RETRIES = "--retries=5"  # as Bazel; here a second apart
SINGLE_POD = "nativelink-single-pod"
UNIMPLEMENTED = "12"  # of gRPC's codes: nobody has this method
MAX_CONCURRENT_STREAMS = 3  # of HTTP/2's settings (RFC 9113, section 6.5.2)


@dataclass(frozen=True)
class Edge:
    """A cluster with an edge, at an address, and the certificates of the test, which are files."""

    where: Cluster
    site: Site
    address: str
    folder: Path

    def apply(self) -> None:
        """Apply the tree as an engine does."""
        tree = str(self.site.tree_of(NAME))
        self.where.run("apply", "--server-side", "--force-conflicts", "--field-manager=engine", "-k", tree)

    def ready(self) -> None:
        """Wait for all of NativeLink."""
        self.where.rolled_out(CAS, "statefulset/nativelink-cas", "deployment/nativelink-scheduler")
        self.where.rolled_out("nativelink-workers", "deployment/nativelink-worker-default")

    def trust(self, *protocols: str) -> ssl.SSLContext:
        """A client without a certificate."""
        context = ssl.create_default_context(cafile=str(self.folder / "servers.crt"))
        context.set_alpn_protocols(protocols)
        return context

    def connect(self, context: ssl.SSLContext, host: str = HOST) -> ssl.SSLSocket:
        """A connection by TLS to the edge, or to another host of its address."""
        return context.wrap_socket(socket.create_connection((self.address, 443), timeout=20), server_hostname=host)

    def ask(self, path: str) -> http.client.HTTPResponse:
        """The answer to a gRPC call without a message."""
        connection = http.client.HTTPConnection(HOST)
        connection.sock = self.connect(self.trust("http/1.1"))
        connection.request("POST", path, headers={"Content-Type": "application/grpc", "TE": "trailers"})
        return connection.getresponse()

    def refusal(self, context: ssl.SSLContext) -> str:
        """How TLS refuses a client, or "" if the edge waits for what it has to say."""
        with self.connect(context) as connection:
            connection.settimeout(5)
            try:
                connection.recv(1)
            except ssl.SSLError as error:
                return str(error.reason)
            except TimeoutError:
                return ""
        raise AssertionError("the edge hung up without a word")

    def streams(self) -> int:
        """How many calls at a time the edge says that a connection may have."""
        with self.connect(self.trust("h2")) as connection, connection.makefile("rb") as answer:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4" + bytes(5))  # no settings of ours
            length = int.from_bytes(answer.read(9)[:3])
            return int(dict(struct.iter_unpack(">HI", answer.read(length)))[MAX_CONCURRENT_STREAMS])

    def load(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a client with a certificate, which wants actions: see ``reported``."""
        command = [str(build.binaries(build.NODE_SETS)["reapi-load"]), f"--connect-to={self.address}:443"]
        command += [f"--{of}-endpoint=grpcs://{HOST}:443" for of in ("execute", "cas")]
        command += [f"--tls-certificate={self.folder / 'servers.crt'}"]
        command += [f"--tls-client-{what}={self.folder / 'client.pem'}" for what in ("certificate", "key")]
        pipe = subprocess.PIPE
        return subprocess.Popen([*command, *arguments], stdout=pipe, stderr=pipe, text=True)

    @contextlib.contextmanager
    def without(self, component: str) -> Iterator[None]:
        """A component's only pod is away meanwhile, and on its way back afterwards."""
        scale = ("scale", {"cas": "statefulset", "scheduler": "deployment"}[component], f"nativelink-{component}")
        self.where.run("-n", CAS, *scale, "--replicas=0")
        pods = ("pod", "-l", f"app.kubernetes.io/component={component}")
        self.where.run("-n", CAS, "wait", "--for=delete", *pods, f"--timeout={patient(120)}s")
        try:
            yield
        finally:
            self.where.run("-n", CAS, *scale, "--replicas=1")

    @contextlib.contextmanager
    def carried(self, seconds: int) -> Iterator[subprocess.Popen[str]]:
        """The client of an action of so many seconds, whose proxy is told to go when it carries the call."""
        active = "envoy_cluster_upstream_rq_active{.*nativelink-execution.*}"
        with self.load("--platform=pool=default", f"--seconds={seconds}-{seconds}", "--retries=0") as client:
            until("Envoy to carry the call", lambda: self.metric(active) > 0, 30)
            self.where.run("-n", PROXIES, "delete", "pod", *self.proxies(), "--wait=false")
            yield client

    def proxies_renewed(self, drain_timeout: str) -> None:
        """Wait for proxies with a limit of their drain ("" for none), to which all that is new goes."""

        def has_it() -> bool:
            limits = re.findall(r"--drain-timeout=(\w+)", self.where.run(*deployment, "-o", "json"))
            return limits == ([drain_timeout] if drain_timeout else [])

        def reached() -> bool:
            connections = "envoy_listener_downstream_cx_total{.*_10443.*}"
            before = self.metric(connections)
            for _ in range(5):
                self.connect(self.trust("h2")).close()
            return self.metric(connections) >= before + 5

        deployment = ("-n", PROXIES, "get", "deployment", "-l", GATEWAY)
        until("Envoy Gateway to change its Deployment", has_it, 30)
        self.where.rolled_out(PROXIES, self.where.run(*deployment, "-o", "name").strip())
        # A node's rules follow later, and a proxy on its way out takes what still comes.
        until("the Service to lead to the new proxies", reached, 30)

    def log(self) -> list[Object]:
        """What Envoy says of each call that has ended, some ten seconds after that."""
        text = self.where.run("-n", PROXIES, "logs", "-l", GATEWAY, "-c", "envoy", "--tail=-1")
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def backends(self) -> dict[str, set[str]]:
        """By service, the pods and ports that took its calls."""
        found: dict[str, set[str]] = {}
        for each in self.log():
            if each["upstream_host"]:
                service = each["x-envoy-origin-path"].split("/")[1]
                found.setdefault(service, set()).add(each["upstream_host"])
        return found

    def proxies(self) -> dict[str, str]:
        """The addresses of Envoy's pods, by name, without those that are told to go."""
        pods = json.loads(self.where.run("-n", PROXIES, "get", "pods", "-l", GATEWAY, "-o", "json"))["items"]
        return {
            each["metadata"]["name"]: each["status"].get("podIP", "")
            for each in pods
            if "deletionTimestamp" not in each["metadata"]
        }

    def metric(self, pattern: str) -> float:
        """The sum of some of the series that Envoy has of itself."""
        text = ""
        for address in self.proxies().values():
            with urllib.request.urlopen(f"http://{address}:19001/stats/prometheus", timeout=20) as answer:
                text += answer.read().decode()
        return sum(map(float, re.findall(rf"^{pattern} (\S+)$", text, re.MULTILINE)))

    def routes_read(self) -> float:
        """How often Envoy was told other routes."""
        return self.metric("envoy_http_rds_config_reload{.*}")

    def read(self, *what: str) -> list[str]:
        """Words that kubectl finds in the namespace of the CAS."""
        return self.where.run("-n", CAS, "get", *what).split()


def reported(client: subprocess.Popen[str]) -> list[tuple[str, int, int]]:
    """Of each action of a load: its outcome, how often it began, and how often its client asked again."""
    said, errors = client.communicate()
    assert said, errors
    return [(each["outcome"], each["executions"], each["retries"]) for each in json.loads(said)["actions"]]


def secret(name: str, kind: str, data: dict[str, bytes]) -> Object:
    encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
    metadata = {"name": name, "namespace": CAS}
    return {"apiVersion": "v1", "kind": "Secret", "type": kind, "metadata": metadata, "data": encoded}


def made_known(where: Cluster) -> str:
    """The Gateway's address, after a load balancer got one."""
    network = node.network(where.home)
    assert network
    services = ("-n", PROXIES, "get", "service", "-l", GATEWAY, "-o", "name")
    until("Envoy Gateway to make Envoy's Service", lambda: bool(where.run(*services)), 60)
    status = json.dumps({"status": {"loadBalancer": {"ingress": [{"ip": network.node}]}}})
    service = where.run(*services).strip()
    where.run("-n", PROXIES, "patch", service, "--subresource=status", "--type=merge", "-p", status)
    where.run("-n", CAS, "wait", "--for=condition=Programmed", "gateway/nativelink", f"--timeout={patient(120)}s")
    return where.run("-n", CAS, "get", "gateway", "nativelink", "-o", "jsonpath={.status.addresses[0].value}")


@pytest.fixture(scope="module")
def edge(state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """The main job, the Secrets that it leaves to its user, the tree, and all of it ready."""
    with cluster.fresh("e2e-edge", nodes=0, real=True) as where:
        where.load(*components.images_of("envoy-gateway"))
        folder = tmp_path_factory.mktemp("edge")
        site = Site.make(folder / "checkout")
        variables = {
            **SMALL,
            "nativelink_cas_replicas": 2,
            "nativelink_worker_pools": [pool("default", slots=4, longest_action="4m")],
            "nativelink_edge": "gateway",
            "nativelink_hostname": HOST,
            "nativelink_edge_tls_secret": "edge-tls",
            "ingress_provider": "envoy-gateway",
            "ingress_envoy_image": "docker.io/envoyproxy/envoy",
            "ingress_envoy_replicas": 1,
        }
        site.add(NAME, where, **variables)
        site.bootstrap()
        servers, clients = Authority("Servers of the tests"), Authority("Clients of the tests")
        certificate, key = servers.issue(HOST)
        where.apply(
            secret("edge-tls", "kubernetes.io/tls", {"tls.crt": certificate, "tls.key": key}),
            secret("clients-ca", "Opaque", {"ca.crt": clients.pem}),
        )
        (folder / "servers.crt").write_bytes(servers.pem)
        for name, by in (("client.pem", clients), ("stranger.pem", Authority("Strangers"))):
            (folder / name).write_bytes(b"".join(by.issue("client")))
        Edge(where, site, "", folder).apply()
        edge = Edge(where, site, made_known(where), folder)
        edge.ready()
        yield edge


@pytest.fixture(scope="module")
def long(edge: Edge) -> Iterator[subprocess.Popen[str]]:
    """An action that is silent for longer than Envoy waits by itself, while the first tests run."""
    with edge.load("--platform=pool=default", "--seconds=30-30") as client:
        yield client


def test_bazel_builds_through_one_host_name(
    edge: Edge, long: subprocess.Popen[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    client = Bazel(tmp_path_factory.mktemp("bazel"))
    client.endpoints = [
        f"--remote_executor=grpcs://{edge.address}:443",
        f"--tls_certificate={edge.folder / 'servers.crt'}",
        f"--tls_authority_override={HOST}",  # the name is not in the DNS
    ]
    try:
        assert client.build("first", 10) == {"remote": 10}
        assert client.build("first", 10) == {"remote cache hit": 10}
    finally:
        client.run("shutdown")


def test_blobs_go_up_and_come_down_and_actions_run(edge: Edge, long: subprocess.Popen[str]) -> None:
    load = edge.load("--platform=pool=default", "--actions=20", "--seconds=0.1-0.5")
    assert reported(load) == [("ok", 1, 0)] * 20


def test_each_service_is_served_by_its_own_backend(edge: Edge) -> None:
    until("Envoy to say what it passed on", lambda: edge.backends().keys() == SERVICES.keys(), 20)
    found = edge.backends()
    selector = "app.kubernetes.io/component=cas"
    pods = edge.read("pods", "-l", selector, "-o", "jsonpath={.items[*].status.podIP}")
    (scheduler,) = edge.read("service", "nativelink-scheduler", "-o", "jsonpath={.spec.clusterIP}")
    backends = {"cas": {f"{pod}:50051" for pod in pods}, "scheduler": {f"{scheduler}:50052"}}
    for service, component in SERVICES.items():
        assert found[service] <= backends[component], service
    assert len(pods) == 2
    assert found["build.bazel.remote.execution.v2.ContentAddressableStorage"] == backends["cas"], "each takes its part"


def test_what_clients_need_not_is_not_there(edge: Edge) -> None:
    """It is Envoy that says so, and asks nobody; the counter-run is all that it passed on above."""
    for path in HIDDEN:
        answer = edge.ask(path)
        assert (answer.status, answer.headers["grpc-status"]) == (200, UNIMPLEMENTED), path

    def said() -> dict[str, tuple[str, str | None]]:
        log = {each["x-envoy-origin-path"]: each for each in edge.log()}
        return {
            path: (log[path]["response_code_details"], log[path]["upstream_host"]) for path in HIDDEN if path in log
        }

    until("Envoy to say what became of the calls", lambda: said().keys() == HIDDEN, 20)
    assert set(said().values()) == {("route_not_found", None)}


def test_there_is_no_other_host(edge: Edge) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        edge.connect(edge.trust("h2"), "another.example.com")


def test_a_long_action_is_not_cut_off(long: subprocess.Popen[str]) -> None:
    assert reported(long) == [("ok", 1, 0)]


def test_counter_run_without_our_policy_a_long_action_is_cut_off(edge: Edge) -> None:
    before = edge.routes_read()
    edge.where.run("-n", CAS, "delete", "backendtrafficpolicy", "nativelink")
    try:
        until("Envoy to be told routes without it", lambda: edge.routes_read() > before, 30)
        ((outcome, begun, _),) = reported(edge.load("--platform=pool=default", "--seconds=20-20", "--retries=0"))
    finally:
        edge.apply()
    assert begun == 1
    assert outcome.startswith("failed: rpc error: code = Internal"), outcome


def test_a_proxy_ends_its_calls_before_it_goes(edge: Edge) -> None:
    """The counter-run, at the same time: after the minute of Envoy Gateway's own the call is cut off."""
    edge.proxies_renewed("600s")
    shutdown = {"op": "add", "path": "/spec/shutdown", "value": {"drainTimeout": "600s"}}
    patch = ("-n", PROXIES, "patch", "envoyproxy", "nativelink", "--type=json", "-p")
    with edge.carried(100) as ours:
        edge.proxies_renewed("600s")
        edge.where.run(*patch, json.dumps([{"op": "remove", "path": "/spec/shutdown"}]))
        try:
            edge.proxies_renewed("")
            with edge.carried(200) as theirs:
                ((outcome, begun, _),) = reported(theirs)
            # Its output is read through the others, so they may change only after that.
            assert reported(ours) == [("ok", 1, 0)]
        finally:
            edge.where.run(*patch, json.dumps([shutdown]))
    assert begun == 1
    assert outcome.startswith("failed: rpc error: code = Unavailable"), outcome
    edge.proxies_renewed("600s")


def test_a_call_waits_for_a_scheduler_that_is_away(edge: Edge) -> None:
    with edge.without("scheduler"):
        client = edge.load("--platform=pool=nobody", "--hold=1", RETRIES, f"--timeout={patient(60)}")
        assert client.stdout
        assert client.stdout.readline() == '{"uploaded": 1}\n'
        time.sleep(8)  # longer than its retries take without Envoy's
    assert client.communicate()[0] == '{"queued": 1}\n'


def test_counter_run_without_our_policy_for_it_the_call_fails(edge: Edge) -> None:
    edge.where.run("-n", CAS, "delete", "backendtrafficpolicy", SINGLE_POD)
    try:
        with edge.without("scheduler"):
            ((outcome, begun, _),) = reported(edge.load("--platform=pool=default", RETRIES))
    finally:
        edge.apply()
        edge.where.rolled_out(CAS, "deployment/nativelink-scheduler")
    assert begun == 0
    assert outcome.startswith("failed: rpc error: code = Unavailable"), outcome


def test_a_connection_carries_more_than_a_hundred_calls(edge: Edge) -> None:
    assert edge.streams() == 1024
    client = edge.load(
        "--platform=pool=nobody", "--actions=150", "--streams=150", "--hold=1", f"--timeout={patient(60)}"
    )
    assert [json.loads(line) for line in client.communicate()[0].splitlines()] == [{"uploaded": 150}, {"queued": 150}]


def test_counter_run_without_our_limit_the_next_call_waits(edge: Edge) -> None:
    change = [{"op": "remove", "path": "/spec/http2/maxConcurrentStreams"}]
    edge.where.run("-n", CAS, "patch", "clienttrafficpolicy", "nativelink", "--type=json", "-p", json.dumps(change))
    try:
        until("the edge to go back to Envoy Gateway's limit", lambda: edge.streams() == 100, 30)
        client = edge.load("--platform=pool=nobody", "--actions=150", "--streams=150", "--hold=1", "--timeout=20")
        assert "only 100 of 150 actions were queued" in client.communicate()[1]
    finally:
        edge.apply()
    until("the edge to have our limit again", lambda: edge.streams() == 1024, 30)


def test_only_clients_with_a_certificate_come_in(edge: Edge) -> None:
    unknown = edge.trust("h2")
    assert edge.refusal(unknown) == ""
    edge.site.set(NAME, nativelink_edge_client_ca_secret="clients-ca")
    edge.site.playbook("render")
    edge.apply()
    until("the edge to ask for certificates", lambda: edge.refusal(unknown) != "", 30)
    assert edge.refusal(unknown) == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    stranger, client = edge.trust("h2"), edge.trust("h2")
    stranger.load_cert_chain(edge.folder / "stranger.pem")
    assert edge.refusal(stranger) == "TLSV1_ALERT_UNKNOWN_CA"
    client.load_cert_chain(edge.folder / "client.pem")
    assert edge.refusal(client) == ""
    load = edge.load("--platform=pool=default", "--actions=5", "--seconds=0.1-0.5")
    assert reported(load) == [("ok", 1, 0)] * 5


def test_a_call_waits_for_a_cas_of_one_pod_that_is_away(edge: Edge) -> None:
    edge.site.set(NAME, nativelink_cas_replicas=1)
    edge.site.playbook("render")
    edge.apply()
    edge.ready()
    with edge.without("cas"):
        client = edge.load("--platform=pool=default")
        time.sleep(6)  # longer than its retries take without Envoy's
        assert client.poll() is None, client.communicate()
    assert reported(client) == [("ok", 1, 0)]


def test_counter_run_without_our_policy_for_it_the_upload_fails(edge: Edge) -> None:
    edge.where.run("-n", CAS, "delete", "backendtrafficpolicy", SINGLE_POD)
    with edge.without("cas"):
        said, errors = edge.load("--platform=pool=default").communicate()
    assert (said, "code = Unavailable" in errors) == ("", True), errors
