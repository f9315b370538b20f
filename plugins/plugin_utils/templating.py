"""Resolves the templates in a host's variables with Ansible."""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.vault import EncryptedString, VaultHelper
from ansible.template import Templar, is_trusted_as_template, trust_as_template

from . import specs
from .validation.files import vault_places


def host_values(variables: Mapping[str, Any], loader: DataLoader, *, strict: bool = True) -> dict[str, Any]:
    """`specs.effective` of a host's raw variables (an action's `task_vars`, or `hostvars.raw_get(name)`).

    If a template fails, this raises an AnsibleError that names the cluster and the variable. If `strict` is false, the
    value is a `specs.Unresolved` instead.
    """
    known = {**_defaults(), **variables}
    templar = Templar(loader=loader, variables=known)
    values = specs.effective(known, lambda value: _filled(value, known, templar))
    if strict:
        for name, value in values.items():
            if isinstance(value, specs.Unresolved):
                raise AnsibleError(f"{values['cluster']}: {name}: {value.problem}; {value.remedy}")
    return values


_REFERENCE = re.compile(r"\{\{ *([A-Za-z_][A-Za-z0-9_]*) *\}\}")


def _filled(value: specs.Yaml, known: Mapping[str, Any], templar: Templar) -> specs.Yaml:
    """`value`, templated. Names of plain texts are replaced here, because Jinja takes 1 ms to compile a template."""
    if isinstance(value, str) and is_trusted_as_template(value):
        text = _REFERENCE.sub(lambda found: _text(known.get(found[1])) or found[0], value)
        if not specs.holds_template(text):
            return text
    if isinstance(value, EncryptedString):
        return _decrypted(value, known)
    return templar.template(value)


def _decrypted(value: EncryptedString, known: Mapping[str, Any]) -> str:
    try:
        return str(value)
    except Exception as error:
        places = vault_places(known.get("ansible_inventory_sources") or ())
        place = places.get(VaultHelper.get_ciphertext(value, with_tags=False), "")
        raise specs.DecryptionError(f"{place}{' '.join(str(error).split()).rstrip('.')}") from error


def _text(value: specs.Yaml) -> str | None:
    return str(value) if isinstance(value, str) and not specs.holds_template(value) else None


@cache
def _defaults() -> dict[str, Any]:
    """The roles' defaults. Their templates are marked as trusted, because Ansible resolves no others."""
    return {name: _trusted(value) if specs.holds_template(value) else value for name, value in specs.written().items()}


def _trusted(value: specs.Yaml) -> specs.Yaml:
    if isinstance(value, str):
        return trust_as_template(value)
    if isinstance(value, Mapping):
        return {key: _trusted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_trusted(item) for item in value]
    return value


# Ansible imports the actions before it forks a process for each host, so the roles are read only once.
_defaults()
