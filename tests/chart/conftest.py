"""The chart and the tree of a cluster, as the objects that an API server would get."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hack.chart import values
from testbed import build
from testkit.release import CHART

Done = subprocess.CompletedProcess[str]
Helm = Callable[..., Done]
Cluster = dict[str, Any]


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Return a function that runs Helm with these arguments."""
    binary = build.program("helm")
    env = os.environ | build.helm_home(tmp_path_factory.mktemp("helm"))
    return lambda *arguments: subprocess.run([binary, *arguments], env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def template(helm: Helm, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Done]:
    """Return a function that renders a chart with the values of a cluster, given by its variables."""
    file = tmp_path_factory.mktemp("values") / "values.json"

    def run(cluster: Cluster, chart: Path = CHART) -> Done:
        file.write_text(json.dumps(values.helm_values(cluster), ensure_ascii=False))
        namespace = str(cluster["nativelink_namespace"])
        return helm("template", cluster["cluster"], chart, "--namespace", namespace, "--values", file, "--skip-tests")

    return run
