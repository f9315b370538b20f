"""A cluster on a real node whose clients come through the edge: Envoy Gateway and a real Envoy, one host name, TLS.

The node replaces a load balancer: its address is written where the controller of a cloud would write it.
"""

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import struct
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509

from testbed import cluster, node
from testbed.cluster import Cluster
from testbed.waiting import patient, until
from testkit.authority import Authority
from testkit.bazel import Bazel
from testkit.client import Client, Process
from testkit.farm import Farm, load_images, secret
from testkit.git_server import address_for
from testkit.servers import PREFACE, forwarding, served
from testkit.site import SMALL, Site, pool
from testkit.tokens import Key
from testkit.trees import resource

Object = dict[str, Any]

NAME = "site"
HOST = "nativelink.example.com"
CAS, PROXIES = "nativelink", "envoy-gateway-system"
GATEWAY = "gateway.envoyproxy.io/owning-gateway-name=nativelink"
# An identity provider, whose keys this machine serves, and what its tokens have.
ISSUER, AUDIENCE, PEOPLE = "https://identity.example.com", "farm.example.com", "identity"
JWKS = f"http://keys.{PEOPLE}.svc.cluster.local/jwks.json"
SANS = {  # the subject alternative names of client certificates, by their files
    "client": x509.DNSName("client"),
    "ci": x509.UniformResourceIdentifier("spiffe://example.com/ci"),
    "reader": x509.UniformResourceIdentifier("spiffe://example.com/reader"),
    # This certificate is of the CA and has the common name of CI, but no entry has its DNS name.
    "impostor": x509.DNSName("impostor.example.com"),
}
ACCESS: Object = {
    "nativelink_edge_client_ca_secret": "clients-ca",
    "nativelink_edge_token_issuers": [
        {"name": PEOPLE, "issuer": ISSUER, "audiences": [AUDIENCE], "jwks": JWKS},
    ],
    "nativelink_edge_access": [
        {"role": "execute", "certificate": "client"},
        {"role": "write", "certificate": "spiffe://example.com/ci"},
        {"role": "read", "certificate": "spiffe://example.com/reader"},
        {"role": "execute", "issuer": PEOPLE, "claims": {"groups": ["developers"]}},
        {"role": "write", "issuer": PEOPLE, "claims": {"repository": "example/monorepo"}},
        {"role": "read", "keys": "edge-readers"},
        {"role": "write", "keys": "edge-ci"},
    ],
}
DEVELOPER: Object = {"sub": "ann", "groups": ["developers", "all"]}
CI: Object = {"sub": "repo:example/monorepo:ref:refs/heads/main", "repository": "example/monorepo"}
MAX_CONCURRENT_STREAMS = 3  # one of HTTP/2's settings (RFC 9113, section 6.5.2)


