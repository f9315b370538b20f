"""The argument spec of an action, read from the documentation that `ansible-doc` shows."""

from __future__ import annotations

from typing import Any

import yaml

from ..doc_fragments.cluster import ModuleDocFragment

_KEYS = ("type", "elements", "required", "choices", "default")


def argument_spec(documentation: str) -> dict[str, Any]:
    """The argument spec of a module's DOCUMENTATION, and of the documentation fragment that it extends."""
    documented = yaml.safe_load(documentation)
    options = dict(documented.get("options", {}))
    if "extends_documentation_fragment" in documented:
        options |= yaml.safe_load(ModuleDocFragment.DOCUMENTATION)["options"]
    return {name: {key: option[key] for key in _KEYS if key in option} for name, option in options.items()}
