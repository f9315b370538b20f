"""The workloads of a tree: the command, environment and volumes of each, as a kubelet reads them."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from testkit.trees import objects_of

Tree = dict[str, str]
"""A rendered tree: the texts of its files by their paths."""

NATIVELINK = "/nativelink"  # the binary's path in a pod; in the image it is the entrypoint
COLLECTOR = "/otelcol-contrib"  # the same of the collector
SECRET = "conformance"  # the value of every key of every Secret
# The containers, by their names, and the entrypoints of their images.
_CONTAINERS = {"nativelink": NATIVELINK, "worker": "", "redis": "", "collector": COLLECTOR}
_COMPONENTS = ("cas", "scheduler", "worker", "redis", "collector", "collector-workers")
_REFERENCE = re.compile(r"\$\$|\$\((\w+)\)")


@dataclass(frozen=True)
class Mount:
    """A mount of a volume in a pod, or of the part of it that ``sub_path`` names."""

    volume: str
    path: str
    sub_path: str


@dataclass(frozen=True)
class Workload:
    """One of the pods of a StatefulSet or Deployment.

    ``environment`` may contain ``$POD_NAME`` and ``$POD_IPS`` for the pod's name and addresses. ``configuration`` has
    the files of a ConfigMap by volume, as texts or bytes, and ``secrets`` the mode of a Secret's files by volume.
    ``drain`` is the command of the preStop hook, and ``started`` that of the startup probe, if there are any. ``user``
    and ``capabilities`` are those of the container.
    """

    name: str
    namespace: str
    labels: Mapping[str, str]
    command: tuple[str, ...]
    environment: Mapping[str, str]
    mounts: tuple[Mount, ...]
    configuration: Mapping[str, Mapping[str, str | bytes]]
    secrets: Mapping[str, int]
    ports: tuple[int, ...]
    drain: tuple[str, ...]
    started: tuple[str, ...]
    user: int
    capabilities: tuple[str, ...]

    @property
    def component(self) -> str:
        """The role of the workload, such as ``cas`` or ``redis``; a pool's is ``worker NAME OF THE POOL``."""
        pool = self.labels.get("nativelink-gitops/pool")
        return self.labels["app.kubernetes.io/component"] + (f" {pool}" if pool else "")

    @property
    def isolated(self) -> bool:
        """True if it gives each of its actions a user of its own."""
        return bool(self.capabilities)

    @property
    def settings(self) -> str:
        """The text of the NativeLink configuration, or "" if there is none."""
        files = [text for volume in self.configuration.values() for name, text in volume.items() if ".json5" in name]
        return str(files[0]) if files else ""


@dataclass(frozen=True)
class Service:
    """A Service: its name, and the pods that the name leads to."""

    name: str
    namespace: str
    selector: Mapping[str, str]
    headless: bool


def services_of(tree: Tree) -> list[Service]:
    """Return the tree's Services."""
    return [
        Service(
            item["metadata"]["name"],
            item["metadata"]["namespace"],
            item["spec"].get("selector", {}),
            item["spec"].get("clusterIP") == "None",
        )
        for item in objects_of(tree)
        if item["kind"] == "Service"
    ]


def workloads_of(tree: Tree) -> dict[str, Workload]:
    """Return the workloads that run NativeLink, its Redis, or a collector, by ``Workload.component``."""
    maps: dict[str, Mapping[str, str | bytes]] = {
        each["name"]: {path.rpartition("/")[2]: tree[path] for path in each["files"]}
        for each in yaml.load(tree["kustomization.yaml"], yaml.CSafeLoader).get("configMapGenerator", ())
    }
    objects = objects_of(tree)
    maps |= {
        each["metadata"]["name"]: {name: b64decode(content) for name, content in each["binaryData"].items()}
        for each in objects
        if each["kind"] == "ConfigMap" and "binaryData" in each
    }
    found = {}
    for item in objects:
        component = item["metadata"]["labels"].get("app.kubernetes.io/component")
        if item["kind"] in ("StatefulSet", "Deployment") and component in _COMPONENTS:
            workload = _workload(item, maps)
            found[workload.component] = workload
    return found


def _workload(item: dict[str, Any], maps: Mapping[str, Mapping[str, str | bytes]]) -> Workload:
    template = item["spec"]["template"]
    (container,) = [each for each in template["spec"]["containers"] if each["name"] in _CONTAINERS]
    environment = {each["name"]: _value(each) for each in container.get("env", ())}
    words = [*container.get("command", (_CONTAINERS[container["name"]],)), *container.get("args", ())]
    configured = {
        volume["name"]: _files(volume["configMap"], maps)
        for volume in template["spec"].get("volumes", ())
        if "configMap" in volume
    }
    security = {**template["spec"].get("securityContext", {}), **container.get("securityContext", {})}
    hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {})
    return Workload(
        name=item["metadata"]["name"],
        namespace=item["metadata"]["namespace"],
        labels=template["metadata"]["labels"],
        command=tuple(_expanded(word, environment) for word in words),
        environment={name: _expanded(value, environment) for name, value in environment.items()},
        mounts=tuple(
            Mount(each["name"], each["mountPath"], each.get("subPath", "")) for each in container["volumeMounts"]
        ),
        configuration=configured,
        secrets={
            volume["name"]: volume["secret"]["defaultMode"]
            for volume in template["spec"].get("volumes", ())
            if "secret" in volume
        },
        ports=tuple(port["containerPort"] for port in container.get("ports", ())),
        drain=tuple(hook.get("command", ())),
        started=tuple(container.get("startupProbe", {}).get("exec", {}).get("command", ())),
        user=security.get("runAsUser", 0),
        capabilities=tuple(security.get("capabilities", {}).get("add", ())),
    )


def _files(volume: Mapping[str, Any], maps: Mapping[str, Mapping[str, str | bytes]]) -> Mapping[str, str | bytes]:
    content = maps[volume["name"]]
    return {each["path"]: content[each["key"]] for each in volume["items"]} if "items" in volume else content


def _value(variable: Mapping[str, Any]) -> str:
    source = variable.get("valueFrom", {})
    if "secretKeyRef" in source:
        return SECRET
    if "fieldRef" in source:
        return {"metadata.name": "$POD_NAME", "status.podIPs": "$POD_IPS"}[source["fieldRef"]["fieldPath"]]
    return str(variable.get("value", ""))


def _expanded(text: str, environment: Mapping[str, str]) -> str:
    """Expand $(NAME) and $$ as Kubernetes does."""
    return _REFERENCE.sub(lambda found: "$" if found[0] == "$$" else environment.get(found[1], found[0]), text)
