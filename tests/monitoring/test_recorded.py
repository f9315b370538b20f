"""All names and labels that the alerts select exist in what real components have served."""

from __future__ import annotations

import pytest
import yaml

from tests.monitoring.entries import VARIABLES, files
from tests.monitoring.recorded import SCRAPES, TARGETS, Recorded

LARGEST = 300_000  # bytes of all recordings


@pytest.mark.parametrize("backend", VARIABLES)
def test_the_alerts_select_recorded_series(recording: Recorded, backend: str) -> None:
    """Each selector of each alert matches a series."""
    groups = yaml.safe_load(files(backend)["monitoring/alert-rules.yaml"])["groups"]
    missing = {
        rule["alert"]: lost for group in groups for rule in group["rules"] if (lost := recording.missing(rule["expr"]))
    }
    assert missing == {}


def test_wrong_selectors_are_found(recording: Recorded) -> None:
    """The counter-run: a name that does not exist and a label that does not match are missing, others are not."""
    query = 'sum(rate(nativelink_queue_depth[5m])) > 0 and on () redis_up{namespace="other"} == redis_up'
    assert recording.missing(query) == [
        '{__name__="nativelink_queue_depth"}',
        '{namespace="other",__name__="redis_up"}',
    ]
    assert recording.selectors("redis_up offset 5m")[0].count("__name__") == 1


def test_the_recordings_are_small() -> None:
    """Each recording is a target, and all of them together are small."""
    found = {path.stem: path.stat().st_size for path in SCRAPES.glob("*.txt")}
    assert found.keys() == TARGETS.keys()
    assert sum(found.values()) < LARGEST
