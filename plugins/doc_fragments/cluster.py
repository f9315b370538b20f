"""Documentation that the actions on a cluster share."""

from __future__ import annotations


class ModuleDocFragment:
    """The arguments that name the cluster."""

    DOCUMENTATION = r"""
options:
  kubeconfig:
    description: File with the API server's credentials. The default is the variable C(cluster_kubeconfig) of the host.
    type: str
  context:
    description: Context in O(kubeconfig). The default is the variable C(cluster_context) of the host.
    type: str
"""
