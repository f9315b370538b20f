"""Action `render_tree`: writes all manifests of a cluster in one task, in the process of the task."""

import gc
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail

from ..plugin_utils import committed, patches, render, rollouts, tree
from ..plugin_utils.action import Action
from ..plugin_utils.findings import relative

# Ansible imports this file before it forks a process for each host, and so all of them inherit the compiled templates.
# Objects that exist now are left out of garbage collection, which would copy the memory that the processes share.
render.warm()
gc.freeze()


class ActionModule(Action):
    """Takes no arguments, but reads the cluster's variables. Supports check mode and --diff."""

    def _act(self) -> dict[str, Any]:
        """Render the files, compare them with the tree and replace a tree that differs."""
        values = self.host_values()
        directory = Path(values["nativelink_clusters_dir"]).resolve() / values["cluster"]
        shown, check = relative(directory), self._task.check_mode
        try:
            files = render.tree(values)
            running = rollouts.running(directory, files, values["nativelink_base_revision"])
            done = tree.write(directory, files, check=check, diff=self._task.diff)
        except committed.UnknownRevisionError as error:
            raise AnsibleActionFail(f"{values['cluster']}: nativelink_base_revision: {error}") from None
        except (render.RenderError, tree.WriteError) as error:
            raise AnsibleActionFail(str(error)) from None  # Ansible would print the causes as well
        following = [f"review and commit {shown}"] if done and not check else []
        return {
            "changed": bool(done),
            "created": done.created,
            "changed_files": done.changed,
            "removed": done.removed,
            "diff": done.diff,
            "cluster_summary": {
                "rendered": [f"{shown}: {_counted(len(files), done, check)}"],
                "rollout": rollouts.rollouts(running, files) or (["no pod restarts"] if running and done else []),
                "next": [*patches.warnings(directory, files), *following],
            },
        }


def _counted(total: int, done: tree.Result, check: bool) -> str:
    ours = {
        verb: sum(path.startswith("rendered/") for path in paths)
        for verb, paths in (("created", done.created), ("changed", done.changed), ("removed", done.removed))
    }
    parts = [f"{count} {verb}" for verb, count in ours.items() if count]
    what = f"{', '.join(parts)} (check)" if check and parts else ", ".join(parts) or "unchanged"
    return f"{total} files, {what}"
