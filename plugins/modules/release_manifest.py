"""Documentation of the action `release_manifest`."""

DOCUMENTATION = r"""
module: release_manifest
short_description: Install or upgrade an upstream release from its manifest
author: The nativelink-gitops authors (!UNKNOWN)
description:
  - Reads a release's manifest, applies it server-side, and waits until it works.
  - The ConfigMap C(<name>-release) records what is installed. If that has not changed, only objects that
    differ from the manifest are applied again.
  - Refuses an installation that it did not make, a downgrade, and a manifest of another version than O(version).
  - Objects that a newer version no longer has stay in the cluster and are reported.
  - In check mode the API server says what it would change.
extends_documentation_fragment: [nativelink.gitops.cluster]
options:
  name:
    description: What is installed.
    required: true
  version:
    description: Version of the release.
    required: true
  namespace:
    description: Namespace of the record, and of namespaced objects whose manifest names none.
    required: true
  source:
    description: URL or local file of the manifest.
    required: true
  sha256:
    description: SHA-256 that the content of O(source) must have. Empty for no check.
    default: ""
  exclude:
    description: Objects to leave out, as patterns C(Kind/name) with the wildcards of a shell.
    type: list
    elements: str
    default: []
  replace:
    description: Objects to apply in place of those of the manifest that have the same kind and name.
    type: list
    elements: dict
    default: []
  prefix:
    description: Prefix of the variables that messages name.
    required: true
  existing:
    description: "Setting that uses an existing installation, for messages, such as C(keda_install: existing)."
    required: true
  timeout:
    description: Longest time of each wait, in seconds.
    type: int
    default: 300
  allow_downgrade:
    description: Whether a version older than the installed one may be installed.
    type: bool
    default: false
  wait_apiservices:
    description:
      - V(available) waits until the pods behind an APIService answer.
      - V(registered) is for clusters whose pods do not run.
    choices: [available, registered]
    default: available
"""

EXAMPLES = r"""
- name: Install KEDA
  nativelink.gitops.release_manifest:
    name: keda
    version: "{{ keda_version }}"
    namespace: keda
    source: "{{ keda_manifest }}"
    prefix: keda
    existing: "keda_install: existing"
"""

RETURN = r"""
msg:
  description: What was done to which version.
  returned: success
  type: str
cluster_summary:
  description: Lines for the closing summary, by section.
  returned: success
  type: dict
"""
