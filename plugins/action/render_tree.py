"""Action `render_tree`: writes a cluster's manifests, all in one task and in this process."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ..plugin_utils import patches, render, tree
from ..plugin_utils.templating import host_values

# Ansible imports this file before it forks a process for each host: they all inherit the compiled templates, and, with
# what is there now left out of garbage collection, go on sharing its memory.
render.warm()
gc.freeze()


class ActionModule(ActionBase):
    """No arguments: everything comes from the cluster's variables. Honours check mode and --diff.

    Returns `created`, `changed_files` and `removed`, paths relative to the cluster's folder.
    """

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_diff = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Render, compare, write what differs."""
        super().run(tmp, task_vars)
        self.validate_argument_spec(argument_spec={})
        values = host_values(task_vars or {}, self._loader)
        directory = Path(values["nativelink_clusters_dir"]).resolve() / values["cluster"]
        check = self._task.check_mode
        try:
            files = render.tree(values)
            done = tree.write(directory, files, check=check, diff=self._task.diff)
        except render.RenderError as error:
            raise AnsibleActionFail(str(error)) from error
        except OSError as error:
            raise AnsibleActionFail(
                f"{values['cluster']}: nativelink_clusters_dir: {error}; make the folder writable"
            ) from error
        shown = _shown(directory)
        following = [f"review and commit {shown}"] if done and not check else []
        return {
            "changed": bool(done),
            "created": done.created,
            "changed_files": done.changed,
            "removed": done.removed,
            "diff": done.diff,
            "cluster_summary": {
                "rendered": [f"{shown}: {_counted(len(files), done, check)}"],
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


def _shown(directory: Path) -> str:
    """The folder as the user would type it."""
    return str(directory.relative_to(Path.cwd()) if directory.is_relative_to(Path.cwd()) else directory)
