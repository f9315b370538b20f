"""The worker's scripts as they are rendered, run by real shells."""

import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.waiting import patient, until
from testkit.trees import committed

# dash runs all tests, and bash those that together run every line of the scripts.
BOTH_SHELLS = pytest.mark.parametrize("worker", ["dash", "bash"], indirect=True)
ACTION = "4c7f7bb6-63e2-4d5b-9a0c-5f7d2d8f31aa"  # NativeLink names an action's directory by a UUID


def age(path: Path, seconds: float) -> None:
    """Set the modification time of a path to so many seconds ago."""
    os.utime(path, (time.time() - seconds,) * 2)


class Worker:
    """A pod's mounts in a folder, to which the paths in the scripts lead."""

    def __init__(self, folder: Path, shell: str) -> None:
        self.folder, self.shell = folder, shell
        self.work, self.marker, self.begun = (
            folder / name for name in ("scratch/actions", "drain/draining", "drain/begun")
        )
        self.running: list[subprocess.Popen[bytes]] = []
        for part in ("scratch/actions", "scratch/store", "drain", "shared", "config"):
            (folder / part).mkdir(parents=True)
        files = committed("prod")
        for name in ("start", "precondition", "drain"):
            assert files[f"worker/{name}.sh"].startswith("#!/bin/sh\n")
            self.write(name, files[f"worker/{name}.sh"])

    def write(self, name: str, text: str) -> None:
        for mount in ("scratch", "drain", "shared", "config", "isolation"):
            text = text.replace(f"/{mount}/", f"{self.folder}/{mount}/")
        path = self.folder / f"config/{name}.sh"
        path.write_text(text)
        path.chmod(0o555)

    def command(self, name: str) -> list[str]:
        return [str(shutil.which(self.shell)), str(self.folder / f"config/{name}.sh")]

    def start(self, name: str, **environment: str) -> subprocess.Popen[bytes]:
        self.running.append(subprocess.Popen(self.command(name), env={"PATH": os.environ["PATH"], **environment}))
        return self.running[-1]

    def accepts(self) -> bool:
        """Return True if an action would be accepted. NativeLink runs the script with an empty environment."""
        return subprocess.run(self.command("precondition"), env={}, check=False).returncode == 0


@pytest.fixture
def worker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(tmp_path, getattr(request, "param", "dash"))
    yield worker
    for process in worker.running:
        if process.poll() is None:
            process.kill()
        process.wait()


@BOTH_SHELLS
def test_an_idle_worker_drains_after_five_looks_and_takes_nothing_meanwhile(worker: Worker) -> None:
    began = time.monotonic()
    drain = worker.start("drain")
    until("the marker", worker.marker.exists, 5)
    assert not worker.accepts()
    assert drain.wait(timeout=patient(8)) == 0
    assert time.monotonic() - began > 4.5  # a second passes between two looks
    assert not worker.accepts(), "the worker still runs, until SIGTERM"


@BOTH_SHELLS
def test_a_drain_waits_for_the_action_and_half_a_minute_more(worker: Worker) -> None:
    assert worker.accepts()
    drain = worker.start("drain")
    time.sleep(6)
    (worker.work / ACTION).mkdir()  # this action passed the precondition just before the marker
    time.sleep(2)
    (worker.work / ACTION).rmdir()
    time.sleep(5)
    assert drain.poll() is None
    age(worker.work, 25)
    age(worker.begun, 31)
    aged = time.monotonic()
    assert drain.wait(timeout=patient(15)) == 0
    assert time.monotonic() - aged > 8


def test_an_action_that_appears_restarts_the_count(worker: Worker) -> None:
    drain = worker.start("drain")
    time.sleep(2)
    (worker.work / ACTION).mkdir()
    time.sleep(4)
    assert drain.poll() is None


def test_files_of_a_persistent_worker_do_not_delay_a_drain(worker: Worker) -> None:
    """A persistent worker runs in the work directory itself (v1.6.6), and outlives its actions."""
    (worker.work / "tool.log").touch()
    (worker.work / "tool-cache").mkdir()
    assert worker.start("drain").wait(timeout=patient(8)) == 0


def test_if_any_entry_counted_a_drain_would_last_for_the_grace_period(worker: Worker) -> None:
    """The counter-run of the test above lets every entry of the work directory count."""
    text = committed("prod")["worker/drain.sh"]
    pattern = "/????????-????-????-????-????????????"
    assert pattern in text
    worker.write("drain", text.replace(pattern, "/*"))
    (worker.work / "tool.log").touch()
    drain = worker.start("drain")
    time.sleep(8)
    assert drain.poll() is None


def test_without_the_five_looks_a_drain_would_end_too_early(worker: Worker) -> None:
    """A work directory that is empty once does not show that the worker has finished."""
    worker.write("drain", committed("prod")["worker/drain.sh"].replace('"$rested" -lt 5', '"$rested" -lt 1'))
    assert worker.start("drain").wait(timeout=3) == 0


@pytest.mark.parametrize("changed", ["begun", "work"])
@pytest.mark.parametrize(("ago", "seconds"), [(25, 10), (31, 5)])
def test_a_drain_also_waits_after_actions_before_the_hook(worker: Worker, changed: str, ago: int, seconds: int) -> None:
    """An action began or ended so many seconds before the hook, and everything else happened long before."""
    assert worker.accepts()
    for path in (worker.begun, worker.work):
        age(path, 3600)
    age(getattr(worker, changed), ago)
    began = time.monotonic()
    assert worker.start("drain").wait(timeout=patient(seconds + 3)) == 0
    assert seconds - 2 < time.monotonic() - began


