"""Each generated file is what its sources make now."""

import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

import dashboards
from hack import generate
from hack.chart import FOLDER, files
from testbed import build

Files = dict[Path, str]


@cache
def chart_files() -> Files:
    return {FOLDER / path: text for path, text in files().items()}


@cache
def readme() -> Files:
    command = [build.program("helm-docs"), "--chart-search-root", FOLDER, "--dry-run"]
    return {FOLDER / "README.md": subprocess.run(command, capture_output=True, text=True, check=True).stdout}


@pytest.mark.parametrize("sources", [generate.generated, chart_files, readme])
def test_a_generated_file_is_current(sources: Callable[[], Files]) -> None:
    wanted = sources()
    assert [str(path) for path, text in wanted.items() if path.read_text() != text] == [], "run `make generate`"


def test_no_generated_file_is_left_over() -> None:
    found = {path for path in FOLDER.rglob("*") if path.is_file()}
    assert found == chart_files().keys() | readme().keys()
    assert set(dashboards.FOLDER.iterdir()) == dashboards.files().keys()
