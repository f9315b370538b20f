"""Reads release manifests, orders their objects and tells when they work. It needs neither a cluster nor Ansible."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import yaml

Object = dict[str, Any]

FIELD_MANAGER = "nativelink-gitops"
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet")
_VERSION = re.compile(r"v?(\d+(?:\.\d+)*)(?:-([0-9A-Za-z.-]+))?(?:\+.*)?\Z")
_FIRST = ("Namespace", "CustomResourceDefinition")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe YAML in which a plain `=` and a plain date are strings, as they are for Kubernetes."""


for _tag in ("value", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", lambda loader, node: loader.construct_scalar(node))


def digest(content: bytes) -> str:
    """The SHA-256 of a manifest in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def objects(content: bytes) -> list[Object]:
    """All objects of a manifest, lists unfolded, in the file's order. Raises ValueError for what is not an object."""
    try:
        documents = [each for each in yaml.load_all(content, Loader=_Loader) if each is not None]
    except yaml.YAMLError as error:
        raise ValueError(f"it is not valid YAML: {' '.join(str(error).split())}") from error
    found: list[Object] = []
    for document in documents:
        if not isinstance(document, dict):
            raise ValueError(f"it does not hold Kubernetes objects but {str(document)[:60]!r}")
        found += document["items"] if str(document.get("kind")).endswith("List") and "items" in document else [document]
    for each in found:
        if not all((each.get("apiVersion"), each.get("kind"), (each.get("metadata") or {}).get("name"))):
            raise ValueError(f"an object has no apiVersion, kind or name: {str(each)[:60]!r}")
    if not found:
        raise ValueError("it is empty")
    return found


def without(found: Iterable[Object], patterns: Sequence[str]) -> list[Object]:
    """The objects that no pattern matches; a pattern is `Kind/name` with the shell's wildcards in both."""
    return [
        each
        for each in found
        if not any(fnmatchcase(f"{each['kind']}/{each['metadata']['name']}", pattern) for pattern in patterns)
    ]


def stages(found: Sequence[Object]) -> tuple[list[Object], list[Object]]:
    """Split the objects: those to apply first (namespaces, then the definitions of kinds), and the rest."""
    first = [each for kind in _FIRST for each in found if each["kind"] == kind]
    return first, [each for each in found if each["kind"] not in _FIRST]


def defined_kinds(found: Iterable[Object]) -> dict[tuple[str, str], bool]:
    """(apiVersion, kind) to whether it is namespaced, of the kinds that the manifest itself defines."""
    specs = [each["spec"] for each in found if each["kind"] == "CustomResourceDefinition"]
    return {
        (f"{spec['group']}/{version['name']}", spec["names"]["kind"]): spec["scope"] == "Namespaced"
        for spec in specs
        for version in spec["versions"]
        if version.get("served", True)
    }


def identity(each: Object) -> str:
    """An object as messages name it: `Deployment keda/keda-operator`, `Namespace keda`."""
    metadata = each["metadata"]
    namespace = metadata.get("namespace")
    return f"{each['kind']} {namespace}/{metadata['name']}" if namespace else f"{each['kind']} {metadata['name']}"


def version_key(version: str) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """A key that orders versions as semantic versioning does: 1.9 < 1.10-rc.2 < 1.10-rc.10 < 1.10 = v1.10.0+build."""
    found = re.match(_VERSION, version)
    if found is None:
        raise ValueError(f"{version!r} is not a version like 1.2.3 or 1.2.3-rc.1")
    numbers = [int(each) for each in found[1].split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    if found[2] is None:
        return tuple(numbers), ((2,),)  # no pre-release: above all of them
    return tuple(numbers), tuple((0, int(each)) if each.isdecimal() else (1, each) for each in found[2].split("."))


def stated_versions(found: Iterable[Object], name: str) -> set[str]:
    """The versions that the objects of release `name` state, without those that are not numbers, such as `latest`.

    They are in labels, in the annotations that bundles of definitions have, and in the tags of images that are named
    like the release or like the end of its name: `envoyproxy/gateway:v1.9.1` of `envoy-gateway`.
    """
    stated = set()
    for each in found:
        metadata = each["metadata"]
        stated.add((metadata.get("labels") or {}).get("app.kubernetes.io/version"))
        notes = metadata.get("annotations") or {}
        stated |= {value for key, value in notes.items() if key.endswith("/bundle-version")}
        pod = each.get("spec", {}).get("template", {}).get("spec", {}) if each["kind"] in WORKLOADS else {}
        for container in pod.get("containers", ()):
            image, _unused, tag = container.get("image", "").partition("@")[0].rpartition("/")[2].partition(":")
            if image and f"-{name}".endswith(f"-{image}"):
                stated.add(tag)
    return {version for version in stated if version and re.match(_VERSION, version)}


def record(name: str, namespace: str, version: str, content: str, found: Iterable[Object]) -> Object:
    """The ConfigMap that records which release is installed; `content` is the SHA-256 of what it is made from."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": f"{name}-release",
            "namespace": namespace,
            "labels": {"app.kubernetes.io/managed-by": FIELD_MANAGER},
        },
        "data": {
            "version": version,
            "sha256": content,
            "complete": "true",
            "objects": "\n".join(sorted(identity(each) for each in found)),
        },
    }


def holds(live: Any, wanted: Any) -> bool:
    """Return whether a live object has all that its manifest says, so that applying it again would change nothing.

    It may have more. False does not prove a difference: the API server writes some values in another way than they
    were given (`1000m` as `1`), and a list that another manager added to is not looked through.
    """
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(holds(live.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        same = isinstance(live, list) and len(live) == len(wanted)
        return same and all(holds(*pair) for pair in zip(live, wanted, strict=True))
    return type(live) is type(wanted) and live == wanted


def managers(live: Object) -> list[str]:
    """The managers that wrote an object's fields, other than its status."""
    entries = live["metadata"].get("managedFields", [])
    return sorted({each["manager"] for each in entries if "manager" in each and not each.get("subresource")})


def awaited(kind: str) -> str:
    """The end of the sentence "waited for it to …", by kind."""
    if kind == "CustomResourceDefinition":
        return "be established"
    return "be rolled out" if kind in ("StatefulSet", "DaemonSet") else "be available"


def condition_of(live: Object, kind: str) -> Object:
    """The condition of a live object that has this type; empty if there is none."""
    conditions = (live.get("status") or {}).get("conditions") or []
    return next((each for each in conditions if each["type"] == kind), {})


def not_ready(live: Object | None) -> str | None:
    """The reason why a live object does not work yet; None if it does."""
    if live is None:
        return "it does not exist"
    kind, status, spec = live["kind"], live.get("status") or {}, live.get("spec") or {}
    if kind in ("CustomResourceDefinition", "APIService"):
        condition = condition_of(live, "Established" if kind == "CustomResourceDefinition" else "Available")
        if condition.get("status") == "True":
            return None
        return condition.get("message") or "the API server has not processed it yet"
    if status.get("observedGeneration", 0) < live["metadata"].get("generation", 0):
        return "its controller has not processed it yet"
    wanted = status.get("desiredNumberScheduled", 0) if kind == "DaemonSet" else spec.get("replicas", 1)
    updated = status.get("updatedNumberScheduled" if kind == "DaemonSet" else "updatedReplicas", 0)
    ready = status.get("numberAvailable" if kind == "DaemonSet" else "availableReplicas", 0)
    # Old pods, of which a failed upgrade keeps as many as it can, count as available too.
    old = max(0, status.get("replicas", updated) - updated)
    working = max(0, min(updated, ready - old))
    if working >= wanted:
        return None
    said = condition_of(live, "Progressing" if updated < wanted or old else "Available").get("message")
    return f"{working} of {wanted} pods are up to date and ready" + (f" ({said})" if said else "")


def pod_trouble(pods: Iterable[Object]) -> str | None:
    """The name of the first pod that is in trouble and the reason it gives; None if no pod gives one."""
    for pod in pods:
        status, name = pod.get("status") or {}, pod["metadata"]["name"]
        containers = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
        for each in containers:
            waiting = (each.get("state") or {}).get("waiting") or {}
            if waiting and waiting.get("reason") not in ("PodInitializing", "ContainerCreating"):
                return f"pod {name}: {each['name']}: {waiting.get('reason')} {waiting.get('message', '')}".strip()
        unscheduled = condition_of(pod, "PodScheduled")
        if unscheduled.get("status") == "False":
            return f"pod {name}: {unscheduled.get('reason')} {unscheduled.get('message', '')}".strip()
        unready = condition_of(pod, "Ready")
        if unready.get("status") == "False":
            return f"pod {name}: {unready.get('message') or unready.get('reason') or 'not ready'}"
    return None
