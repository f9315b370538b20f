"""The objects that copy content between the pods of the CAS: pure, and asks no cluster."""

from collections.abc import Collection, Mapping
from typing import Any

import yaml

from .context import CLIENT_TLS, context
from .layout import ends, host, next_of
from .ports import PORTS
from .quantities import bytes_of
from .render import environment
from .specs import ROOT

Object = dict[str, Any]

PROGRAM = ROOT / "roles/nativelink/files/copier.py"


def settings(values: Mapping[str, Any], number: int) -> Object:
    """The settings of the program beside the volume of a pod: what is going to belong to another pod is copied.

    `values` are the effective variables of the cluster.
    """
    namespace, shards = values["nativelink_namespace"], next_of(values)
    return {
        "volume": "/var/lib/nativelink",
        "own": host(number, namespace),
        "shards": [[host(pod, namespace), end] for (pod, _unused), end in zip(shards, ends(shards), strict=True)],
        "slice": PORTS["slice"],
        "writers": PORTS["writers"],
        "rate": bytes_of(values["nativelink_copier_rate"]),
        "tls": CLIENT_TLS if values["nativelink_mutual_tls_secret"] else {},
    }


def jobs(values: Mapping[str, Any], pods: int) -> list[Object]:
    """A Job beside the volume of each pod."""
    scope = context(values).scope
    each = ({**scope, "number": number, "settings": settings(values, number)} for number in range(pods))
    return [job for names in each for job in _objects("job", names)]


def companions(values: Mapping[str, Any], live: Collection[Object]) -> list[Object]:
    """The program and the NetworkPolicies of live Jobs. Kubernetes deletes them with the last of the Jobs."""
    found = context(values)
    program = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "nativelink-copier",
            "namespace": values["nativelink_namespace"],
            "labels": found.labels["copier"],
        },
        "data": {PROGRAM.name: PROGRAM.read_text(encoding="utf-8")},
    }
    owners = [
        {"apiVersion": "batch/v1", "kind": "Job", **{key: each["metadata"][key] for key in ("name", "uid")}}
        for each in live
    ]
    objects = [program, *_objects("policies", found.scope)]
    return [{**each, "metadata": {**each["metadata"], "ownerReferences": owners}} for each in objects]


def _objects(template: str, scope: Mapping[str, Any]) -> list[Object]:
    return list(yaml.load_all(environment().get_template(f"grow/{template}.yaml.j2").render(scope), yaml.CSafeLoader))
