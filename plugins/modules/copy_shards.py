"""Documentation of the action `copy_shards`."""

DOCUMENTATION = r"""
module: copy_shards
short_description: Copy content between CAS pods before their number changes
author: The nativelink-gitops authors (!UNKNOWN)
description:
  - While C(nativelink_cas_shards_next) is set, this copies what is going to belong to another pod, with a Job
    beside the volume of each pod, and waits for the Jobs. What a pod has already is not sent again.
  - It refuses to begin before all pods of NativeLink write what moves to both its old and its new pod.
  - Without C(nativelink_cas_shards_next) there is nothing to copy.
  - In check mode it only checks whether the copy could begin.
extends_documentation_fragment: [nativelink.gitops.cluster]
options:
  timeout:
    description: Longest time that the Jobs may take, in seconds. They are removed afterwards, and another run goes on.
    type: int
    default: 86400
"""

EXAMPLES = r"""
- name: Copy what moves
  nativelink.gitops.copy_shards:
"""

RETURN = r"""
cluster_summary:
  description: What was copied from each pod, and what to do next, as lines for the closing summary.
  returned: success
  type: dict
"""
