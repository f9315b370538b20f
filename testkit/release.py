"""Releases of the Helm chart on a cluster with a real node, and the values with which the chart fits a test machine."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from testbed import build
from testbed.cluster import Cluster
from testbed.waiting import patient

Object = dict[str, Any]

CHART = Path(__file__).parents[1] / "charts" / "nativelink"
BASE = "values-dev.yaml"
"""The file of the chart whose values all releases of the tests begin with."""
_LITTLE = {"cpu": "10m", "memory": "32Mi"}
# With all keys of values-dev.yaml, because Helm merges maps.
RESOURCES = {
    "requests": {**_LITTLE, "ephemeral-storage": "64Mi"},
    "limits": {"cpu": "2", "memory": "256Mi", "ephemeral-storage": "1Gi"},
}
SMALL: Object = {
    "cas": {"storageClass": "local-path", "volumeSize": "1Gi", "resources": RESOURCES},
    "scheduler": {"resources": RESOURCES},
    "worker": {"access": "network_policy"},
    "workerPools": [
        {
            "name": "default",
            "platformProperties": {"OSFamily": "Linux", "pool": "default"},
            # The disk of the machine may be smaller than the scratch.
            "resources": {"requests": {**_LITTLE, "ephemeral-storage": "0"}, "limits": {"memory": "256Mi"}},
            "scratchSize": "5Gi",
            "slots": 4,
            "longestAction": "1m",
            "minReplicas": 1,
            "maxReplicas": 2,
        }
    ],
}
"""The values of a release that fits a test machine, on top of ``BASE``."""


@dataclass(frozen=True)
class Release:
    """A release with its values on top of ``BASE``, and a folder for Helm's own files."""

    where: Cluster
    name: str
    namespace: str
    values: Object
    folder: Path

    def helm(self, command: str, *arguments: str | Path) -> str:
        """Run a command of Helm on the release, and return its output. Raise AssertionError with it if Helm fails."""
        target = ("--namespace", self.namespace, "--kubeconfig", self.where.kubeconfig)
        done = subprocess.run(
            [build.program("helm"), *command.split(), self.name, *arguments, *target],
            env=os.environ | build.helm_home(self.folder),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def deploy(self, command: str, *arguments: str) -> str:
        """Install or upgrade the release, wait until all is ready, and return the output."""
        own = self.folder / "values.yaml"
        own.write_text(yaml.safe_dump(self.values))
        files = ("--values", CHART / BASE, "--values", own)
        return self.helm(command, CHART, *files, "--wait", f"--timeout={patient(180):.0f}s", *arguments)
