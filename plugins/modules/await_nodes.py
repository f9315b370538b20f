"""Documentation of the action `await_nodes`."""

DOCUMENTATION = r"""
module: await_nodes
short_description: Wait for a DaemonSet whose pods may be unable to work on some nodes
author: The nativelink-gitops authors (!UNKNOWN)
description:
  - Waits until each pod of the DaemonSet is ready or has said why it is not.
  - A pod says so in the last line of its log, which begins with C(<node>:) and the word C(not).
  - A node whose pod is not ready is reported as a notice; the task does not fail.
  - In check mode there is nothing to wait for.
extends_documentation_fragment: [nativelink.gitops.cluster, nativelink.gitops.cluster.object]
options:
  timeout:
    description: Longest time to wait, in seconds.
    type: int
    required: true
  what:
    description: What the DaemonSet does. Each line of the summary begins with it.
    required: true
"""

EXAMPLES = r"""
- name: Wait for the nodes
  nativelink.gitops.await_nodes:
    namespace: nativelink-node-agent
    name: node-agent
    timeout: 120
    what: node agent
"""

RETURN = r"""
cluster_summary:
  description: How many nodes are ready, for the section C(provisioned) of the closing summary.
  returned: success, except in check mode
  type: dict
notices:
  description: One line for each node whose pod is not ready, by cluster.
  returned: success, except in check mode
  type: dict
"""
