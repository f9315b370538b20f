"""Compares the objects of a cluster's tree with the Kubernetes API's schemas, for a cluster without other faults."""

from collections.abc import Iterator

from . import render
from .findings import Finding
from .quantities import KubernetesVersion
from .specs import Values
from .validation.schemas import known_since, shipped_version, text_findings


def object_findings(values: Values) -> Iterator[Finding]:
    """Yield what the oldest accepted API server would refuse in a cluster's tree."""
    cluster, minimum = values["cluster"], values["preflight_minimum_kubernetes"]
    too_old: dict[KubernetesVersion, str] = {}
    for path, text in render.objects(values):
        for finding in text_findings(shipped_version(minimum), text):
            if since := known_since(finding, lambda version, text=text: text_findings(version, text), minimum):
                too_old.setdefault(since, f"{path}: {finding[0]}")
            else:
                yield Finding(cluster, f"rendered/{path}: {finding[0]}", *finding[1:])
    if too_old:
        since = max(too_old)
        problem = f"is {minimum}, which does not know {too_old[since]}"
        yield Finding(cluster, "preflight_minimum_kubernetes", problem, f'write "{since}" or newer')
