"""Talks to a cluster's API server in process: the only way in which this project's plugins read and write objects.

A module of Ansible is a process that takes a second to start, which is too slow for polling and for many objects.
"""

from __future__ import annotations  # types of packages that may be missing

import html
import http.client
import json
import logging
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml

from .kubeconfig import KubeconfigError, servers
from .quantities import KubernetesVersion, QuantityError

MISSING = ""  # a package
try:
    import urllib3
    import websocket
    from kubernetes.client import ApiClient, Configuration
    from kubernetes.config import ConfigException
    from kubernetes.config.kube_config import KubeConfigLoader
    from kubernetes.stream.ws_client import PortForward
    from urllib3.util.ssl_ import create_urllib3_context
except ImportError as error:
    MISSING = str(error.name)

Object = dict[str, Any]

_CREDENTIALS = "correct the credentials of this context"
_NOT_KUBERNETES = (
    "correct the server of this context in its kubeconfig, or sign in to the network or proxy that answers instead"
)
_UNHEALTHY = "check the API server and the proxies in front of it, then run again"


class ApiError(Exception):
    """The cluster could not be asked. `str` gives the problem in one line, `remedy` and `variable` what to change."""

    def __init__(self, problem: str, remedy: str, variable: str = "cluster_context") -> None:
        """Take the parts of a message."""
        super().__init__(" ".join(problem.split()))
        self.remedy, self.variable = remedy, variable


class RefusedError(ApiError):
    """The API server answered with an error, whose own words are `message`."""

    def __init__(self, request: str, status: int, answer: Object) -> None:
        """Take what was asked for and what came back."""
        self.message = " ".join(str(answer.get("message", "")).split())
        remedy = f"{_CREDENTIALS}, or let its user do that" if status in (401, 403) else _UNHEALTHY
        super().__init__(f"{request}: {status} {self.message}", remedy)


def server_of(path: str, context: str) -> str:
    """The address of the API server of a kubeconfig's context. Raises ApiError if there is no such file or context."""
    try:
        found = servers(path)
    except KubeconfigError as error:
        remedy = "write the path of the cluster's kubeconfig"
        raise ApiError(f"{path} {error}", remedy, "cluster_kubeconfig") from None
    if context not in found:
        there = ", ".join(sorted(found)) or "none"
        raise ApiError(f"{path} has no context {context}", f"write one that it has: {there}")
    return found[context]


@contextmanager
def _logged_errors() -> Iterator[list[str]]:
    """Collect the errors that this thread logs: the client only logs why a credential plugin failed, and goes on."""
    found: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.addFilter(lambda record: record.thread == threading.get_ident())
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        yield found
    finally:
        logging.getLogger().removeHandler(handler)


def _hold_certificates(pool: urllib3.PoolManager) -> None:
    """Have a pool hold its certificates and its key in memory. It then needs no files of them."""
    settings = pool.connection_pool_kw
    trust = create_urllib3_context(cert_reqs=settings["cert_reqs"])
    if authorities := settings.pop("ca_certs", None):
        trust.load_verify_locations(authorities)
    else:
        trust.load_default_certs()
    certificate, key = settings.pop("cert_file", None), settings.pop("key_file", None)
    if certificate:
        trust.load_cert_chain(certificate, key)
    settings["ssl_context"] = trust


def _save(path: Path, config: Object) -> None:
    """Write a kubeconfig with a token that was refreshed."""
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def _client(kubeconfig: str, context: str) -> ApiClient:
    """The client of a kubeconfig's context.

    It writes the certificates and keys of a kubeconfig and of credential plugins into files, and removes them when
    Python ends. A worker of Ansible, which is a fork, ends without that, so they are removed here. Since kubernetes 35
    the client writes them again when they are gone.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings, path = Configuration(), Path(kubeconfig).expanduser()
        # Not load_kube_config, which takes a second to read the contexts of 50 clusters.
        found = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
        save = partial(_save, path, found)
        KubeConfigLoader(found, context, None, str(path.parent), save, folder).load_and_set(settings)
        client = ApiClient(settings)
        _hold_certificates(client.rest_client.pool_manager)
    return client


def _cause(error: BaseException) -> str:
    """The innermost of urllib3's nested errors, which the operating system or OpenSSL worded."""
    while inner := error.__cause__ or next((each for each in error.args if isinstance(each, Exception)), None):
        error = inner
    return re.sub(r" \(_ssl\.c:\d+\)", "", str(error))


