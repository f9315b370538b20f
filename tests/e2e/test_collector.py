"""The collector alone: which demand it serves before the first action, and after the end of a scheduler."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from testbed.waiting import until
from testkit.collector import source

Object = dict[str, Any]


def without_zeros(config: Object) -> None:
    config["service"]["pipelines"]["metrics/demand"]["processors"].remove("transform/demand")


def remembering(config: Object) -> None:
    """Keep the series of each process apart, and for half a minute after its end."""
    first = config["processors"]["transform/demand"]["metric_statements"][0]["statements"]
    first.remove('delete_key(resource.attributes, "service.instance.id")')
    config["exporters"]["prometheus/demand"]["metric_expiration"] = "30s"


def test_both_stages_have_a_value_before_the_first_action(tmp_path: Path) -> None:
    with source(tmp_path) as found:
        scheduler = found.start_scheduler()
        nothing = {"queued": [0], "executing": [0], "queue_depth": [0]}
        until("both stages", lambda: found.stages() == nothing, 20, found.log)
        with found.queued(7):
            until("the demand", lambda: found.stages() == {**nothing, "queued": [7], "queue_depth": [7]}, 20, found.log)
        until("no demand", lambda: found.stages() == nothing, 40, found.log)
        scheduler.kill()
        # Without a scheduler the demand is unknown, which is not the same as a demand of zero.
        until("the series to be gone", lambda: found.stages() == {}, 20, found.log)


def test_without_the_zeros_a_stage_is_missing(tmp_path: Path) -> None:
    """This is the counter-run of the test above."""
    with source(tmp_path, without_zeros) as found:
        found.start_scheduler()
        time.sleep(7)
        assert found.stages() == {}
        with found.queued(7):
            until("the demand", lambda: found.stages() == {"queued": [7], "queue_depth": [7]}, 20, found.log)


@pytest.mark.parametrize("edit", [lambda config: None, remembering], ids=["ours", "counter-run"])
def test_a_restarted_scheduler_takes_the_place_of_the_dead_one(tmp_path: Path, edit: Callable[[Object], None]) -> None:
    with source(tmp_path, edit) as found:
        scheduler = found.start_scheduler()
        with found.queued(7):
            until("the demand", lambda: found.stages().get("queued") == [7], 20, found.log)
            scheduler.kill()
            scheduler.wait()
        found.start_scheduler()
        seen: list[list[float]] = []
        ended = time.monotonic() + 12
        while time.monotonic() < ended:
            seen.append(found.stages().get("queued", []))
            time.sleep(0.2)
    # From the first report of the new process on, its value is the only one.
    first_report = next(index for index, values in enumerate(seen) if 0 in values)
    expected = edit is not remembering
    assert all(values == [0] for values in seen[first_report:]) is expected, seen
