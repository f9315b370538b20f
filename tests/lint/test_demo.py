"""The inventory of `make demo` has no faults, and offers the pools of examples/bazel, other than the one of a fault."""

import re

import yaml

from testkit.bazel import EXAMPLE
from testkit.playbooks import ROOT, run_playbook

DEMO = ROOT / "inventories/demo/hosts.yml"


def test_the_demo_has_no_faults_and_the_pools_of_the_example() -> None:
    done = run_playbook("check_inventory", DEMO)
    assert (done.status, done.findings) == (0, []), done.output
    pools = yaml.safe_load(DEMO.read_text())["all"]["vars"]["nativelink_worker_pools"]
    assert [pool["platform_properties"] for pool in pools] == [{"pool": "default"}, {"pool": "large"}]
    asked = re.findall(r'"pool": "(\w+)"', EXAMPLE.read_text())
    assert asked == ["default", "default", "large", "default", "default", "gpu"]