def _described(text: str, location: str | None) -> str:
    """Describe an answer that is not Kubernetes' JSON."""
    if location:
        return f"a redirect to {location.partition('?')[0]}"
    if "<html" in text[:1000].lower():
        title = re.search(r"<title[^>]*>(.*?)</title>", text, re.DOTALL | re.IGNORECASE)
        return f'the HTML page "{html.unescape(title[1]).strip()[:80]}"' if title else "an HTML page"
    return f"the text {json.dumps(text.strip()[:80])}" if text.strip() else "an empty body"


def _name(each: Object) -> str:
    """An object as the API's own messages name it."""
    return f"{each['kind']} {each['metadata']['name']}"


def _pod(pod: Object) -> str:
    """The path of a pod. Those of a list have neither apiVersion nor kind."""
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"


_REPEATED = ("GET", "PATCH")


class Api:
    """One cluster, by kubeconfig and context; objects are plain dictionaries as the API server sends them.

    `warnings` holds what the API server has warned of so far, once each.
    """

    def __init__(self, kubeconfig: str, context: str, timeout: float | None = None) -> None:
        """`timeout` is in seconds, for each call. By default it is 30 for one that reads, and 65 for one that writes.

        A server ends a call itself after 60 s, so one that works always answers a write, with an error if need be.
        Raises ApiError if the context or the client cannot be used.
        """
        if MISSING:
            fix = f"install it for {sys.executable}, or run Ansible from the project's environment"
            raise ApiError(f"the package {MISSING} is missing", fix, "Python")
        server_of(kubeconfig, context)
        try:
            with _logged_errors() as logged:
                client = _client(kubeconfig, context)
            if logged:
                problem = f"the credential plugin of context {context} in {kubeconfig} failed: {' '.join(logged)}"
                raise ApiError(problem, "run its command by hand, correct it or sign in, then run again")
        except (ConfigException, OSError) as error:
            raise ApiError(f"{kubeconfig}: {error}", "correct this context in that file") from error
        except ValueError as error:  # of base64, which does not say what it reads
            problem = f"{kubeconfig}: context {context} has damaged certificates or keys: {error}"
            raise ApiError(problem, "correct this context in that file") from error
        # Not client.call_api, whose signature changed with kubernetes 37: these two are the same in all versions.
        self._host = client.configuration.host.rstrip("/")
        self._pool = client.rest_client.pool_manager
        self._configuration = client.configuration
        self._timeout = timeout
        self._kinds: dict[str, dict[str, tuple[str, bool]]] = {}
        self.warnings: list[str] = []

    def _credentials(self) -> dict[str, str]:
        """The headers by which the API server knows who asks."""
        settings = self._configuration.auth_settings().values()
        return {auth["key"]: auth["value"] for auth in settings if auth["in"] == "header" and auth["value"]}

    def _send(
        self, method: str, path: str, body: Object | None = None, content_type: str = "application/json"
    ) -> urllib3.BaseHTTPResponse:
        try:
            answer = self._pool.request(
                method,
                self._host + path,
                body=None if body is None else json.dumps(body),
                headers={"Accept": "application/json", "Content-Type": content_type, **self._credentials()},
                timeout=self._timeout or (30 if method == "GET" else 65),
                redirect=False,  # an API server sends none, and another server must not get the credentials
                # To read or to apply once more does no harm. A busy server is silent while it takes in many new kinds.
                retries=urllib3.Retry(2, backoff_factor=0.5, allowed_methods=_REPEATED, raise_on_status=False),
            )
        except urllib3.exceptions.HTTPError as error:
            problem = f"the API server {self._host} does not answer ({_cause(error)})"
            raise ApiError(problem, "start the cluster, or correct its kubeconfig") from error
        for warning in answer.headers.getlist("Warning"):  # 299 - "text"
            text = re.sub(r"\\(.)", r"\1", warning.partition('"')[2].rpartition('"')[0])
            if text and text not in self.warnings:
                self.warnings.append(text)
        return answer

    def _call(self, method: str, path: str, *sent: Any, what: str = "", accepted: str = "") -> Object | None:
        """The API server's answer to a request (`sent` as for `_send`); None if it refuses for the reason `accepted`.

        Raises RefusedError, which names `what`, or else the request, if it refuses for another reason, and ApiError for
        an answer that does not come from a Kubernetes API server.
        """
        answer = self._send(method, path, *sent)
        text = answer.data.decode(errors="replace")
        try:
            content = json.loads(text)
        except ValueError:
            content = None
        if answer.status == 404 and text.strip() == "404 page not found":  # an API group that is not there
            content = {"kind": "Status"}
        if not isinstance(content, dict) or not {"kind", "gitVersion"} & content.keys():
            found = _described(text, answer.headers.get("Location"))
            problem = f"{self._host} answers {method} {path.partition('?')[0]} with {answer.status} and {found}"
            if answer.status >= 500:
                raise ApiError(problem, _UNHEALTHY)
            raise ApiError(f"{problem}, which is not a Kubernetes API server's answer", _NOT_KUBERNETES)
        if answer.status < 300:
            return content
        reason = "NotFound" if answer.status == 404 else content.get("reason")  # servers of extensions leave it out
        if accepted and reason == accepted:
            return None
        raise RefusedError(what or f"{method} {path.partition('?')[0]}", answer.status, content)

    def get(self, path: str, **query: str) -> Object | None:
        """Return the API server's answer to GET `path`; None if the object, collection or API group does not exist."""
        return self._call("GET", f"{path}?{urlencode(query)}" if query else path, accepted="NotFound")

    def items(self, path: str | None, **query: str) -> list[Object]:
        """The objects of the collection at `path`; none if it does not exist."""
        return ((self.get(path, **query) if path else None) or {}).get("items", [])

    def version(self) -> str:
        """The API server's version, such as `v1.36.4`."""
        found = str((self.get("/version") or {}).get("gitVersion"))
        try:
            KubernetesVersion.parse(found)
        except QuantityError:
            message = f"{self._host} does not report a Kubernetes version at /version"
            raise ApiError(message, _NOT_KUBERNETES) from None
        return found

    def pods_of(self, workload: Object) -> list[Object]:
        """The pods that a workload selects by labels."""
        labels = workload["spec"]["selector"].get("matchLabels", {})
        path = self.path("v1", "Pod", namespace=workload["metadata"]["namespace"])
        return self.items(path, labelSelector=",".join(f"{key}={value}" for key, value in labels.items()))

    def log(self, pod: Object, **query: str) -> str | None:
        """The log of a pod; None if there is none yet, or if this user or the API server cannot read it."""
        answer = self._send("GET", f"{_pod(pod)}/log?{urlencode(query)}")
        return answer.data.decode(errors="replace") if answer.status == 200 else None

    def last_line(self, pod: Object) -> str:
        """Return the last line of a pod's log; empty if there is none or its node cannot be asked."""
        return (self.log(pod, tailLines="1") or "").strip()

    def connection(self, pod: Object, port: int) -> http.client.HTTPConnection:
        """A connection to a port of a pod, through the API server and the kubelet, which no NetworkPolicy keeps out."""
        trust = {"context": self._pool.connection_pool_kw.get("ssl_context")}
        if name := self._configuration.tls_server_name:
            trust["server_hostname"] = name
        try:
            channel = websocket.create_connection(
                f"{self._host.replace('http', 'ws', 1)}{_pod(pod)}/portforward?ports={port}",
                timeout=self._timeout or 30,
                header=self._credentials(),
                subprotocols=["v4.channel.k8s.io"],
                sslopt=trust,
            )
        except (websocket.WebSocketException, OSError) as error:
            problem = f"no connection to pod {pod['metadata']['name']}, port {port} ({str(error).splitlines()[0]})"
            remedy = "let this user create pods/portforward, and see that the pod's node works"
            raise ApiError(problem, remedy) from None
        found = http.client.HTTPConnection("localhost", port)
        found.auto_open = 0  # no other way leads to the pod
        found.sock = PortForward(channel, [port]).socket(port)
        found.sock.settimeout(self._timeout or 30)
        return found

    def proxied(self, path: str) -> Object:
        """Return the JSON that a node or a Service answers to GET `path` through the API server."""
        answer = self._send("GET", path)
        if answer.status != 200:
            raise RefusedError(f"GET {path}", answer.status, {"message": answer.data.decode(errors="replace")[:200]})
        return json.loads(answer.data)

    def post(self, path: str, body: Object) -> Object:
        """Return the API server's answer to POST `path`."""
        return self._call("POST", path, body) or {}

    def kind(self, api_version: str, kind: str) -> tuple[str, bool] | None:
        """The plural of a kind and whether it is namespaced; None if the cluster does not have it.

        What the cluster has is asked once, what it does not have each time: it may come with the next object.
        """
        if kind not in self._kinds.get(api_version, {}):
            path = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
            resources = (self.get(path) or {}).get("resources", [])
            self._kinds[api_version] = {
                each["kind"]: (each["name"], each["namespaced"]) for each in resources if "/" not in each["name"]
            }
        return self._kinds[api_version].get(kind)

    def path(self, api_version: str, kind: str, name: str = "", namespace: str = "") -> str | None:
        """The path of an object (without `name`: of its collection); None if the cluster does not have its kind."""
        found = self.kind(api_version, kind)
        if found is None:
            return None
        plural, namespaced = found
        parts = ["/apis" if "/" in api_version else "/api", api_version]
        parts += ["namespaces", namespace] if namespaced and namespace else []
        return "/".join([*parts, plural, *([name] if name else [])])

    def _path_of(self, each: Object, *, collection: bool = False) -> str:
        metadata = each["metadata"]
        name, namespace = "" if collection else metadata["name"], metadata.get("namespace", "")
        path = self.path(each["apiVersion"], each["kind"], name, namespace)
        if path is None:
            answer = {"message": f"the cluster does not have the kind {each['apiVersion']} {each['kind']}"}
            raise RefusedError(_name(each), 404, answer)
        return path

    def read(self, api_version: str, kind: str, name: str, namespace: str = "") -> Object | None:
        """One object; None if it, its namespace or its kind does not exist."""
        path = self.path(api_version, kind, name, namespace)
        return None if path is None else self.get(path)

    def live(self, wanted: Object) -> Object | None:
        """The live state of an object given by its manifest; None if it does not exist."""
        metadata = wanted["metadata"]
        return self.read(wanted["apiVersion"], wanted["kind"], metadata["name"], metadata.get("namespace", ""))

    def create(self, wanted: Object, field_manager: str) -> bool:
        """Create an object; False, and nothing is changed, if one of its name exists already."""
        path = f"{self._path_of(wanted, collection=True)}?{urlencode({'fieldManager': field_manager})}"
        return self._call("POST", path, wanted, what=_name(wanted), accepted="AlreadyExists") is not None

    def apply(self, wanted: Object, field_manager: str, *, dry_run: bool = False) -> Object:
        """Apply an object server-side and return its state after that, or as it would be.

        The API server refuses to change a field that another manager owns.
        """
        query = {"fieldManager": field_manager} | ({"dryRun": "All"} if dry_run else {})
        path = f"{self._path_of(wanted)}?{urlencode(query)}"
        return self._call("PATCH", path, wanted, "application/apply-patch+yaml", what=_name(wanted)) or {}

    def merge(self, live: Object, change: Object) -> bool:
        """Change an object by a JSON merge patch; False, and nothing is changed, if `change` is of an older version."""
        sent = (self._path_of(live), change, "application/merge-patch+json")
        return self._call("PATCH", *sent, what=_name(live), accepted="Conflict") is not None

    def delete(self, wanted: Object, *, orphan: bool = False) -> None:
        """Delete an object and, unless they become an `orphan`, what depends on it. A missing object is fine."""
        metadata = wanted["metadata"]
        path = self.path(wanted["apiVersion"], wanted["kind"], metadata["name"], metadata.get("namespace", ""))
        if path is not None:
            policy = "Orphan" if orphan else "Background"
            self._call("DELETE", f"{path}?propagationPolicy={policy}", what=_name(wanted), accepted="NotFound")
