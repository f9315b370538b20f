"""Action `check_secrets`: lists the Secrets that the user still has to make, because Git holds no Secrets.

The value of a Secret stays in this process: no result holds one.
"""

from typing import Any

from ..plugin_utils.apply import ApplyAction
from ..plugin_utils.derived import wanted_secrets


class ActionModule(ApplyAction):
    """Reports the Secrets that do not exist."""

    def _act_on_cluster(self) -> dict[str, Any]:
        wanted = self._args["secrets"]
        if wanted is None:
            wanted = wanted_secrets(self.host_values())
        missing = [
            f"make the Secret {each['namespace']}/{each['name']}: {each['what']}"
            for each in wanted
            if self._api.read("v1", "Secret", each["name"], each["namespace"]) is None
        ]
        return {"cluster_summary": {"next": missing}}
