"""Documentation of the action `take_over`."""

DOCUMENTATION = r"""
module: take_over
short_description: Give the tree of a cluster to another GitOps engine
author: The nativelink-gitops authors (!UNKNOWN)
description:
  - Deletes what pointed other engines at the tree, and makes the new engine the owner of the fields that they applied.
    What runs stays as it is.
  - An object whose deletion would delete NativeLink too is refused.
extends_documentation_fragment: [nativelink.gitops.cluster]
options:
  engine:
    description: Engine that takes the tree. It is a key of O(engines).
    required: true
  name:
    description: Name of the objects that point an engine at the tree.
    required: true
  namespaces:
    description: Namespaces of the tree's objects.
    type: list
    elements: str
    required: true
  kinds:
    description: Kinds of the tree's objects, each with C(group), C(kind) and C(resource).
    type: list
    elements: dict
    required: true
  engines:
    description:
      - Engines by name.
      - C(manager) is the field manager of the engine.
      - C(pointers) lists what points the engine at the tree, each with C(api_version) and C(kind). The last one is
        deleted
        last, because it does nothing alone.
      - C(rest) lists what else was made for the engine, each with C(api_version), C(kind), C(name), and C(namespace)
        where
        that is not the namespace of the pointers.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Take the tree from Argo CD
  nativelink.gitops.take_over:
    engine: flux
    name: nativelink-prod
    namespaces: [nativelink, nativelink-workers]
    kinds:
      - {group: apps, kind: Deployment, resource: deployments}
    engines:
      flux:
        manager: kustomize-controller
        pointers:
          - {api_version: kustomize.toolkit.fluxcd.io/v1, kind: Kustomization}
        rest: []
      argocd:
        manager: argocd-controller
        pointers:
          - {api_version: argoproj.io/v1alpha1, kind: Application}
        rest: []
"""

RETURN = r"""
cluster_summary:
  description: Which engines the tree was taken from, for the section C(connected) of the closing summary.
  returned: when another engine had the tree
  type: dict
"""
