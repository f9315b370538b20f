"""Action `report`: adds lines to a cluster's part of the closing summary."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ..modules import report
from ..plugin_utils.arguments import argument_spec


class ActionModule(ActionBase):
    """Returns its arguments as `cluster_summary`, which the callback cluster_summary collects."""

    ARGUMENTS = argument_spec(report.DOCUMENTATION)
    TRANSFERS_FILES = False
    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Check the arguments and pass them on."""
        super().run(tmp, task_vars)
        _unused, lines = self.validate_argument_spec(argument_spec=self.ARGUMENTS)
        kept = {section: [line for line in found if line] for section, found in lines.items()}
        return {"changed": False, "cluster_summary": {section: found for section, found in kept.items() if found}}
