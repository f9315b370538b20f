"""Action `generated_secret`: makes a Secret with a random value once.

It replaces a lookup and kubernetes.core.k8s: that module patches an object that exists, so that two runs at once would
change the value, and its arguments pass through a file. Ansible never sees the value that this action creates.
"""

import base64
import secrets
from typing import Any

from ..plugin_utils.apply import ApplyAction
from ..plugin_utils.release import FIELD_MANAGER


class ActionModule(ApplyAction):
    """Creates the Secret unless it exists, also if another run creates it at the same time."""

    def _act_on_cluster(self) -> dict[str, Any]:
        namespace, name, key = (self._args[each] for each in ("namespace", "name", "key"))
        if self._api.read("v1", "Secret", name, namespace) is not None:
            return {"changed": False}
        if self._task.check_mode:
            return {"changed": True}
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace, "labels": self._args["labels"]},
            "type": "Opaque",
            "data": {key: base64.b64encode(secrets.token_urlsafe(32).encode()).decode()},
        }
        return {"changed": self._api.create(secret, FIELD_MANAGER)}
