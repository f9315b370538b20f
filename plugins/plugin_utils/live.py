"""Checks that need the cluster: it answers, its version, its StorageClasses, its nodes and our permissions."""

import threading
from base64 import b64decode
from datetime import UTC, date, datetime
from pathlib import Path
from queue import Empty, SimpleQueue

from .api import Api, ApiError, Object, RefusedError, server_of
from .derived import node_selector_of
from .findings import Finding, Findings
from .quantities import KubernetesVersion, seconds_of
from .specs import Values, namespaces, with_defaults


def live_findings(values: Values) -> tuple[list[Finding], list[str]]:
    """Faults of one cluster, from its effective values, and lines for the summary that are no faults.

    Ends within preflight_api_timeout whatever the server does.
    """
    notices: list[str] = []
    try:
        said = _asked(values, server_of(values["cluster_kubeconfig"], values["cluster_context"]), notices)
    except ApiError as error:
        said = [(error.variable, str(error), error.remedy)]
    return sorted(Finding(values["cluster"], *words) for words in [*said, *_credentials(values)]), notices


def _credentials(values: Values) -> Findings:
    """An engine needs the repository's credentials. Rendering does not, so they are checked here."""
    if values["gitops_provider"] == "none":
        return
    for name in ("gitops_ssh_private_key_file", "gitops_known_hosts_file", "gitops_ca_file"):
        if values[name] and not Path(values[name]).expanduser().is_file():
            yield name, f"the file {values[name]} does not exist", "write the path of a file on this machine"
    for name, other in (("gitops_username", "gitops_password"), ("gitops_password", "gitops_username")):
        if values[name] and not values[other]:
            yield other, f"is empty, and {name} is set", "set it, or the environment variable that it reads"


def _asked(values: Values, server: str, notices: list[str]) -> list[tuple[str, str, str]]:
    timeout = seconds_of(values["preflight_api_timeout"])
    answers: SimpleQueue[list[tuple[str, str, str]] | Exception] = SimpleQueue()

    def ask() -> None:
        try:
            answers.put(list(_questions(values, timeout, notices)))
        except Exception as error:  # the waiting thread raises it
            answers.put(error)

    # A thread, because the client's timeout ends neither a server that answers byte by byte nor a plugin that hangs.
    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=timeout)
    except Empty:
        problem = f"the API server {server} did not answer within {timeout} s"
        return [("cluster_context", problem, "start it, check the network to it, or raise preflight_api_timeout")]
    if isinstance(answer, Exception):
        raise answer
    return answer


def _questions(values: Values, timeout: float, notices: list[str]) -> Findings:
    api = Api(values["cluster_kubeconfig"], values["cluster_context"], timeout)
    version = api.version()
    least = values["preflight_minimum_kubernetes"]
    if KubernetesVersion.parse(version) < KubernetesVersion.parse(least):
        yield "cluster_context", f"the cluster runs Kubernetes {version}, older than {least}", "upgrade it"
        return
    yield from _storage_classes(api, values)
    if values["nativelink_worker_user_namespaces"]:
        yield from _user_namespaces(api, values, notices)
    yield from _certificates(api, values)
    if values["nativelink_prometheus"] == "bundled" and values["nativelink_prometheus_scrapes"]:
        yield from _prometheus(api, values, notices)
    if not _may_create_namespaces(api):
        for name in namespaces(values):
            yield from _namespace(api, name, values[name])


def _storage_classes(api: Api, values: Values) -> Findings:
    """Check that classes exist that are listed as existing, or used and not listed."""
    listed = {item["name"]: item.get("preset") for item in values["storage_classes_list"]}
    used = {"nativelink_cas_storage_class": values["nativelink_cas_storage_class"]}
    if values["nativelink_scheduler_backend"] == "redis" and values["nativelink_redis_provider"] == "bundled":
        used["nativelink_redis_storage_class"] = values["nativelink_redis_storage_class"]
    for pool in values["nativelink_worker_pools"]:
        used[f"nativelink_worker_pools[{pool['name']}].scratch_storage_class"] = pool.get("scratch_storage_class", "")
    listed_fix, used_fix = "give it a preset that makes it", "list it in storage_classes_list"
    wanted = [
        (f"storage_classes_list[{name}].name", name, listed_fix)
        for name, preset in listed.items()
        if preset == "existing"
    ]
    wanted += [(variable, name, used_fix) for variable, name in used.items() if name and name not in listed]
    if not wanted:
        return  # some users may not read classes
    there = sorted(item["metadata"]["name"] for item in api.items("/apis/storage.k8s.io/v1/storageclasses"))
    for variable, name, fix in wanted:
        if name not in there:
            has = ", ".join(there) or "none"
            yield variable, f"the cluster has no StorageClass {name}", f"name one that it has ({has}), or {fix}"


