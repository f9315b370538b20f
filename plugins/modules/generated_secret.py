"""Documentation of the action `generated_secret`."""

DOCUMENTATION = r"""
module: generated_secret
short_description: Make a Secret with a random value, once
author: The nativelink-gitops authors (!UNKNOWN)
description:
  - Creates a Secret whose value has 43 URL-safe characters, which hold 256 random bits. An existing Secret stays as
    it is.
  - The value reaches no variable, log or temporary file of Ansible.
extends_documentation_fragment: [nativelink.gitops.cluster, nativelink.gitops.cluster.object]
options:
  key:
    description: Key that holds the value.
    required: true
  labels:
    description: Labels of the Secret.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Make the password of Redis
  nativelink.gitops.generated_secret:
    namespace: nativelink
    name: nativelink-redis
    key: password
"""

RETURN = r"""
changed:
  description: Whether the Secret was created.
  returned: success
  type: bool
"""
