"""The inventories of the tutorials are those that the validation accepts."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.lint.test_rules import ROOT

INVENTORY = re.compile(r"^```yaml\n(# inventories/\w+/hosts\.yml\n.*?)^```$", re.DOTALL | re.MULTILINE)


def check(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What the static validation of an inventory said."""
    (folder / "hosts.yml").write_text(text)
    command = ["ansible-playbook", "-i", str(folder), "playbooks/check_inventory.yml"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("page", ["kind", "eks", "gke"])
def test_the_inventory_of_a_tutorial_has_no_faults(page: str, tmp_path: Path) -> None:
    (inventory,) = INVENTORY.findall((ROOT / f"docs/tutorials/{page}.md").read_text())
    done = check(inventory, tmp_path)
    assert done.returncode == 0, done.stdout


def test_a_fault_in_a_tutorial_would_be_found(tmp_path: Path) -> None:
    (inventory,) = INVENTORY.findall((ROOT / "docs/tutorials/kind.md").read_text())
    done = check(inventory.replace("max_replicas: 2", "max_replicas: 0"), tmp_path)
    assert done.returncode != 0
    assert "kind: nativelink_worker_pools[default].max_replicas:" in done.stdout
