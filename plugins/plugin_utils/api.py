"""Reading a cluster's API in process, plus the few writes that Ansible's Kubernetes modules cannot do.

A module is a process of a second or so; a wait that polls ten objects cannot afford one a look.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3
from kubernetes.config import ConfigException, kube_config, new_client_from_config
from urllib3.util.ssl_ import create_urllib3_context

Object = dict[str, Any]


class ApiError(Exception):
    """The API server could not be asked, or said no; the message is one line."""


def server_message(text: str) -> str:
    """The API server's own message out of a module's error, which quotes all of its answer; else the text."""
    quoted = re.search(r"""b(['"]).*\1|\{.*\}""", text, re.DOTALL)  # kubernetes below 37 gives bytes
    with contextlib.suppress(ValueError, SyntaxError, KeyError, TypeError):
        answer = quoted[0] if quoted else ""
        text = json.loads(ast.literal_eval(answer) if answer.startswith("b") else answer)["message"]
    return " ".join(text.split())


def _hold_certificates(pool: urllib3.PoolManager) -> None:
    """Have a pool hold its certificates and its key in memory.

    The client has written those that stand in a kubeconfig into files, and removes them when Python ends; a worker of
    Ansible, which is a fork, ends without that. Its exec plugins' are such files too.
    """
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
    kube_config._cleanup_temp_files()  # what it does at Python's end: there is no public way


class Api:
    """One cluster, by kubeconfig and context; objects are plain dictionaries as the API server sends them."""

    def __init__(self, kubeconfig: str, context: str, timeout: float = 30) -> None:
        """`timeout` is in seconds, for each call. Raises ApiError if the context cannot be used."""
        try:
            client = new_client_from_config(config_file=str(Path(kubeconfig).expanduser()), context=context)
            _hold_certificates(client.rest_client.pool_manager)
        except (ConfigException, OSError) as error:
            raise ApiError(f"{kubeconfig}: {error}") from error
        except ValueError as error:  # of base64, which does not say what it reads
            raise ApiError(f"{kubeconfig}: context {context} has damaged certificates or keys: {error}") from error
        # Not client.call_api, whose signature changed with kubernetes 37: these two are the same in all versions.
        self._host = client.configuration.host.rstrip("/")
        self._pool = client.rest_client.pool_manager
        self._configuration = client.configuration
        self._timeout = timeout
        self._kinds: dict[str, dict[str, tuple[str, bool]]] = {}

    def _send(
        self, method: str, path: str, body: Object | None = None, content_type: str = "application/json"
    ) -> tuple[int, str]:
        credentials = self._configuration.auth_settings().values()
        headers = {auth["key"]: auth["value"] for auth in credentials if auth["in"] == "header" and auth["value"]}
        try:
            answer = self._pool.request(
                method,
                self._host + path,
                body=None if body is None else json.dumps(body),
                headers={"Accept": "application/json", "Content-Type": content_type, **headers},
                timeout=self._timeout,
                retries=urllib3.Retry(2, backoff_factor=0.5) if method == "GET" else False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise ApiError(f"{self._host} does not answer: {error}") from error
        return answer.status, answer.data.decode(errors="replace")

    def _call(
        self, method: str, path: str, body: Object | None = None, content_type: str = "application/json"
    ) -> tuple[int, Object]:
        status, text = self._send(method, path, body, content_type)
        try:
            content = json.loads(text)
        except ValueError:
            content = {"message": text[:200]}
        return status, content

    def get(self, path: str, **query: str) -> Object | None:
        """What the API server answers to GET `path`; None if it has no such thing."""
        status, content = self._call("GET", f"{path}?{urlencode(query)}" if query else path)
        if status == 404:
            return None
        if status >= 300:
            raise ApiError(f"GET {path}: {status} {content.get('message', '')}")
        return content

    def last_line(self, pod: Object) -> str:
        """The last line of a pod's log; empty if there is none, or its node cannot be asked."""
        path = self.path("v1", "Pod", pod["metadata"]["name"], pod["metadata"]["namespace"])
        status, text = self._send("GET", f"{path}/log?tailLines=1")
        return text.strip() if status == 200 else ""

    def post(self, path: str, body: Object) -> Object:
        """What the API server answers to POST `path`."""
        status, content = self._call("POST", path, body)
        if status >= 300:
            raise ApiError(f"POST {path}: {status} {content.get('message', '')}")
        return content

    def kinds(self, api_version: str) -> Mapping[str, tuple[str, bool]]:
        """Kind to (plural, whether namespaced) of all that `api_version` has; empty if the cluster does not know it."""
        if not self._kinds.get(api_version):  # one that is still to come is asked for again
            path = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
            resources = (self.get(path) or {}).get("resources", [])
            self._kinds[api_version] = {
                each["kind"]: (each["name"], each["namespaced"]) for each in resources if "/" not in each["name"]
            }
        return self._kinds[api_version]

    def path(self, api_version: str, kind: str, name: str = "", namespace: str = "") -> str | None:
        """Where an object (without `name`: its collection) is; None if the cluster does not know its kind."""
        found = self.kinds(api_version).get(kind)
        if found is None:
            return None
        plural, namespaced = found
        parts = ["/apis" if "/" in api_version else "/api", api_version]
        parts += ["namespaces", namespace] if namespaced and namespace else []
        return "/".join([*parts, plural, *([name] if name else [])])

    def read(self, api_version: str, kind: str, name: str, namespace: str = "") -> Object | None:
        """One object; None if it, its namespace or its kind is not there."""
        path = self.path(api_version, kind, name, namespace)
        return None if path is None else self.get(path)

    def live(self, wanted: Object) -> Object | None:
        """The live state of an object given by its manifest; None if it is not there."""
        metadata = wanted["metadata"]
        return self.read(wanted["apiVersion"], wanted["kind"], metadata["name"], metadata.get("namespace", ""))

    def create(self, wanted: Object, field_manager: str) -> bool:
        """Create an object; False, and nothing is changed, if one of its name is there already."""
        metadata = wanted["metadata"]
        path = self.path(wanted["apiVersion"], wanted["kind"], namespace=metadata.get("namespace", ""))
        if path is None:
            raise ApiError(f"the cluster does not know {wanted['apiVersion']} {wanted['kind']}")
        status, content = self._call("POST", f"{path}?{urlencode({'fieldManager': field_manager})}", wanted)
        if status == 409 and content.get("reason") == "AlreadyExists":
            return False
        if status >= 300:
            raise ApiError(f"{wanted['kind']} {metadata['name']}: {status} {content.get('message', '')}")
        return True

    def apply(self, wanted: Object, field_manager: str, *, dry_run: bool = False) -> Object:
        """Apply an object server-side, never taking another manager's field; its state then, or as it would be."""
        metadata = wanted["metadata"]
        path = self.path(wanted["apiVersion"], wanted["kind"], metadata["name"], metadata.get("namespace", ""))
        if path is None:
            raise ApiError(f"the cluster does not know {wanted['apiVersion']} {wanted['kind']}")
        query = {"fieldManager": field_manager} | ({"dryRun": "All"} if dry_run else {})
        status, content = self._call("PATCH", f"{path}?{urlencode(query)}", wanted, "application/apply-patch+yaml")
        if status >= 300:
            raise ApiError(f"{wanted['kind']} {metadata['name']}: {status} {content.get('message', '')}")
        return content

    def merge(self, live: Object, change: Object) -> bool:
        """Change an object by a JSON merge patch; False, and nothing is changed, if `change` is of an older version."""
        metadata = live["metadata"]
        path = self.path(live["apiVersion"], live["kind"], metadata["name"], metadata.get("namespace", ""))
        status, content = self._call("PATCH", str(path), change, "application/merge-patch+json")
        if status == 409 and content.get("reason") == "Conflict":
            return False
        if status >= 300:
            raise ApiError(f"{live['kind']} {metadata['name']}: {status} {content.get('message', '')}")
        return True

    def delete(self, wanted: Object) -> None:
        """Delete an object and, by the garbage collector, what depends on it; it is fine if it is not there."""
        metadata = wanted["metadata"]
        path = self.path(wanted["apiVersion"], wanted["kind"], metadata["name"], metadata.get("namespace", ""))
        if path is None:
            return
        status, content = self._call("DELETE", f"{path}?propagationPolicy=Background")
        if status >= 300 and status != 404:
            raise ApiError(f"{wanted['kind']} {metadata['name']}: {status} {content.get('message', '')}")
