"""Action `check_cluster`: checks that a cluster can be worked with. A fault stops only its own cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.plugins.action import ActionBase

from ..modules import check_cluster
from ..plugin_utils import live
from ..plugin_utils.arguments import argument_spec
from ..plugin_utils.templating import host_values


class ActionModule(ActionBase):
    """Asks the API server. The `msg` of a failure has a line for each fault; `notices` by cluster are no faults."""

    ARGUMENTS = argument_spec(check_cluster.DOCUMENTATION)
    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Check the cluster of this host."""
        result = super().run(tmp, task_vars)
        self.validate_argument_spec(argument_spec=self.ARGUMENTS)
        result["changed"] = False
        faults, notices = live.live_findings(host_values(task_vars, self._loader))
        if faults:
            result.update(failed=True, msg="\n".join(map(str, faults)))
        if notices:
            result["notices"] = {task_vars["inventory_hostname"]: notices}
        return result
