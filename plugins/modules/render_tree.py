"""Documentation of the action `render_tree`."""

DOCUMENTATION = r"""
module: render_tree
short_description: Write the manifests of a cluster
author: The nativelink-gitops authors (!UNKNOWN)
description:
  - Renders the manifests of a cluster into its folder in the folder that the variable C(nativelink_clusters_dir)
    names and writes the files that differ.
  - Takes no arguments. Everything comes from the variables of the host. Needs no cluster.
  - In check mode nothing is written. With C(--diff) the differences are shown.
options: {}
"""

EXAMPLES = r"""
- name: Render the tree that Git syncs
  nativelink.gitops.render_tree:
"""

RETURN = r"""
created:
  description: New files, relative to the folder of the cluster.
  returned: success
  type: list
  elements: str
changed_files:
  description: Files that have changed, relative to the folder of the cluster.
  returned: success
  type: list
  elements: str
removed:
  description: Files that were removed, relative to the folder of the cluster.
  returned: success
  type: list
  elements: str
cluster_summary:
  description: Lines for the closing summary, by section.
  returned: success
  type: dict
"""
