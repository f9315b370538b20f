"""Documentation of the action `keep_replicas`."""

DOCUMENTATION = r"""
module: keep_replicas
short_description: Keep the workers of a pool that changes from a fixed size to autoscaling
author: The nativelink-gitops authors (!UNKNOWN)
description:
  - The manifest of such a pool loses C(replicas). If the GitOps engine were the only owner of the field, the API server
    would set it to 1. This module owns the current number until the autoscaler takes over.
  - The variables of the host say which pools are autoscaled.
extends_documentation_fragment: [nativelink.gitops.cluster]
options: {}
"""

EXAMPLES = r"""
- name: Keep the running replicas of pools that get an autoscaler
  nativelink.gitops.keep_replicas:
"""

RETURN = r"""
cluster_summary:
  description: One line for each pool that keeps its replicas, for the section C(connected) of the closing summary.
  returned: success
  type: dict
"""
