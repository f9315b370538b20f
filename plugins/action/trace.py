"""Action `trace`: finds an action, or the actions of a build, in all clusters. Runs once for all hosts."""

from functools import partial
from typing import Any

from ansible.errors import AnsibleActionFail

from ..plugin_utils import farm, reapi, trace
from ..plugin_utils.action import Action


class ActionModule(Action):
    """Asks all clusters of the play side by side, because a build does not say where its actions ran."""

    def _act(self) -> dict[str, Any]:
        if reapi.MISSING:
            raise AnsibleActionFail(f"the Python package {reapi.MISSING} is missing; install meta/requirements.txt")
        wanted = self._args["action"].strip().lower()
        if not trace.is_known(wanted):
            problem = "is neither the digest of an action (HASH/SIZE) nor the ID of an invocation of Bazel"
            raise AnsibleActionFail(f"trace_action: {self._args['action']} {problem}; copy it from the client's log")
        found = farm.asked(self.play_values(), partial(trace.ask, wanted=wanted), self._args["timeout"])
        lines = [f"{name}: {line}" for name, each in sorted(found.items()) for line in each.get("lines", ())]
        errors = [f"{name}: {each['error']}" for name, each in sorted(found.items()) if "error" in each]
        unknown = [] if lines else [f"no cluster knows {wanted}"]
        return {"changed": False, "found": bool(lines), "report": [*lines, *errors, *unknown]}
