"""The validation accepts the inventories of the tutorials, and of the page about security."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from testkit.playbooks import ROOT, Run, run_playbook

INVENTORY = re.compile(r"^```yaml\n(# inventories/\w+/hosts\.yml\n.*?)^```$", re.DOTALL | re.MULTILINE)


def check(text: str, folder: Path) -> Run:
    """Run the static validation of an inventory."""
    (folder / "hosts.yml").write_text(text)
    return run_playbook("check_inventory", folder)


@pytest.mark.parametrize("page", ["tutorials/kind", "tutorials/eks", "tutorials/gke", "security"])
def test_the_inventory_of_a_page_has_no_faults(page: str, tmp_path: Path) -> None:
    (inventory,) = INVENTORY.findall((ROOT / f"docs/{page}.md").read_text())
    done = check(inventory, tmp_path)
    assert done.status == 0, done.output


def test_a_fault_in_a_tutorial_would_be_found(tmp_path: Path) -> None:
    (inventory,) = INVENTORY.findall((ROOT / "docs/tutorials/kind.md").read_text())
    done = check(inventory.replace("max_replicas: 2", "max_replicas: 0"), tmp_path)
    assert done.status != 0
    assert "kind: nativelink_worker_pools[default].max_replicas:" in done.output