def test_a_refused_action_does_not_delay_a_drain(worker: Worker) -> None:
    assert worker.accepts()
    worker.marker.touch()
    worker.begun.unlink()
    assert not worker.accepts()
    assert not worker.begun.exists()


def test_without_a_note_of_begun_actions_a_drain_would_end_too_early(worker: Worker) -> None:
    """The counter-run of the tests above takes the note out of the precondition script."""
    worker.write("precondition", committed("prod")["worker/precondition.sh"].replace("\necho > /drain/begun", ""))
    assert worker.accepts()
    assert worker.start("drain").wait(timeout=patient(8)) == 0


@pytest.mark.parametrize("kind", ["directory", "FIFO"])
def test_a_drain_and_a_start_go_on_whatever_an_action_has_put_in_place_of_their_files(
    worker: Worker, kind: str
) -> None:
    """Without isolation an action has the user of NativeLink."""
    make = {"directory": Path.mkdir, "FIFO": os.mkfifo}[kind]
    make(worker.begun)
    assert worker.accepts()
    make(worker.marker)
    assert not worker.accepts()
    for path in (worker.begun, worker.work):
        age(path, 3600)
    assert worker.start("drain").wait(timeout=patient(15)) == 0
    (worker.folder / "shared/nativelink").symlink_to("/bin/true")
    assert worker.start("start").wait(timeout=patient(10)) == 0
    assert worker.accepts()


@BOTH_SHELLS
def test_an_action_is_refused_while_the_node_does_not_guard(worker: Worker) -> None:
    (worker.folder / "isolation/amd64").mkdir(parents=True)
    guard = worker.folder / "isolation/amd64/guarded"
    guard.symlink_to("/bin/false")
    assert worker.accepts(), "another level of access was chosen"
    (worker.folder / "drain/guarded").mkdir()
    assert not worker.accepts()
    guard.unlink()
    guard.symlink_to("/bin/true")
    assert worker.accepts()


@BOTH_SHELLS
@pytest.mark.parametrize("sick", ["store", "actions"])
def test_an_action_is_refused_while_the_scratch_takes_no_input(worker: Worker, sick: str) -> None:
    (worker.folder / "scratch" / sick).rmdir()
    assert not worker.accepts()
    (worker.folder / "scratch" / sick).mkdir()
    assert not worker.accepts(), "start.sh is still to look"
    (worker.folder / "drain/sick").unlink()
    assert worker.accepts()
    assert not [*worker.folder.glob("scratch/*/*")]


@BOTH_SHELLS
def test_a_worker_whose_scratch_stays_sick_drains_and_ends(worker: Worker) -> None:
    (worker.folder / "shared/nativelink").symlink_to("/bin/sleep")
    text = committed("prod")["worker/start.sh"].replace("sleep 10", "sleep 1").replace("/config/worker.json5", "60")
    worker.write("start", text)
    store, elsewhere, sick = (worker.folder / name for name in ("scratch/store", "elsewhere", "drain/sick"))
    sick.touch()
    process = worker.start("start")
    until("start.sh to remove the marker of the container before", lambda: not sick.exists(), 5)
    store.rename(elsewhere)
    assert not worker.accepts()
    elsewhere.rename(store)
    until("the worker to take actions again", worker.accepts, 10)
    assert not worker.marker.exists()
    worker.begun.unlink()
    age(worker.work, 3600)
    store.rename(elsewhere)
    assert not worker.accepts()
    until("the drain", worker.marker.exists, 10)
    assert process.wait(timeout=patient(15)) == -signal.SIGTERM


def test_a_second_hook_waits_as_well(worker: Worker) -> None:
    (worker.work / ACTION).mkdir()
    first, second = worker.start("drain"), worker.start("drain")
    time.sleep(6)
    assert (first.poll(), second.poll()) == (None, None)
    (worker.work / ACTION).rmdir()
    assert (first.wait(timeout=patient(10)), second.wait(timeout=patient(10))) == (0, 0)


@BOTH_SHELLS
def test_a_marker_that_a_start_removes_is_made_again(worker: Worker) -> None:
    """If a container has to end while it starts, start.sh may run after the hook began."""
    (worker.work / ACTION).mkdir()
    worker.start("drain")
    until("the marker", worker.marker.exists, 5)
    worker.marker.unlink()
    until("the worker to take no more", lambda: not worker.accepts(), 3)


@pytest.mark.parametrize("tools", [["sleep"], ["date"]])
def test_an_image_without_date_or_sleep_loses_nothing(worker: Worker, tools: list[str]) -> None:
    for tool in tools:
        (worker.folder / tool).symlink_to(str(shutil.which(tool)))
    assert worker.accepts()
    for path in (worker.begun, worker.work):
        age(path, 3600)
    drain = worker.start("drain", PATH=str(worker.folder))
    time.sleep(8)
    assert drain.poll() is None, "the drain lasts until the end of the grace period"


def test_the_work_directory_may_be_missing_while_the_worker_starts(worker: Worker) -> None:
    worker.work.rmdir()
    assert worker.start("drain").wait(timeout=patient(8)) == 0


@BOTH_SHELLS
def test_a_start_removes_the_marker(worker: Worker) -> None:
    binary = worker.folder / "shared/nativelink"
    binary.write_text(f"#!/bin/sh\necho $$ $1 > {worker.folder}/ran\n")
    binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    assert worker.accepts()
    worker.marker.touch()
    assert not worker.accepts()
    process = worker.start("start")
    assert process.wait(timeout=patient(10)) == 0
    assert not worker.begun.exists(), "actions of the container before have ended with it"
    assert worker.accepts()
    # NativeLink takes the place of the script's process, because that process gets SIGTERM.
    assert (worker.folder / "ran").read_text() == f"{process.pid} {worker.folder}/config/worker.json5\n"
