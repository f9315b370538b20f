"""Documentation of the action `trace`."""

DOCUMENTATION = r"""
module: trace
short_description: Find who ran an action, or why it waits
author: The nativelink-gitops authors (!UNKNOWN)
description:
  - Asks all hosts of the play in parallel for an action, in the logs of schedulers and workers, the action cache and
    the CAS. Use it with C(run_once). Changes nothing.
options:
  action:
    description: Digest of the action, as C(HASH/SIZE) or its hash alone, or the ID of an invocation of Bazel.
    type: str
    required: true
  timeout:
    description: Seconds within which each cluster has to tell all.
    type: float
    default: 30
"""

EXAMPLES = r"""
- name: Find who ran an action
  nativelink.gitops.trace:
    action: 2a6a6f0432ba8173a6fb385e1de02c0b305a8e263e39188cb10f24a79f3c54e7/141
  run_once: true
"""

RETURN = r"""
found:
  description: Whether a cluster knows it.
  returned: success
  type: bool
report:
  description: What the clusters know, as lines of text, which the closing summary shows.
  returned: success
  type: list
  elements: str
"""
