"""Action `status`: tells what all clusters run and do now. Runs once for all hosts."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from ..plugin_utils import farm, status
from ..plugin_utils.action import Action


class ActionModule(Action):
    """Asks all clusters of the play side by side, in one process: each process of Ansible takes a second to start."""

    def _act(self) -> dict[str, Any]:
        ask = partial(status.ask, url=self._args["prometheus_url"])
        found = farm.asked(self.play_values(), ask, self._args["timeout"])
        if file := self._args["file"]:
            Path(file).expanduser().write_text(json.dumps({"clusters": found}, indent=2) + "\n", encoding="utf-8")
        silent = sorted(name for name, each in found.items() if "error" in each)
        return {"changed": False, "clusters": found, "silent": silent, "report": status.table(found)}
