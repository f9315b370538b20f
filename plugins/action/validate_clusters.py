"""Action `validate_clusters`: every fault of every cluster's variables, at once. Runs once for all hosts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.plugins.action import ActionBase

from ..plugin_utils import change_guard, validation
from ..plugin_utils.templating import host_values

# What Ansible itself puts among a host's variables.
_MAGIC = {"environment", "group_names", "groups", "inventory_dir", "inventory_file", "inventory_hostname"}
_MAGIC |= {"inventory_hostname_short", "omit", "playbook_dir", "role_names", "play_hosts", "vars", "hostvars"}


class ActionModule(ActionBase):
    """Reads hostvars; fails with one line a fault in `msg` and `faults`, else returns `notices` by cluster."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Check all clusters; those outside of --limit count only where a cluster within it collides with them."""
        result = super().run(tmp, task_vars)
        hostvars = task_vars["hostvars"]
        clusters = {}
        for host in task_vars["groups"]["all"]:
            variables = hostvars.raw_get(host)
            others = {name: None for name in variables if name not in _MAGIC and not name.startswith("ansible_")}
            clusters[str(host)] = {**others, **host_values(variables, self._loader, strict=False)}

        within = {str(host) for host in task_vars["ansible_play_hosts_all"]}
        faults = [fault for fault in validation.static_findings(clusters) if fault.cluster in within]
        faulty = {fault.cluster for fault in faults}
        sound = {name: values for name, values in clusters.items() if name in within - faulty}
        breaking = change_guard.breaking_changes(sound)
        faults = sorted([*faults, *change_guard.refused(sound, breaking)])

        result["changed"] = False
        if faults:
            result["failed"] = True
            result["faults"] = [str(fault) for fault in faults]
            result["msg"] = "\n".join(["The inventory has faults:", *result["faults"]])
        else:
            said = {
                name: [*validation.notices(values), *change_guard.notices(values, breaking[name])]
                for name, values in sound.items()
            }
            result["notices"] = {name: lines for name, lines in said.items() if lines}
        return result