@dataclass(frozen=True)
class Edge(Farm):
    """A farm with an edge: its checkout, the address of the edge, and the folder of the test's certificates."""

    site: Site
    gateway: str
    certificates: Path
    servers: Authority
    clients: Authority
    newer_clients: Authority
    issuer: Key

    def ready(self, *more: str) -> None:
        """Wait until CAS, scheduler and workers are ready."""
        super().ready("deployment/nativelink-worker-default", *more)

    def trust(self, *protocols: str) -> ssl.SSLContext:
        """Return the TLS settings of a client without a certificate."""
        context = ssl.create_default_context(cafile=str(self.certificates / "servers.crt"))
        context.set_alpn_protocols(protocols)
        return context

    def connect(self, context: ssl.SSLContext, host: str = HOST) -> ssl.SSLSocket:
        """Open a TLS connection to the edge, or to another host name at its address."""
        return context.wrap_socket(socket.create_connection((self.gateway, 443), timeout=20), server_hostname=host)

    def ask(self, path: str) -> http.client.HTTPResponse:
        """Return the answer to a gRPC call without a message."""
        connection = http.client.HTTPConnection(HOST)
        connection.sock = self.connect(self.trust("http/1.1"))
        connection.request("POST", path, headers={"Content-Type": "application/grpc", "TE": "trailers"})
        return connection.getresponse()

    def refusal(self, context: ssl.SSLContext) -> str:
        """Return how TLS refuses a client, or "" if the edge waits for the client's request."""
        with self.connect(context) as connection:
            connection.settimeout(5)
            try:
                connection.recv(1)
            except ssl.SSLError as error:
                return str(error.reason)
            except TimeoutError:
                return ""
        raise AssertionError("the edge closed the connection without an error")

    def refused(self, certificate: str) -> str:
        """Return how TLS refuses a client with a certificate (of `SANS`), or ""."""
        context = self.trust("h2")
        context.load_cert_chain(self.certificates / f"{certificate}.pem")
        return self.refusal(context)

    def streams(self) -> int:
        """Return the number of concurrent calls that the edge allows on a connection."""
        with self.connect(self.trust("h2")) as connection, connection.makefile("rb") as answer:
            connection.sendall(PREFACE)
            length = int.from_bytes(answer.read(9)[:3])
            return int(dict(struct.iter_unpack(">HI", answer.read(length)))[MAX_CONCURRENT_STREAMS])

    @property
    def outside(self) -> Client:
        """A client outside of the cluster, with a certificate, that may build."""
        return self.caller("client")

    def caller(self, certificate: str = "", **headers: str) -> Client:
        """Return a client with a certificate (of `SANS`), or without one, that sends headers with each call."""
        more = [f"--connect-to={self.gateway}:443", f"--tls-certificate={self.certificates / 'servers.crt'}"]
        if certificate:
            file = self.certificates / f"{certificate}.pem"
            more += [f"--tls-client-{what}={file}" for what in ("certificate", "key")]
        more += [f"--header={name.replace('_', '-')}={value}" for name, value in headers.items()]
        return Client(*[f"grpcs://{HOST}:443"] * 2, tuple(more))

    def tool(self, *command: str | Path, cwd: Path, **environment: str) -> tuple[int, str]:
        """Run a program of this machine that finds the edge by its host name. Return the exit code and what it said.

        Its only variables are PATH and these. Those of CI would change what clients do.
        """
        hosts = self.certificates / "hosts"
        hosts.write_text(f"{self.gateway} {HOST}\n")
        enter = ("unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', hosts)
        variables = {"PATH": os.environ["PATH"], **environment}
        streams: Object = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        done = subprocess.run([*enter, *command], cwd=cwd, env=variables, check=False, **streams)
        return done.returncode, done.stdout

    def client_files(self, workspace: Path, certificate: str = "", token: str = "") -> Path:
        """Give a workspace the rendered files for clients and an identity (of `SANS`, or a token). Return their folder.

        That is what docs/clients.md says.
        """
        made = workspace / "nativelink"
        shutil.rmtree(made, ignore_errors=True)
        shutil.copytree(self.folder / "rendered/clients", made)
        shutil.copy(self.certificates / "servers.crt", made / "ca.crt")
        for kind in ("crt", "key") if certificate else ():
            shutil.copy(self.certificates / f"{certificate}.pem", made / f"client.{kind}")
        if token:
            (made / "token").write_text(token.removeprefix("Bearer "))
        return made

    def token(self, key: Key | None = None, **claims: Any) -> str:
        """Return the header of a client with a token of the identity provider, or with one that another key signs."""
        return "Bearer " + (key or self.issuer).token(**{"iss": ISSUER, "aud": AUDIENCE, **claims})

    @contextlib.contextmanager
    def bazel(
        self, bazel: Bazel, certificate: str = "client", *more: str, execute: bool = True, cut: int = 0
    ) -> Iterator[Bazel]:
        """Let a Bazel build through the edge with a certificate (of `SANS`) or without one, or only use the cache.

        Bazel 2.1.0 has neither client certificates nor TLS 1.3, so a program of this machine speaks for it. ``cut`` is
        how many bytes its first large connection carries before it breaks.
        """
        shown, trusted = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self.trust("h2")
        shown.set_alpn_protocols(["h2"])
        shown.load_cert_chain(self.certificates / "server.pem")
        if certificate:
            trusted.load_cert_chain(self.certificates / f"{certificate}.pem")
        options = [f"--tls_certificate={self.certificates / 'servers.crt'}", f"--tls_authority_override={HOST}", *more]
        options += [] if execute else ["--remote_executor=", "--spawn_strategy=local"]
        with forwarding(shown, trusted, self.gateway, HOST, cut) as port:
            yield bazel.at(Client(*[f"grpcs://127.0.0.1:{port}"] * 2), *options)

    def configure(self, **variables: Any) -> None:
        """Change variables of the inventory, and apply the tree."""
        self.site.set(NAME, **variables)
        self.site.playbook("render")
        self.apply_folder()

    def publish(self, *keys: Key) -> None:
        """Let these be the keys of the identity provider."""
        (self.certificates / "jwks.json").write_text(json.dumps({"keys": [key.public for key in keys]}))

    @contextlib.contextmanager
    def carried(self, seconds: int) -> Iterator[Process]:
        """Start an action of this many seconds, delete the proxy that carries its call, and yield its client."""
        active = "envoy_cluster_upstream_rq_active{.*nativelink-execution.*}"
        with self.outside.start(f"--seconds={seconds}-{seconds}", "--retries=0", pool="default") as client:
            until("Envoy to carry the call", lambda: self.metric(active) > 0, 30)
            self.where.run("-n", PROXIES, "delete", "pod", *self.proxies(), "--wait=false")
            yield client

    def proxies_renewed(self, drain_timeout: str) -> None:
        """Wait until new connections go to proxies with this drain timeout ("" for none)."""

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
        # The node's rules follow later, and a terminating proxy still accepts connections.
        until("the Service to lead to the new proxies", reached, 30)

    def log(self) -> list[Object]:
        """Return Envoy's log of each call that has ended. It appears about ten seconds after the call."""
        text = self.where.run("-n", PROXIES, "logs", "-l", GATEWAY, "-c", "envoy", "--tail=-1")
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def backends(self) -> dict[str, set[str]]:
        """Return the pods and ports that answered the calls of each service."""
        found: dict[str, set[str]] = {}
        for each in self.log():
            if each["response_code_details"] == "via_upstream":
                service = each["path"].split("/")[1]
                found.setdefault(service, set()).add(each["upstream_host"])
        return found

    def proxies(self) -> dict[str, str]:
        """Return the addresses of Envoy's pods by name, without terminating pods."""
        pods = json.loads(self.where.run("-n", PROXIES, "get", "pods", "-l", GATEWAY, "-o", "json"))["items"]
        return {
            each["metadata"]["name"]: each["status"].get("podIP", "")
            for each in pods
            if "deletionTimestamp" not in each["metadata"]
        }

    def metric(self, pattern: str) -> float:
        """Return the sum of the series of Envoy's own metrics that match a pattern."""
        text = ""
        for address in self.proxies().values():
            with urllib.request.urlopen(f"http://{address}:19001/stats/prometheus", timeout=20) as answer:
                text += answer.read().decode()
        return sum(map(float, re.findall(rf"^{pattern} (\S+)$", text, re.MULTILINE)))

    def pods_of_cas(self) -> list[str]:
        """Return the address of each pod of the CAS."""
        selector = "app.kubernetes.io/component=cas"
        pods = ("get", "pods", "-l", selector, "-o", "jsonpath={.items[*].status.podIP}")
        return self.where.run("-n", CAS, *pods).split()


def made_known(where: Cluster) -> str:
    """Give the Gateway an address, as a load balancer does, and return it."""
    network = node.network(where.home)
    assert network
    services = ("-n", PROXIES, "get", "service", "-l", GATEWAY, "-o", "name")
    until("Envoy Gateway to create Envoy's Service", lambda: bool(where.run(*services)), 60)
    status = json.dumps({"status": {"loadBalancer": {"ingress": [{"ip": network.node}]}}})
    service = where.run(*services).strip()
    where.run("-n", PROXIES, "patch", service, "--subresource=status", "--type=merge", "-p", status)
    where.run("-n", CAS, "wait", "--for=condition=Programmed", "gateway/nativelink", f"--timeout={patient(120)}s")
    return where.run("-n", CAS, "get", "gateway", "nativelink", "-o", "jsonpath={.status.addresses[0].value}")


@contextlib.contextmanager
def opened(
    cluster_name: str, folder: Path, prepare: Callable[[Cluster], object] = lambda where: None, **variables: Any
) -> Iterator[Edge]:
    """Bootstrap a cluster, apply the user's Secrets and the tree, and wait. Remove the cluster afterwards.

    ``prepare`` is called with the empty cluster.
    """
    with cluster.fresh(cluster_name, nodes=0, real=True) as where:
        load_images(where, "envoy-gateway")
        prepare(where)
        site = Site.make(folder / "checkout")
        stated = {
            **SMALL,
            "nativelink_cas_replicas": 2,
            "nativelink_worker_pools": [pool("default", slots=4, longest_action="4m")],
            "nativelink_edge": "gateway",
            "nativelink_hostname": HOST,
            "nativelink_edge_tls_secret": "edge-tls",
            "ingress_provider": "envoy-gateway",
            "ingress_envoy_image": "docker.io/envoyproxy/envoy",
            "ingress_envoy_replicas": 1,
            "ingress_envoy_max_replicas": 1,
            "ingress_envoy_resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "1Gi"}},
            "nativelink_prometheus_api_server_ports": [where.port],
            **ACCESS,
            **variables,
        }
        site.add(NAME, where, **stated)
        site.playbook("bootstrap")
        servers, clients, issuer = Authority("Servers of the tests"), Authority("Clients of the tests"), Key("first")
        certificate, key = servers.issue(HOST, days=90)
        where.apply(
            secret("edge-tls", "kubernetes.io/tls", {"tls.crt": certificate, "tls.key": key}),
            secret("clients-ca", "Opaque", {"ca.crt": clients.pem}),
            secret("edge-readers", "Opaque", {"bob": b"key-of-bob"}),
            secret("edge-ci", "Opaque", {"ci": b"key-of-ci"}),
        )
        (folder / "servers.crt").write_bytes(servers.pem)
        (folder / "server.pem").write_bytes(b"".join(servers.issue(HOST)))
        for name, san in SANS.items():
            common = "spiffe://example.com/ci" if name == "impostor" else name
            (folder / f"{name}.pem").write_bytes(b"".join(clients.issue(common, san)))
        (folder / "stranger.pem").write_bytes(b"".join(Authority("Strangers").issue("client")))
        farm = Farm(where, CAS, site.trees / NAME)
        farm.apply_folder()
        authorities = {"servers": servers, "clients": clients, "newer_clients": Authority("Newer clients")}
        edge = Edge(
            **vars(farm), site=site, gateway=made_known(where), certificates=folder, issuer=issuer, **authorities
        )
        edge.publish(issuer)
        with served(folder, address_for(where)) as address:
            where.apply(*_reached(address))
            edge.ready()
            yield edge


def _reached(address: str) -> list[Object]:
    """Return a Service at whose name pods reach the keys of the identity provider, which this machine serves."""
    host, _, port = address.partition(":")
    ports = [{"name": "http", "port": int(port)}]
    service = {"ports": [{"name": "http", "port": 80, "targetPort": int(port)}]}
    slices = {"addressType": "IPv4", "endpoints": [{"addresses": [host]}], "ports": ports}
    labels = {"kubernetes.io/service-name": "keys"}
    return [
        resource("v1/Namespace", PEOPLE),
        resource("v1/Service", "keys", PEOPLE, spec=service),
        resource("discovery.k8s.io/v1/EndpointSlice", "keys", PEOPLE, metadata={"labels": labels}, **slices),
    ]
