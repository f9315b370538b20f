"""The workloads of a tree: the command, environment and volumes of each, as a kubelet reads them."""

import re
from base64 import b64decode
from collections.abc import Mapping
from typing import Any

import yaml

from testkit.authority import Authority
from testkit.bucket import KEYS
from testkit.trees import Object, objects_of

Tree = dict[str, str]
"""A rendered tree: the texts of its files by their paths."""
Files = Mapping[str, str | bytes]
"""The files of a ConfigMap, as texts or bytes."""

NATIVELINK = "/nativelink"  # the binary's path in a pod; in the image it is the entrypoint
COLLECTOR = "/otelcol-contrib"  # the same of the collector
SECRET = "conformance"  # the value of every key of every Secret that is not the environment of a container
STORE_CA = Authority("object store")  # the CA in the ConfigMap that the tree only names
_AUTHORITIES = {"ca-certificates.crt": STORE_CA.pem}
# The containers, by their names, and the entrypoints of their images.
_CONTAINERS = {"nativelink": NATIVELINK, "worker": "", "redis": "", "collector": COLLECTOR}
_COMPONENTS = ("cas", "scheduler", "worker", "redis", "collector", "collector-workers")
_FIELDS = {"metadata.name": "$POD_NAME", "status.podIPs": "$POD_IPS"}
_REFERENCE = re.compile(r"\$\$|\$\((\w+)\)")


class Workload:
    """One of the pods of a StatefulSet or Deployment.

    ``environment`` may contain ``$POD_NAME`` and ``$POD_IPS`` for the pod's name and addresses. ``configuration`` has
    the files of a ConfigMap by volume, and ``secrets`` the mode of a Secret's files by volume. ``drain`` is the command
    of the preStop hook, and ``started`` that of the startup probe, if there are any.
    """

    def __init__(self, item: Object, maps: Mapping[str, Files]) -> None:
        """Read the object, whose volumes may name these ConfigMaps."""
        self.name, self.namespace = item["metadata"]["name"], item["metadata"]["namespace"]
        template = item["spec"]["template"]
        self.labels: Mapping[str, str] = template["metadata"]["labels"]
        (container,) = [each for each in template["spec"]["containers"] if each["name"] in _CONTAINERS]
        keys = KEYS if container.get("envFrom") else {}
        values = {**keys, **{each["name"]: _value(each) for each in container.get("env", ())}}
        words = [*container.get("command", (_CONTAINERS[container["name"]],)), *container.get("args", ())]
        self.command = [_expanded(word, values) for word in words]
        self.environment = {name: _expanded(value, values) for name, value in values.items()}
        self.mounts: list[Object] = container["volumeMounts"]
        volumes = template["spec"].get("volumes", ())
        self.configuration = {each["name"]: _files(each["configMap"], maps) for each in volumes if "configMap" in each}
        self.secrets = {each["name"]: each["secret"]["defaultMode"] for each in volumes if "secret" in each}
        self.ports = [port["containerPort"] for port in container.get("ports", ())]
        self.drain: list[str] = _command(container.get("lifecycle", {}).get("preStop"))
        self.started: list[str] = _command(container.get("startupProbe"))
        security = {**template["spec"].get("securityContext", {}), **container.get("securityContext", {})}
        self.user: int = security.get("runAsUser", 0)
        self.capabilities: list[str] = security.get("capabilities", {}).get("add", [])

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


def workloads_of(tree: Tree) -> dict[str, Workload]:
    """Return the workloads that run NativeLink, its Redis, or a collector, by ``Workload.component``."""
    maps: dict[str, Files] = {
        each["name"]: {path.rpartition("/")[2]: tree[path] for path in each["files"]}
        for each in yaml.load(tree["kustomization.yaml"], yaml.CSafeLoader).get("configMapGenerator", ())
    }
    objects = objects_of(tree)
    maps |= {
        each["metadata"]["name"]: {name: b64decode(content) for name, content in each["binaryData"].items()}
        for each in objects
        if each["kind"] == "ConfigMap" and "binaryData" in each
    }
    found = [
        Workload(each, maps)
        for each in objects
        if each["kind"] in ("StatefulSet", "Deployment")
        and each["metadata"]["labels"].get("app.kubernetes.io/component") in _COMPONENTS
    ]
    return {workload.component: workload for workload in found}


def _files(volume: Object, maps: Mapping[str, Files]) -> Files:
    content = maps.get(volume["name"], _AUTHORITIES)
    return {each["path"]: content[each["key"]] for each in volume["items"]} if "items" in volume else content


def _command(hook: Object | None) -> list[str]:
    return list((hook or {}).get("exec", {}).get("command", ()))


def _value(variable: Mapping[str, Any]) -> str:
    source = variable.get("valueFrom", {})
    if "secretKeyRef" in source:
        return SECRET
    return _FIELDS[source["fieldRef"]["fieldPath"]] if source else str(variable.get("value", ""))


def _expanded(text: str, environment: Mapping[str, str]) -> str:
    """Expand $(NAME) and $$ as Kubernetes does."""
    return _REFERENCE.sub(lambda found: "$" if found[0] == "$$" else environment.get(found[1], found[0]), text)
