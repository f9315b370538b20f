"""The bridge to Ansible: a host's variables, templated."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, is_trusted_as_template, trust_as_template

from . import specs


def host_values(variables: Mapping[str, Any], loader: DataLoader, *, strict: bool = True) -> dict[str, Any]:
    """`specs.effective` of a host's raw variables (an action's `task_vars`, or `hostvars.raw_get(name)`).

    A template that fails raises an AnsibleError that names cluster and variable; with `strict` off the value is a
    `specs.Unresolved`.
    """
    known = {**_defaults(), **variables}
    templar = Templar(loader=loader, variables=known)
    values = specs.effective(known, lambda value: _filled(value, known, templar))
    if strict:
        for name, value in values.items():
            if isinstance(value, specs.Unresolved):
                raise AnsibleError(f"{values['cluster']}: {name}: {value.problem}")
    return values


_REFERENCE = re.compile(r"\{\{ *([A-Za-z_][A-Za-z0-9_]*) *\}\}")


def _filled(value: specs.Yaml, known: Mapping[str, Any], templar: Templar) -> specs.Yaml:
    """`value`, templated. Names of plain texts are filled in right here: Jinja takes 1 ms to compile a template."""
    if isinstance(value, str) and is_trusted_as_template(value):
        text = _REFERENCE.sub(lambda found: _text(known.get(found[1])) or found[0], value)
        if not specs.holds_template(text):
            return text
    return templar.template(value)


def _text(value: specs.Yaml) -> str | None:
    return str(value) if isinstance(value, str) and not specs.holds_template(value) else None


@cache
def _defaults() -> dict[str, Any]:
    """The roles' defaults, their templates marked as ours: Ansible templates nothing else."""
    return {
        name: _trusted(value) if name in specs.templated_defaults() else value
        for name, value in specs.defaults().items()
    }


def _trusted(value: specs.Yaml) -> specs.Yaml:
    if isinstance(value, str):
        return trust_as_template(value)
    if isinstance(value, Mapping):
        return {key: _trusted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_trusted(item) for item in value]
    return value


# Ansible imports the actions before it forks a process for each host: the roles are read once.
_defaults()
