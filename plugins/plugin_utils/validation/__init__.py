"""Finds every fault that the inventory itself shows, in all clusters at once. Knows nothing of Ansible.

A rule is a function that yields (variable, problem, fix). It reads the values of one cluster after the types, the
formats and the ranges were found right: reading a faulty one ends the rule, whose turn comes when that is mended.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..findings import Finding
from ..specs import Values
from . import kubernetes, rules
from .across import shared_clusters, shared_queues
from .notices import NOTICES
from .schemas import object_findings
from .types import apply_rule, checked

RULES = (*rules.RULES, *kubernetes.RULES)


def static_findings(clusters: Mapping[str, Values]) -> list[Finding]:
    """All faults of all clusters, sorted by cluster and variable.

    `clusters` maps a cluster's name to its effective values (specs.effective) and whatever other variables its
    inventory sets: a name that no role knows is looked at for a misspelling.
    """
    faults: list[Finding] = []
    valid: dict[str, Values] = {}
    for cluster, variables in clusters.items():
        values, findings = checked({**variables, "cluster": cluster})
        valid[cluster] = values
        faults += [Finding(cluster, *finding) for finding in findings]
        for rule in RULES:
            faults += [Finding(cluster, *finding) for finding in apply_rule(rule, values)]
    faults += shared_clusters(valid)
    faults += shared_queues(valid)
    faulty = {fault.cluster for fault in faults}
    for cluster, values in valid.items():
        if cluster not in faulty:
            faults += [Finding(cluster, *finding) for finding in apply_rule(object_findings, values)]
    return sorted(faults)


def notices(values: Values) -> list[str]:
    """What is legal in a cluster without faults, and will still surprise: short lines for the summary."""
    return [f"{variable}: {problem}; {fix}" for rule in NOTICES for variable, problem, fix in apply_rule(rule, values)]
