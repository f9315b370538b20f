"""Documentation of the action `check_cluster`."""

DOCUMENTATION = r"""
module: check_cluster
short_description: Check that a cluster can be worked with
author: The nativelink-gitops authors (!UNKNOWN)
description:
  - Asks the API server that the variables of the host name whether it answers, is recent enough and has what the
    variables ask for.
  - Fails for this host only, with one line for each fault. Changes nothing.
  - Takes no arguments. Everything comes from the variables of the host.
options: {}
"""

EXAMPLES = r"""
- name: Check that the API server answers
  nativelink.gitops.check_cluster:
"""

RETURN = r"""
msg:
  description: The faults, one on each line.
  returned: failure
  type: str
notices:
  description: What the user should know, by cluster.
  returned: if there is something
  type: dict
"""