def _user_namespaces(api: Api, values: Values, notices: list[str]) -> Findings:
    """Check that each pool may use a node that supports user namespaces. Taints do not count."""
    variable = "nativelink_worker_user_namespaces"
    newer = "containerd 2.0 and Linux 6.3, or newer"
    try:
        nodes = api.items("/api/v1/nodes")
    except RefusedError:
        nodes = []  # some users may not read nodes
    for pool in with_defaults(values)["nativelink_worker_pools"]:
        labels = node_selector_of(pool).items()
        usable = [node for node in nodes if labels <= node["metadata"].get("labels", {}).items()]
        answers = [answer for node in usable for answer in _supports_user_namespaces(node)]
        problem = f"is true, but no node that pool {pool['name']} may use"
        if not answers:
            notices.append(
                f"{variable}: {problem} tells whether it supports user namespaces; check that it has {newer}"
            )
        elif not any(answers):
            yield variable, f"{problem} supports user namespaces", f"use nodes with {newer}, or write false"


def _supports_user_namespaces(node: Object) -> list[bool]:
    """Whether the default container runtime of a node supports them; empty if the node does not say."""
    handlers = [handler for handler in node["status"].get("runtimeHandlers", ()) if not handler.get("name")]
    return [handler.get("features", {}).get("userNamespaces", False) for handler in handlers]


def _certificates(api: Api, values: Values) -> Findings:
    """Check that the certificates of mutual TLS, where they exist, last as long as the alert about them expects."""
    from cryptography.x509 import load_pem_x509_certificate  # here, because ansible-test imports plugins without it

    secret, made = values["nativelink_mutual_tls_secret"], values["worker_certificates_create"]
    if not secret:
        return
    day = date.fromisoformat(values["nativelink_mutual_tls_expires"])
    if made and day < datetime.now(UTC).date():
        remedy = "write a later day, and name new Secrets in nativelink_mutual_tls_secret"
        yield "nativelink_mutual_tls_expires", f"is {day}, which has passed", remedy
    ours, workers = values["nativelink_namespace"], values["nativelink_workers_namespace"]
    named = [("nativelink_mutual_tls_secret", namespace, secret) for namespace in (ours, workers)]
    if made:
        named.append(("worker_certificates_ca", ours, values["worker_certificates_ca"]))
    for variable, namespace, name in named:
        try:
            found = api.get(f"/api/v1/namespaces/{namespace}/secrets/{name}")
        except RefusedError:
            if made:
                problem = f"this user cannot read the Secret {namespace}/{name}"
                remedy = "let the user of cluster_context read and make Secrets, or set this to false"
                yield "worker_certificates_create", problem, remedy
            continue
        if not found:
            continue  # it is made later, or reported as missing
        data = found.get("data") or {}
        try:
            end = load_pem_x509_certificate(b64decode(data["tls.crt"])).not_valid_after_utc.date()
        except (KeyError, ValueError):
            end = None
        if not end or "tls.key" not in data:
            problem = f"the Secret {namespace}/{name} has no certificate or no key (tls.crt, tls.key)"
            yield variable, problem, "add it, or name another Secret"
        elif end < day:
            problem = f"is {day}, but the certificate of the Secret {namespace}/{name} ends on {end}"
            yield "nativelink_mutual_tls_expires", problem, f"write {end}, or name a new Secret in {variable}"


def _prometheus(api: Api, values: Values, notices: list[str]) -> Findings:
    """Check that the bundled Prometheus can reach the API server, and finds kube-state-metrics where it scrapes it."""
    variable, opened = "nativelink_prometheus_api_server_ports", values["nativelink_prometheus_api_server_ports"]
    try:
        behind = api.get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes") or {}
    except RefusedError:
        behind = {}  # some users may not read them
    for port in sorted({each["port"] for each in behind.get("ports") or ()} - set(opened)):
        problem = f"the API server listens on {port}, which the bundled Prometheus could not reach"
        yield variable, problem, f"add {port} to {opened}"
    if "cluster" not in values["nativelink_prometheus_scrapes"]:
        return
    namespace, label = values["nativelink_kube_state_metrics_namespace"], "app.kubernetes.io/name=kube-state-metrics"
    try:
        there = api.items(f"/api/v1/namespaces/{namespace}/pods", labelSelector=label)
    except RefusedError:
        return
    if not there:
        notices.append(
            f"nativelink_prometheus_scrapes: has cluster, but the namespace {namespace} has no pod with {label}, so "
            "alerts on pods and pools cannot fire; install kube-state-metrics, or set "
            "nativelink_kube_state_metrics_namespace"
        )


def _namespace(api: Api, variable: str, namespace: str) -> Findings:
    """Check that a namespace exists, for a user who may not create it."""
    try:
        found = api.get(f"/api/v1/namespaces/{namespace}")
    except ApiError:
        found = None  # a namespace that this user may not read does not help
    if not found:
        problem = f"this user can neither find nor create the namespace {namespace}"
        yield variable, problem, "create it, or let the user of cluster_context create namespaces"


def _may_create_namespaces(api: Api) -> bool:
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": "create", "resource": "namespaces"}},
    }
    return api.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)["status"]["allowed"]
