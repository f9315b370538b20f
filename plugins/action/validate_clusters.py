"""Action `validate_clusters`: reports all errors in all clusters' variables at once. Runs once for all hosts."""

from typing import Any

from ..plugin_utils import change_guard, digests, render, specs, validation
from ..plugin_utils.action import Action
from ..plugin_utils.findings import Finding
from ..plugin_utils.objects import object_findings
from ..plugin_utils.templating import host_values

# Ansible adds these to each host's variables.
_MAGIC = {"environment", "group_names", "groups", "inventory_dir", "inventory_file", "inventory_hostname"}
_MAGIC |= {"inventory_hostname_short", "omit", "playbook_dir", "role_names", "play_hosts", "vars", "hostvars"}


class ActionModule(Action):
    """Reads hostvars. Fails with a line for each error in `msg` and `faults`, or returns `notices` by cluster."""

    def _act(self) -> dict[str, Any]:
        """Check all clusters. The others are only checked for conflicts with the clusters of --limit."""
        clusters, pinned = {}, {}
        for host in self._task_vars["groups"]["all"]:
            variables = self._task_vars["hostvars"].raw_get(host)
            names = {name for name in variables if name not in _MAGIC and not name.startswith("ansible_")}
            helpers = specs.mentioned([variables[name] for name in names])
            others = [name for name in names if name not in helpers or name.startswith(specs.PREFIXES)]
            clusters[str(host)] = {**dict.fromkeys(others), **host_values(variables, self._loader, strict=False)}
            pinned[str(host)] = digests.file_of(str(host), variables)

        limited = {str(host) for host in self._task_vars["ansible_play_hosts_all"]}
        faults = [fault for fault in validation.static_findings(clusters) if fault.cluster in limited]
        faulty = {fault.cluster for fault in faults}
        valid = {name: {**specs.known(clusters[name]), "cluster": name} for name in limited - faulty}
        faults += (fault for values in valid.values() for fault in object_findings(values))
        if not self._args["stale_digests"]:
            faults += (Finding(name, *each) for name in valid for each in digests.stale(valid[name], pinned[name]))
        for name in {fault.cluster for fault in faults} - faulty:
            del valid[name]
        breaking = change_guard.breaking_changes(valid, render.parsed)
        faults = sorted([*faults, *change_guard.refused(valid, breaking)])

        if faults:
            lines = [str(fault) for fault in faults]
            return {"failed": True, "faults": lines, "msg": "\n".join(["The inventory has faults:", *lines])}
        notices = {
            name: [*validation.notices(values), *change_guard.notices(values, breaking[name])]
            for name, values in valid.items()
        }
        return {"changed": False, "notices": {name: lines for name, lines in notices.items() if lines}}
