"""Documentation of the action `repository_secret`."""

DOCUMENTATION = r"""
module: repository_secret
short_description: Apply a Secret whose values come from variables and files
author: The nativelink-gitops authors (!UNKNOWN)
description:
  - Takes the names of variables instead of their values, so that no argument, log or temporary file of a task holds
    one.
  - The Secret is applied server-side. Keys with an empty value are left out, and keys that are no longer given are
    removed.
extends_documentation_fragment: [nativelink.gitops.cluster, nativelink.gitops.cluster.object]
options:
  labels:
    description: Labels of the Secret.
    type: dict
    default: {}
  state:
    description: V(absent) deletes the Secret if this project made it.
    choices: [present, absent]
    default: present
  plain:
    description: Key to text, for values that are not confidential.
    type: dict
    default: {}
  values:
    description: Key to the name of the variable that holds the text.
    type: dict
    default: {}
  files:
    description: Key to the name of the variable that holds the path of a file.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Make the credentials of the repository
  nativelink.gitops.repository_secret:
    namespace: flux-system
    name: nativelink-prod-repository
    values:
      username: gitops_username
      password: gitops_password
"""

RETURN = r"""
changed:
  description: Whether the Secret was created, changed or deleted.
  returned: success
  type: bool
"""
