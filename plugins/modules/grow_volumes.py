"""Documentation of the action `grow_volumes`."""

DOCUMENTATION = r"""
module: grow_volumes
short_description: Grow the volumes of the CAS
author: The nativelink-gitops authors (!UNKNOWN)
description:
  - If C(nativelink_cas_volume_size) is more than the running StatefulSet says, this grows the claims of all CAS pods,
    and replaces the StatefulSet by one that differs in that only. The pods keep running.
  - The StorageClass has to expand volumes.
extends_documentation_fragment: [nativelink.gitops.cluster]
options: {}
"""

EXAMPLES = r"""
- name: Grow the volumes
  nativelink.gitops.grow_volumes:
"""

RETURN = r"""
cluster_summary:
  description: What was grown, and what to do next, as lines for the closing summary.
  returned: changed
  type: dict
"""
