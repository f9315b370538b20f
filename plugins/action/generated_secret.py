"""Action `generated_secret`: a Secret with a random value, made once.

Why not a lookup and kubernetes.core.k8s: that module patches what it finds, so that two runs at once would rotate the
value, and its arguments pass through a file. Here the value is never seen by Ansible, and only ever created.
"""

from __future__ import annotations

import base64
import secrets
from typing import Any, ClassVar

from ..plugin_utils.apply import ApplyAction
from ..plugin_utils.release import FIELD_MANAGER


class ActionModule(ApplyAction):
    """Arguments: `kubeconfig`, `context`, `namespace`, `name`, `key`, `labels`.

    The value under `key` has 43 URL-safe characters, 256 bits.
    """

    ARGUMENTS: ClassVar[dict[str, Any]] = {
        "namespace": {"type": "str", "required": True},
        "name": {"type": "str", "required": True},
        "key": {"type": "str", "required": True, "no_log": False},
        "labels": {"type": "dict", "default": {}},
    }

    def act(self) -> dict[str, Any]:
        """Create the Secret unless it is there; one that somebody else creates at the same time is left as it is."""
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
