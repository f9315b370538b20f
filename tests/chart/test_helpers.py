"""What the chart's helpers compute of a text is what Python computes."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils import quantities
from ansible_collections.nativelink.gitops.plugins.plugin_utils.validation import kubernetes

from hack.chart.files import STATIC
from tests.chart.conftest import Helm

SIZES = ["1", "512Mi", "1.5Ti", ".5Gi", "3k", "1e9", "2E", "7.3M"]
RANGES = [
    ("169.254.169.254", "0.0.0.0/0", True),
    ("169.254.169.254", "169.254.169.254/32", True),
    ("169.254.169.254", "169.254.169.252/30", True),
    ("169.254.169.254", "168.0.0.0/7", True),
    ("169.254.169.254", "169.254.169.255/32", False),
    ("169.254.169.254", "169.254.128.0/19", False),
    ("169.254.169.254", "::/0", False),
    ("fd00:ec2::254", "::/0", True),
    ("fd00:ec2::254", "fd00:ec2::254/128", True),
    ("fd00:ec2::254", "FD00:0EC2:0:0:0:0:0:250/125", True),
    ("fd00:ec2::254", "fd00:ec0::/30", True),
    ("fd00:ec2::254", "fd00:ec3::/32", False),
    ("fd00:ec2::254", "fd00:ec2:0:1::/64", False),
    ("fd00:ec2::254", "0.0.0.0/0", False),
]
CALLS = {
    **{f'"nativelink.bytes" {json.dumps(size)}': quantities.bytes_of(size) for size in SIZES},
    '"nativelink.part" (list "12.5%" 1000003)': 125000,
    '"nativelink.seconds" "1h30m"': 5400,
    '"nativelink.seconds" 90': 90,
    '"nativelink.cpu" "500m"': 500,
    '"nativelink.cpu" 0.5': 500,
    '"nativelink.midnight" "2027-01-31"': 1801353600,
    **{f'"nativelink.inRange" (list "{address}" "{cidr}")': "in" if found else None for address, cidr, found in RANGES},
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, helm: Helm) -> dict[str, object]:
    """Return what the helpers answer to all calls, in a chart with nothing else."""
    folder = tmp_path_factory.mktemp("chart")
    (folder / "templates").mkdir()
    (folder / "Chart.yaml").write_text("apiVersion: v2\nname: sample\nversion: 0.1.0\n")
    for name in ("_quantities.tpl", "_faults.tpl"):
        shutil.copy(STATIC / "templates" / name, folder / "templates")
    lines = (f"{json.dumps(call)}: {{{{ include {call} }}}}" for call in CALLS)
    Path(folder / "templates/out.yaml").write_text("\n".join(lines))
    done = helm("template", "sample", folder)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


@pytest.mark.parametrize("call", CALLS)
def test_a_helper_answers(call: str, answers: dict[str, object]) -> None:
    assert answers[call] == CALLS[call]


@pytest.mark.parametrize(("address", "cidr", "found"), RANGES)
def test_preflight_knows_the_same_ranges(address: str, cidr: str, found: bool) -> None:
    assert kubernetes.in_range(address, cidr) is found
