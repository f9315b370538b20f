"""Action `check_cluster`: checks that a cluster can be worked with. A fault stops only its own cluster."""

from typing import Any

from ..plugin_utils import live
from ..plugin_utils.action import Action


class ActionModule(Action):
    """Asks the API server. The `msg` of a failure has a line for each fault; `notices` by cluster are no faults."""

    def _act(self) -> dict[str, Any]:
        values = self.host_values()
        faults, notices = live.live_findings(values)
        failure = {"failed": True, "msg": "\n".join(map(str, faults))} if faults else {}
        return {"changed": False, **failure, **({"notices": {values["cluster"]: notices}} if notices else {})}
