"""Documentation of the action `check_secrets`."""

DOCUMENTATION = r"""
module: check_secrets
short_description: Report the Secrets that the user still has to make
author: The nativelink-gitops authors (!UNKNOWN)
description:
  - Looks for Secrets that the manifests name and that only the user can make, because Git holds none.
  - Those that are missing are reported in the closing summary; the task does not fail. No value of a Secret is
    returned.
extends_documentation_fragment: [nativelink.gitops.cluster]
options:
  secrets:
    description:
      - Secrets to look for, each with C(namespace), C(name) and C(what) it is.
      - Without this option they are those that the tree of the cluster names.
    type: list
    elements: dict
"""

EXAMPLES = r"""
- name: Look for the credentials of the repository
  nativelink.gitops.check_secrets:
    secrets:
      - namespace: flux-system
        name: git-credentials
        what: the credentials of the Git repository
"""

RETURN = r"""
cluster_summary:
  description: One line for each missing Secret, for the section C(next) of the closing summary.
  returned: success
  type: dict
"""
