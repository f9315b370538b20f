"""What the actions that write to a cluster have in common: server-side apply in one module call, and its errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from .api import Api, ApiError, Object, server_message
from .release import FIELD_MANAGER, identity

CONNECTION = {"kubeconfig": {"type": "path", "required": True}, "context": {"type": "str", "required": True}}


# What the module says of objects that the API server stores anew without a difference; some large kinds are such.
_NO_WARNING = "No meaningful diff"


@dataclass
class Applied:
    """What came of applying objects: how many changed, how they differ, what the API server warned of."""

    changed: int = 0
    diff: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[Any] = field(default_factory=list)

    def add(self, other: Applied) -> None:
        """Count `other` in."""
        self.changed += other.changed
        self.diff += other.diff
        self.warnings += other.warnings


class ApplyAction(ActionBase):
    """An action on one cluster, given by the arguments `kubeconfig` and `context`."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    ARGUMENTS: ClassVar[dict[str, Any]] = {}

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Do what the action does; a cluster that cannot be asked becomes a message."""
        super().run(tmp, task_vars)
        self._task_vars = task_vars or {}
        self._cluster = self._task_vars.get("inventory_hostname", "localhost")
        _, self._args = self.validate_argument_spec(argument_spec={**CONNECTION, **self.ARGUMENTS})
        try:
            self._api = Api(self._args["kubeconfig"], self._args["context"])
            return self.act()
        except ApiError as error:
            fix = "see that the API server answers and lets its user do that, then run again"
            self.refuse("cluster_context", f"{self._task.name}: {error}", fix)

    def act(self) -> dict[str, Any]:
        """The action itself: its result."""
        raise NotImplementedError

    def refuse(self, variable: str, problem: str, fix: str) -> NoReturn:
        """End the task with the message that all of the project's faults have."""
        raise AnsibleActionFail(f"{self._cluster}: {variable}: {problem}; {fix}")

    def _namespaced(self, wanted: Object, coming: dict[tuple[str, str], bool]) -> bool:
        key = (wanted["apiVersion"], wanted["kind"])
        return coming[key] if key in coming else self._api.kinds(key[0]).get(key[1], ("", False))[1]

    def _to_come(self, wanted: Object) -> bool:
        """Whether the API server cannot even be asked about an object: its kind or its namespace is not there."""
        namespace = wanted["metadata"].get("namespace")
        if wanted["kind"] not in self._api.kinds(wanted["apiVersion"]):
            return True
        return bool(namespace) and self._api.read("v1", "Namespace", namespace) is None

    def apply(self, wanted: Sequence[Object], variable: str, way_out: str) -> Applied:
        """Apply objects server-side as our field manager, in one module call.

        In check mode the API server is asked what it would do; what it cannot be asked about counts as a change.
        Another manager's field is never taken: the task fails, and the message names `way_out`.
        """
        applied = Applied()
        if self._task.check_mode:
            to_come = [each for each in wanted if self._to_come(each)]
            applied.changed = len(to_come)
            applied.diff = [
                {"before_header": identity(each), "after_header": identity(each), "before": {}, "after": each}
                for each in to_come
                if each["kind"] != "Secret"
            ]
            wanted = [each for each in wanted if each not in to_come]
        if not wanted:
            return applied
        answer = self._execute_module(
            module_name="kubernetes.core.k8s",
            module_args={
                "kubeconfig": self._args["kubeconfig"],
                "context": self._args["context"],
                "apply": True,
                "server_side_apply": {"field_manager": FIELD_MANAGER},
                "continue_on_error": True,
                "hidden_fields": ["metadata.managedFields"],
                "resource_definition": list(wanted),
            },
            task_vars=self._task_vars,
        )
        results = answer["result"]["results"] if "results" in (answer.get("result") or {}) else [answer]
        if answer.get("failed") or len(results) != len(wanted):
            self._api.get("/version")  # the module cannot say that the API server is away, and this does
            raise ApiError(
                server_message(answer.get("msg") or answer.get("module_stderr") or "the module gave no result")
            )
        errors = []
        for each, result in zip(wanted, results, strict=True):
            if result.get("error"):
                errors.append(f"{identity(each)}: {server_message(result['error'].get('msg', ''))}")
                continue
            applied.changed += bool(result.get("changed"))
            applied.warnings += [each for each in result.get("warnings") or [] if _NO_WARNING not in str(each)]
            if result.get("changed") and result.get("diff") and each["kind"] != "Secret":
                applied.diff.append({"before_header": identity(each), "after_header": identity(each), **result["diff"]})
        if errors:
            self.refuse(variable, " | ".join(errors), way_out)
        return applied

    def result(self, applied: Applied, **more: object) -> dict[str, Any]:
        """The task's result."""
        found: dict[str, Any] = {"changed": bool(applied.changed), **more}
        if applied.warnings:
            found["warnings"] = list({str(each): each for each in applied.warnings}.values())
        if self._task.diff and applied.diff:
            found["diff"] = applied.diff
        return found
