"""Action `apply_objects`: applies objects server-side; in check mode also objects whose kind does not exist yet."""

from typing import Any

from ..plugin_utils.api import Object
from ..plugin_utils.apply import ApplyAction
from ..plugin_utils.release import identity


class ActionModule(ApplyAction):
    """Applies the objects, and refuses a change that Kubernetes cannot make."""

    def _act_on_cluster(self) -> dict[str, Any]:
        wanted = self._args["objects"]
        outdated = [each for each in wanted if self._differences(each)] if self._args["immutable"] else []
        refused = [each for each in outdated if each["metadata"]["name"] not in self._args["allow_recreate"]]
        if refused:
            self.refuse(
                self._args["variable"],
                " | ".join(f"{identity(each)} differs in {', '.join(self._differences(each))}" for each in refused)
                + ", which Kubernetes cannot change",
                f"give it a new name, or name it in {self._args['allow_recreate_variable']} to have it deleted and "
                "made again",
            )
        if self._task.check_mode:  # the API server would refuse the dry run
            wanted = [each for each in wanted if each not in outdated]
        else:
            for each in outdated:
                self._api.delete(each)
        self._changed = bool(outdated)
        self.apply(wanted, self._args["variable"], self._args["remedy"])
        summary = {each: self._args[each] for each in ("provisioned", "connected", "next") if self._args[each]}
        return {"cluster_summary": summary}

    def _differences(self, wanted: Object) -> list[str]:
        """The immutable fields in which the live object differs from `wanted`."""
        live = self._api.live(wanted)
        if live is None:
            return []
        return [each for each in self._args["immutable"] if (live.get(each) or None) != (wanted.get(each) or None)]
