"""Action `repository_secret`: applies a Secret whose values come from files and variables.

Its arguments are the names of the variables, so that no argument, log or temporary file holds a value.
"""

import base64
from pathlib import Path
from typing import Any

from ..plugin_utils.apply import ApplyAction
from ..plugin_utils.release import FIELD_MANAGER


class ActionModule(ApplyAction):
    """Applies the Secret, or deletes it."""

    def _act_on_cluster(self) -> dict[str, Any]:
        if self._args["state"] == "absent":
            return self._remove()
        values = self.host_values()
        data = {key: str(text).encode() for key, text in self._args["plain"].items()}
        data |= {key: values[variable].encode() for key, variable in self._args["values"].items()}
        data |= {key: self._read(variable, values[variable]) for key, variable in self._args["files"].items()}
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {key: self._args[key] for key in ("name", "namespace", "labels")},
            "type": "Opaque",
            "data": {key: base64.b64encode(content).decode() for key, content in data.items() if content},
        }
        remedy = f"delete the Secret, or set gitops_secret_name to {self._args['name']} to keep it"
        self.apply([secret], "gitops_secret_name", remedy)
        return {}

    def _remove(self) -> dict[str, Any]:
        name, namespace = self._args["name"], self._args["namespace"]
        found = self._api.read("v1", "Secret", name, namespace) or {"metadata": {}}
        ours = found["metadata"].get("labels", {}).get("app.kubernetes.io/managed-by") == FIELD_MANAGER
        if ours and not self._task.check_mode:
            self._api.delete(found)
        return {"changed": ours}

    def _read(self, variable: str, path: str) -> bytes:
        if not path:
            return b""
        try:
            return Path(path).expanduser().read_bytes()
        except OSError as error:
            self.refuse(variable, f"{path} cannot be read: {error.strerror}", "write the path of a readable file")
