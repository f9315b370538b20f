"""Documentation of the action `verify`."""

DOCUMENTATION = r"""
module: verify
short_description: Check that a live cluster does what its tree says
author: The nativelink-gitops authors (!UNKNOWN)
description:
  - Acts as a client of the cluster, through its edge or by C(kubectl port-forward), and asks its API server and its
    bundled Prometheus. All checks run, also after one that fails.
  - Leaves some entries in the cache, and changes nothing else. In check mode it does the same.
extends_documentation_fragment: [nativelink.gitops.cluster]
options:
  address:
    description:
      - Host and port of the edge, V(port-forward), or V(services) in a pod of the cluster, which asks no API server.
        The default is C(nativelink_hostname) or else the address of the Gateway, and V(port-forward) for a cluster
        without an edge.
    default: ""
  certificates_dir:
    description:
      - Folder with C(ca.crt), which the edge's certificate is checked with, and with the certificate of O(client).
        Without C(ca.crt) the public authorities count. The default is C(~/.nativelink) and the cluster's name, where
        the playbook C(certificates) writes.
    default: ""
  client:
    description: Name of the client's certificate and key, C(NAME.crt) and C(NAME.key). They need not exist.
    default: client
  headers:
    description: Headers of each call, such as a token. Keep them in a vault or in the environment.
    type: dict
    default: {}
  role:
    description: What the client may do by C(nativelink_edge_access), or V(execute) if that is empty.
    choices: [read, execute, write]
    default: execute
  timeout:
    description: Longest time in seconds that an action may take, with the start of its worker, or a large blob.
    type: int
    default: 600
  megabytes:
    description: Size of the large blob in MiB.
    type: int
    default: 100
"""

EXAMPLES = r"""
- name: Check the farm
  nativelink.gitops.verify:
    headers: {authorization: "Bearer {{ lookup('ansible.builtin.env', 'TOKEN') }}"}
    role: write
"""

RETURN = r"""
cluster_summary:
  description: The checks, each V(ok), V(FAILED) or V(skipped) with what it saw, as lines for the closing summary.
  returned: always
  type: dict
msg:
  description: The checks that failed, one on each line.
  returned: failure
  type: str
"""
