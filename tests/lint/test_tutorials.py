"""The validation accepts the inventories of the tutorials, and of the page about security."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from testkit.playbooks import ROOT, Run, run_playbook

INVENTORY = re.compile(r"^```yaml\n(# inventories/\w+/hosts\.yml\n.*?)^```$", re.DOTALL | re.MULTILINE)
VARIABLES = re.compile(r"^```yaml\n( +storage_classes_list: .*?)^```$", re.DOTALL | re.MULTILINE)


def check(text: str, folder: Path) -> Run:
    """Run the static validation of an inventory."""
    (folder / "hosts.yml").write_text(text)
    return run_playbook("check_inventory", folder)


@pytest.mark.parametrize("page", ["tutorials/kind", "tutorials/cloud", "security"])
def test_the_inventory_of_a_page_has_no_faults(page: str, tmp_path: Path) -> None:
    (inventory,) = INVENTORY.findall((ROOT / f"docs/{page}.md").read_text())
    done = check(inventory, tmp_path)
    assert done.status == 0, done.output


def test_the_variables_of_the_other_cloud_have_no_faults(tmp_path: Path) -> None:
    page = (ROOT / "docs/tutorials/cloud.md").read_text()
    (text,), (variables,) = INVENTORY.findall(page), VARIABLES.findall(page)
    inventory = yaml.safe_load(text)
    inventory["all"]["hosts"]["build-eu"] |= yaml.safe_load(variables)
    done = check(yaml.safe_dump(inventory), tmp_path)
    assert done.status == 0, done.output


def test_a_fault_in_a_tutorial_would_be_found(tmp_path: Path) -> None:
    (inventory,) = INVENTORY.findall((ROOT / "docs/tutorials/kind.md").read_text())
    done = check(inventory.replace("max_replicas: 2", "max_replicas: 0"), tmp_path)
    assert done.status != 0
    assert "kind: nativelink_worker_pools[default].max_replicas:" in done.output
