"""Options that several modules have."""


class ModuleDocFragment:
    """The options that name the cluster; with `.object` those that name an object, with `.summary` lines to report."""

    DOCUMENTATION = r"""
options:
  kubeconfig:
    description: File with the API server's credentials. The default is the variable C(cluster_kubeconfig) of the host.
  context:
    description: Context in O(kubeconfig). The default is the variable C(cluster_context) of the host.
"""
    OBJECT = r"""
options:
  namespace:
    description: Namespace of the object.
    required: true
  name:
    description: Name of the object.
    required: true
"""
    SUMMARY = r"""
options:
  provisioned:
    description: What was provisioned, as lines for the closing summary.
    type: list
    elements: str
    default: []
  connected:
    description: What was connected, as lines for the closing summary.
    type: list
    elements: str
    default: []
  next:
    description: What the user has to do next, as lines for the closing summary.
    type: list
    elements: str
    default: []
"""
