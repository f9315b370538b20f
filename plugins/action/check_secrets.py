"""Action `check_secrets`: lists the Secrets that the user still has to make, because Git holds no Secrets.

The value of a Secret stays in this process: no result holds one.
"""

from __future__ import annotations

from typing import Any

from ..modules import check_secrets
from ..plugin_utils.apply import ApplyAction
from ..plugin_utils.arguments import argument_spec
from ..plugin_utils.derived import wanted_secrets
from ..plugin_utils.templating import host_values


class ActionModule(ApplyAction):
    """Reports the Secrets that do not exist."""

    ARGUMENTS = argument_spec(check_secrets.DOCUMENTATION)

    def act(self) -> dict[str, Any]:
        """Report those that do not exist."""
        wanted = self._args["secrets"]
        if wanted is None:
            wanted = wanted_secrets(host_values(self._task_vars, self._loader))
        missing = [
            f"make the Secret {each['namespace']}/{each['name']}: {each['what']}"
            for each in wanted
            if self._api.read("v1", "Secret", each["name"], each["namespace"]) is None
        ]
        return {"changed": False, "cluster_summary": {"next": missing}}
