"""Action `check_secrets`: Git holds no Secret, so those that the tree names are the user's to make.

Said before the pods wait for them. The value of a Secret goes no further than this process: no result holds one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plugin adjacent to playbooks has no package of its own

from nativelink_gitops import cluster
from nativelink_gitops.apply import ApplyAction
from nativelink_gitops.templating import host_values


class ActionModule(ApplyAction):
    """Arguments: `kubeconfig`, `context`. Which Secrets there are to be, the cluster's variables say."""

    def act(self) -> dict[str, Any]:
        """Ask for each, and say which are missing."""
        missing = [
            f"make the Secret {each['namespace']}/{each['name']}: {each['what']}, which the tree names"
            for each in cluster.resolved(host_values(self._task_vars, self._loader))["secrets"]
            if self._api.read("v1", "Secret", each["name"], each["namespace"]) is None
        ]
        return {"changed": False, "cluster_summary": {"next": missing}}
