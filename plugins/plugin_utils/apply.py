"""The common part of the actions that work on a cluster: connection, server-side apply, errors and results."""

from collections.abc import Sequence
from typing import Any, NoReturn

from ansible.errors import AnsibleActionFail

from .action import Action
from .api import Api, ApiError, Object, RefusedError
from .release import FIELD_MANAGER, identity


class ApplyAction(Action):
    """An action on one cluster: that of the task's host, unless the arguments `kubeconfig` and `context` name another.

    A subclass acts in `_act_on_cluster`, with `_api` for the cluster, and returns what its result has beside `changed`
    and the differences of what it applied. The module extends the documentation fragment `cluster`. A cluster that
    cannot be asked fails the task with a message.
    """

    def _act(self) -> dict[str, Any]:
        self._cluster = self._task_vars.get("inventory_hostname", "localhost")
        self._changed, self._diff = False, []
        try:
            self._api = Api(self._argument("kubeconfig"), self._argument("context"))
            result = self._act_on_cluster()
        except ApiError as error:
            self.refuse(error.variable, f"{self._task.name}: {error}", error.remedy)
        more = {"diff": self._diff, "warnings": self._api.warnings}
        return {"changed": self._changed, **result, **{name: found for name, found in more.items() if found}}

    def _argument(self, name: str) -> str:
        """An argument that names the cluster, or else the variable of the host."""
        variable = f"cluster_{name}"
        if not self._args[name] and variable not in self._task_vars:
            self.refuse(variable, "is not set", "set it for this host in the inventory")
        return self._args[name] or str(self._templar.template(self._task_vars[variable]))

    def _act_on_cluster(self) -> dict[str, Any]:
        raise NotImplementedError

    def refuse(self, variable: str, problem: str, remedy: str) -> NoReturn:
        """Fail the task with a message of the form that all messages of this project have."""
        raise AnsibleActionFail(f"{self._cluster}: {variable}: {problem}; {remedy}")

    def _is_possible(self, wanted: Object) -> bool:
        """Return whether the API server can be asked about an object: its kind and its namespace exist."""
        namespace = wanted["metadata"].get("namespace")
        if self._api.kind(wanted["apiVersion"], wanted["kind"]) is None:
            return False
        return not namespace or self._api.read("v1", "Namespace", namespace) is not None

    def apply(self, wanted: Sequence[Object], variable: str, remedy: str) -> None:
        """Apply objects server-side as our field manager, one after another, also after one that was refused.

        In check mode the API server says what it would do. An object that it cannot be asked about, because the
        object's kind or namespace does not exist yet, counts as a change. The API server refuses to change a field
        that another manager owns; the message of the failed task then names that manager and `remedy`.
        """
        errors = []
        for each in wanted:
            try:
                self._apply_one(each)
            except RefusedError as error:
                errors.append(f"{identity(each)}: {error.message}")
        if errors:
            self.refuse(variable, " | ".join(errors), remedy)

    def _apply_one(self, wanted: Object) -> None:
        check = self._task.check_mode
        if check and not self._is_possible(wanted):
            before, after = {}, wanted
        else:
            before = _lasting(self._api.live(wanted) or {})
            after = _lasting(self._api.apply(wanted, FIELD_MANAGER, dry_run=check))
        if before != after:
            self._changed = True
            if self._task.diff and wanted["kind"] != "Secret":
                header = identity(wanted)
                self._diff += [{"before_header": header, "after_header": header, "before": before, "after": after}]


# The API server stores some objects anew without a difference, and controllers write a status at any time.
_FLEETING = ("managedFields", "generation", "resourceVersion")


def _lasting(live: Object) -> Object:
    """An object without its status and what the API server notes on each write."""
    metadata = {key: value for key, value in live.get("metadata", {}).items() if key not in _FLEETING}
    return {key: value for key, value in live.items() if key != "status"} | ({"metadata": metadata} if live else {})
