"""Documentation of the action `pin_images`."""

DOCUMENTATION = r"""
module: pin_images
short_description: Write the digests of a cluster's images into its inventory
author: The nativelink-gitops authors (!UNKNOWN)
description:
  - Finds the digest of each image that the cluster runs, and writes those that have a variable for it into
    C(host_vars/CLUSTER/digests.yml) beside the inventory. Each line has its image in a comment.
  - The closing summary says which digests the user has to set, because the image is one of a pool's own.
  - An image whose name has a digest already is left out. So is the proxies' image (C(ingress_envoy_image)).
  - Asks registries without a login. Everything but the digests comes from the variables of the host.
  - In check mode nothing is written. With C(--diff) the differences are shown.
options:
  file:
    description:
      - File with a line C(IMAGE:TAG@sha256:…) for each image, which is read in place of the registries.
      - A relative path starts at the working directory.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Pin the images by digest
  nativelink.gitops.pin_images:
    file: digests.txt
"""

RETURN = r"""
cluster_summary:
  description: Lines for the closing summary, by section.
  returned: success
  type: dict
"""
