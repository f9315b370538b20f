"""Finds all errors in the inventory, in all clusters at once. Does not depend on Ansible.

A rule is a function that yields (variable, problem, remedy). It reads the values of one cluster that have a valid
type, format and range. A rule that reads any other value ends, and takes part when the user has corrected the value.
"""

from collections.abc import Mapping

from ..findings import Finding
from ..specs import Values
from . import kubernetes, rules
from .across import shared_clusters, shared_paths, shared_queues
from .notices import NOTICES
from .types import apply_rule, checked

RULES = (*rules.RULES, *kubernetes.RULES)


def static_findings(clusters: Mapping[str, Values]) -> list[Finding]:
    """All errors of all clusters, sorted by cluster and variable.

    `clusters` maps a cluster's name to its effective values (specs.effective) and to all other variables that its
    inventory sets, whose names are checked for misspellings.
    """
    faults: list[Finding] = []
    valid: dict[str, Values] = {}
    for cluster, variables in clusters.items():
        values, findings = checked({**variables, "cluster": cluster})
        valid[cluster] = values
        faults += [Finding(cluster, *finding) for finding in findings]
        for rule in RULES:
            faults += [Finding(cluster, *finding) for finding in apply_rule(rule, values)]
    for rule_across in (shared_clusters, shared_queues, shared_paths):
        faults += rule_across(valid)
    return sorted(faults)


def notices(values: Values) -> list[str]:
    """Lines for the summary about settings of a valid cluster that are legal but may surprise."""
    found = [finding for rule in NOTICES for finding in apply_rule(rule, values)]
    return [f"{variable}: {problem}; {remedy}" for variable, problem, remedy in found]
