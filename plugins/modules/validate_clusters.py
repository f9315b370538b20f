"""Documentation of the action `validate_clusters`."""

DOCUMENTATION = r"""
module: validate_clusters
short_description: Find every fault in the variables of all clusters
author: The nativelink-gitops authors (!UNKNOWN)
description:
  - Checks the variables of all hosts at once, including what would break a running cluster. Use it with C(run_once).
  - Hosts outside of C(--limit) count only where a cluster within it collides with them.
  - Needs no cluster and changes nothing.
options:
  stale_digests:
    description: Whether C(host_vars/CLUSTER/digests.yml) may have digests of other images than those of the cluster.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Check the variables of all clusters
  nativelink.gitops.validate_clusters:
  run_once: true
"""

RETURN = r"""
faults:
  description: One line for each fault, with cluster, variable, problem and fix.
  returned: failure
  type: list
  elements: str
msg:
  description: All faults, one on each line.
  returned: failure
  type: str
notices:
  description: What the user should know, by cluster.
  returned: success
  type: dict
"""
