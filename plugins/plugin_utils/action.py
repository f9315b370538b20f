"""The common part of all actions: their arguments, and the values of the variables of their host."""

from importlib import import_module
from typing import Any

import yaml
from ansible.plugins.action import ActionBase

from ..doc_fragments.cluster import ModuleDocFragment
from .templating import host_values

_KEYS = ("type", "elements", "required", "choices", "default")


class Action(ActionBase):
    """An action whose arguments are those that the module of its name documents.

    A subclass acts in `_act`, which returns the task's result.
    """

    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Check the arguments, then act."""
        super().run(tmp, task_vars)
        self._task_vars = task_vars or {}
        module = import_module(type(self).__module__.replace(".action.", ".modules."))
        _unused, self._args = self.validate_argument_spec(argument_spec=_argument_spec(module.DOCUMENTATION))
        return self._act()

    def _act(self) -> dict[str, Any]:
        raise NotImplementedError

    def host_values(self) -> dict[str, Any]:
        """The effective values of the variables of the task's host."""
        return host_values(self._task_vars, self._loader)

    def play_values(self) -> dict[str, dict[str, Any]]:
        """The effective values of the variables of all hosts of the play, for a task that runs once."""
        hosts = map(str, self._task_vars["ansible_play_hosts_all"])
        return {name: host_values(self._task_vars["hostvars"].raw_get(name), self._loader) for name in hosts}


def _argument_spec(documentation: str) -> dict[str, Any]:
    """The argument spec of a module's DOCUMENTATION, and of the documentation fragments that it extends."""
    documented = yaml.load(documentation, yaml.CSafeLoader)
    options = documented["options"]
    for name in documented.get("extends_documentation_fragment", ()):
        part = name.removeprefix("nativelink.gitops.cluster").removeprefix(".").upper() or "DOCUMENTATION"
        options |= yaml.load(getattr(ModuleDocFragment, part), yaml.CSafeLoader)["options"]
    return {name: {key: option[key] for key in _KEYS if key in option} for name, option in options.items()}
