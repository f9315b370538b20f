"""Documentation of the action `report`."""

DOCUMENTATION = r"""
module: report
short_description: Add lines to the closing summary of a cluster
author: The nativelink-gitops authors (!UNKNOWN)
description:
  - Returns its arguments for the callback P(nativelink.gitops.cluster_summary#callback). Empty lines are left out.
  - Changes nothing.
extends_documentation_fragment: [nativelink.gitops.cluster.summary]
options:
  rendered:
    description: What was rendered.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Say what to do next
  nativelink.gitops.report:
    next: [push the tree]
"""

RETURN = r"""
cluster_summary:
  description: The lines, by section.
  returned: success
  type: dict
"""
