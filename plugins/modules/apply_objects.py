"""Documentation of the action `apply_objects`."""

DOCUMENTATION = r"""
module: apply_objects
short_description: Apply Kubernetes objects server-side
author: The nativelink-gitops authors (!UNKNOWN)
description:
  - Applies objects as the field manager C(nativelink-gitops) and never takes a field from another manager.
  - In check mode the API server says what it would change. An object whose kind or namespace does not exist yet counts
    as a change.
extends_documentation_fragment: [nativelink.gitops.cluster, nativelink.gitops.cluster.summary]
options:
  objects:
    description: Complete manifests.
    type: list
    elements: dict
    required: true
  immutable:
    description:
      - Top-level fields that Kubernetes cannot change.
      - An object that differs in one of them is refused, unless O(allow_recreate) has its name.
    type: list
    elements: str
    default: []
  allow_recreate:
    description: Names of the objects that may be deleted and created again where a field of O(immutable) differs.
    type: list
    elements: str
    default: []
  allow_recreate_variable:
    description: Variable that holds O(allow_recreate), for the message.
    default: ""
  variable:
    description: Variable that the message names if the API server refuses an object.
    required: true
  remedy:
    description: What the user can do if the API server refuses an object, for the message.
    required: true
"""

EXAMPLES = r"""
- name: Make a namespace
  nativelink.gitops.apply_objects:
    objects:
      - apiVersion: v1
        kind: Namespace
        metadata:
          name: nativelink
    variable: nativelink_namespace
    remedy: give nativelink_namespace another name
"""

RETURN = r"""
cluster_summary:
  description: Lines for the closing summary, by section.
  returned: success
  type: dict
"""
