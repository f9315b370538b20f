"""Lookup `clusters`: the pattern of all clusters, for the hosts of a play."""

DOCUMENTATION = """
name: clusters
short_description: The pattern of all clusters, if the inventory's files have no errors
description:
  - Returns C(all), which is for the C(hosts) of a play.
  - Fails with a line for each error in the files of the inventory, such as a key that appears twice.
  - Fails if the inventory has no clusters. Ansible skips a play without hosts and reports success.
  - Fails if C(--limit) has a name that the inventory does not have.
options: {}
"""
EXAMPLES = """
- name: Check the clusters
  hosts: "{{ lookup('nativelink.gitops.clusters') }}"
"""
RETURN = """
_raw:
  description: The pattern C(all).
  type: list
  elements: str
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.inventory.manager import split_host_pattern
from ansible.plugins.lookup import LookupBase

from ..plugin_utils.findings import Finding
from ..plugin_utils.validation.files import UnreadableError, file_findings


class LookupModule(LookupBase):
    """Ansible resolves the hosts of a play before it reads the clusters' variables, and fails if it cannot."""

    def run(self, terms: list[Any], variables: Mapping[str, Any] | None = None, **kwargs: Any) -> list[str]:
        """Return the pattern, or raise an AnsibleError with all errors."""
        known = variables or {}
        sources, groups = known.get("ansible_inventory_sources") or [], known["groups"]
        findings = file_findings(sources, self._read)
        if not groups["all"]:
            findings.append(
                Finding(", ".join(map(str, sources)), "hosts", "no clusters", "write each under hosts of a group")
            )
        elif limit := known.get("ansible_limit"):
            findings += _unknown_names(limit, {*groups, *groups["all"]})
        if findings:
            raise AnsibleError("\n".join(["The inventory has faults:", *map(str, findings)]))
        return ["all"]

    def _read(self, file: Path) -> bytes:
        try:
            return self._loader.get_text_file_contents(str(file)).encode()
        except Exception as error:
            if file.read_bytes().startswith(b"$ANSIBLE_VAULT"):
                remedy = "give Ansible the vault password, with --ask-vault-pass or --vault-password-file"
                raise UnreadableError("cannot be decrypted", remedy) from error
            raise UnreadableError(f"cannot be read ({error})", "correct the file or its permissions") from error


def _unknown_names(limit: str, names: set[str]) -> list[Finding]:
    """The names in --limit that match nothing. Ansible reports them as an error only if no other name matches."""
    wanted = [pattern.lstrip("!&") for pattern in split_host_pattern(limit)]
    return [
        Finding("--limit", name, "unknown cluster or group", "write a name from the inventory")
        for name in wanted
        if re.fullmatch(r"[\w.-]+", name) and name not in names
    ]
