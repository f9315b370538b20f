"""Runs the real playbooks on inventories that a test makes up, without a cluster."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
Run = subprocess.CompletedProcess[str]


def sound(name: str, clusters_dir: Path) -> dict[str, Any]:
    """The least that a cluster without a fault says."""
    return {
        "cluster_kubeconfig": f"/nowhere/{name}",
        "cluster_context": name,
        "nativelink_cas_storage_class": "gp3",
        "nativelink_clusters_dir": str(clusters_dir),
    }


def inventory(folder: Path, hosts: dict[str, dict[str, Any]]) -> Path:
    file = folder / "inventory.yml"
    file.write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
    return file


def playbook(name: str, inventory: Path, *arguments: str, **environment: str) -> Run:
    command = [str(Path(sys.executable).parent / "ansible-playbook"), f"playbooks/{name}.yml", "-i", str(inventory)]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}  # Molecule's, too
    environment = {**inherited, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", **environment}
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def faults(run: Run) -> list[str]:
    """The lines of the failed task's message, as it stands on the screen."""
    found = re.search(r"The inventory has faults:\n(.*?)\nOrigin:", run.stderr + run.stdout, re.DOTALL)
    return found[1].splitlines() if found else []


def kubeconfig(file: Path, server: str) -> Path:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "good", "cluster": {"server": server}}],
        "contexts": [{"name": "good", "context": {"cluster": "good", "user": "good"}}],
        "users": [{"name": "good", "user": {"token": "t"}}],
    }
    file.write_text(yaml.safe_dump(config))
    return file
