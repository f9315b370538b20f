"""Action `report`: adds lines to a cluster's part of the closing summary."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

SECTIONS = ("provisioned", "rendered", "connected", "next")


class ActionModule(ActionBase):
    """Returns its arguments as `cluster_summary`, which the callback cluster_summary collects. It changes nothing.

    Arguments: `provisioned`, `rendered`, `connected`, `next`: each a list of short lines; empty lines are left out.
    """

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Check the arguments and pass them on."""
        super().run(tmp, task_vars)
        _, lines = self.validate_argument_spec(
            argument_spec={section: {"type": "list", "elements": "str", "default": []} for section in SECTIONS}
        )
        kept = {section: [line for line in lines[section] if line] for section in SECTIONS}
        return {"changed": False, "cluster_summary": {section: found for section, found in kept.items() if found}}
