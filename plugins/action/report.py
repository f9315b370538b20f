"""Action `report`: adds lines to a cluster's part of the closing summary."""

from typing import Any

from ..plugin_utils.action import Action


class ActionModule(Action):
    """Returns its arguments as `cluster_summary`, which the callback cluster_summary collects."""

    def _act(self) -> dict[str, Any]:
        kept = {section: [line for line in found if line] for section, found in self._args.items()}
        return {"changed": False, "cluster_summary": {section: found for section, found in kept.items() if found}}
