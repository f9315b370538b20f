"""The validation accepts the inventories of the tutorials, and of the page about security."""

import re
from pathlib import Path

import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils.validation.files import file_findings

from testkit.inventories import write_inventory
from testkit.playbooks import ROOT, run_playbook

INVENTORY = re.compile(r"^```yaml\n(# inventories/\w+/hosts\.yml\n.*?)^```$", re.DOTALL | re.MULTILINE)
VARIABLES = re.compile(r"^```yaml\n( +storage_classes_list: .*?)^```$", re.DOTALL | re.MULTILINE)


def test_the_inventories_of_pages_have_no_faults_and_a_fault_would_be_found(tmp_path: Path) -> None:
    hosts, file = {}, tmp_path / "hosts.yml"
    for page in ("tutorials/kind", "tutorials/cloud", "security"):
        (text,) = INVENTORY.findall((ROOT / f"docs/{page}.md").read_text())
        file.write_text(text)
        assert file_findings([str(file)]) == []
        found = yaml.safe_load(text)["all"]
        hosts |= {
            name: {**found.get("vars", {}), **own, "cluster_context": page} for name, own in found["hosts"].items()
        }
    aks, gke = VARIABLES.findall((ROOT / "docs/tutorials/cloud.md").read_text())
    for name, variables in {"aks": aks, "gke": gke}.items():
        hosts[name] = {**hosts["build-eu"], **yaml.safe_load(variables), "cluster_context": name}
    (pool,) = hosts["kind"]["nativelink_worker_pools"]
    hosts["faulty"] = {**hosts["kind"], "cluster_context": "faulty"}
    hosts["faulty"]["nativelink_worker_pools"] = [{**pool, "max_replicas": 0}]

    done = run_playbook("check_inventory", write_inventory(tmp_path, hosts))

    (line,) = done.findings
    assert line.startswith("faulty: nativelink_worker_pools[default].max_replicas: ")
