"""Documentation of the action `status`."""

DOCUMENTATION = r"""
module: status
short_description: Tell what all clusters run and do now
author: The nativelink-gitops authors (!UNKNOWN)
description:
  - Asks the API servers of all hosts of the play in parallel, and through them each bundled Prometheus. Use it with
    C(run_once). Changes nothing.
  - A cluster that cannot be asked in time does not fail the task, so that all of the others are shown.
options:
  timeout:
    description: Seconds within which each cluster has to tell all.
    type: float
    default: 8
  prometheus_url:
    description: URL of a Prometheus that has the series and alerts of all clusters, instead of the bundled ones.
    type: str
    default: ""
  file:
    description: File that gets the result as JSON.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Tell what all clusters run and do now
  nativelink.gitops.status:
  run_once: true
"""

RETURN = r"""
clusters:
  description:
    - What is known of each cluster, by its name. The keys are C(version), C(engine), C(pools), C(queued),
      C(executing), C(room), C(alerts), C(verified), C(unmatched) and C(trouble); an unknown value is null.
    - C(error) says why something is missing.
  returned: always
  type: dict
silent:
  description: The names of the clusters that have C(error).
  returned: always
  type: list
  elements: str
report:
  description: The same as lines of text, which the closing summary shows.
  returned: always
  type: list
  elements: str
"""
