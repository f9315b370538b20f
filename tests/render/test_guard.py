"""The rendered guard.sh starts NativeLink on Redis, with fixed answers, or with a real Redis and the stand-in."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render

from testbed import build
from testbed.ports import free_ports
from testbed.waiting import patient, until
from testkit.client import Client, Process
from testkit.redis import Redis
from testkit.trees import ROOT, VERSION, committed, values_of

# dash runs all tests, and bash those that together run every line of the script.
BOTH_SHELLS = pytest.mark.parametrize("pod", ["dash", "bash"], indirect=True)
SCHEMA = {"NATIVELINK_SCHEMA": str(ROOT / f"schemas/nativelink-{VERSION}.schema.json")}
LINE = "id=7 addr={address}:41000 laddr=10.9.9.9:6379 name= psub={psub} cmd={command} lib-name={library} lib-ver=1.0.0"
OURS, OTHER = "10.0.0.1", "10.0.0.11"  # the first address is the beginning of the second
MATCHES = LINE.format(address=OURS, psub=1, command="FT.AGGREGATE", library="redis-rs")
DEAD = LINE.format(address=OURS, psub=1, command="psubscribe", library="redis-rs")


class Pod:
    """The scheduler's mounts in a folder, to which the paths in the scripts lead."""

    def __init__(self, folder: Path, shell: str, cli: Path | None = None) -> None:
        self.folder, self.shell = folder, shell
        self.matching, self.binary, self.said = (
            folder / name for name in ("guard/matching", "shared/nativelink", "guard.log")
        )
        for part in ("config", "shared", "guard"):
            (folder / part).mkdir()
        self.files = committed("staging")
        self.cli = cli or folder / "redis-cli"
        self.process: subprocess.Popen[bytes] | None = None
        self.turn: dict[str, str] = {}

    def turned(self, text: str) -> str:
        for mount in ("config", "shared", "guard"):
            text = text.replace(f"/{mount}/", f"{self.folder}/{mount}/")
        for old, new in {"/opt/redis-stack/bin/redis-cli": str(self.cli), **self.turn}.items():
            assert old in text, old
            text = text.replace(old, new)
        return text

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        (self.folder / "config/guard.sh").write_text(self.turned(self.files["scheduler/guard.sh"]))
        (self.folder / "config/housekeeping.lua").write_text(self.files["scheduler/housekeeping.lua"])
        with self.said.open("ab") as log:
            self.process = subprocess.Popen(
                [str(shutil.which(self.shell)), self.folder / "config/guard.sh"],
                env={**os.environ, "POD_IPS": f"{OURS},fd00::1", **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.process

    def stop(self) -> None:
        if self.process:
            with contextlib.suppress(ProcessLookupError):  # its children end too, as in a container
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def log(self) -> str:
        return self.said.read_text() if self.said.exists() else ""


def executable(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)


@pytest.fixture
def pod(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pod]:
    """Return a pod whose Redis answers CLIENT LIST with the file `list`, and does not answer without that file.

    Its NativeLink records each start.
    """
    pod = Pod(tmp_path, getattr(request, "param", "dash"))
    executable(
        pod.cli,
        f'case "$*" in\n  *"client list") cat {tmp_path}/list ;;\n'
        f'  *"client pause"*) echo "$*" >> {tmp_path}/paused ;;\n'
        f"  *) test -e {tmp_path}/list ;;\nesac\n",
    )
    executable(pod.binary, f"trap 'sleep 1; exit 7' TERM\necho $1 >> {tmp_path}/starts\nwhile :; do sleep 0.1; done\n")
    (tmp_path / "starts").touch()
    yield pod
    pod.stop()


def answer(pod: Pod, *lines: str) -> None:
    (pod.folder / "new").write_text("".join(f"{line}\n" for line in lines))
    (pod.folder / "new").rename(pod.folder / "list")


def starts(pod: Pod) -> int:
    return len((pod.folder / "starts").read_text().splitlines())


@BOTH_SHELLS
def test_a_scheduler_that_matches_is_not_restarted_and_its_exit_ends_the_container(pod: Pod) -> None:
    pod.matching.touch()  # left by the container before
    answer(pod, MATCHES)
    process = pod.start()
    until("the marker", lambda: "NativeLink matches" in pod.log() and pod.matching.exists(), 5)
    assert (pod.folder / "starts").read_text() == f"{pod.folder}/config/scheduler.json5\n"
    began = time.monotonic()
    process.terminate()
    assert process.wait(timeout=patient(10)) == 7, "the script ends with NativeLink's status"
    assert time.monotonic() - began > 0.9, "the script waits for NativeLink to handle the signal"
    assert starts(pod) == 1


def test_a_scheduler_that_ends_by_itself_ends_the_container(pod: Pod) -> None:
    executable(pod.binary, "exit 3\n")
    answer(pod)
    assert pod.start().wait(timeout=patient(5)) == 3
    assert not pod.matching.exists()


LISTENING = ("psubscribe", "ping", "client|setinfo", "script|load")
READING = ("FT.AGGREGATE", "FT.CURSOR|READ", "hmget", "hget")
"""With a long queue, one of these is nearly always the last command of a scheduler that matches."""


OTHERS = ((OTHER, "redis-rs"), ("0.0.0.1", "redis-rs"), (OURS, "redis-py"), ("[fd00::11]", "redis-rs"))
"""The addresses and libraries of clients that are no scheduler of this pod."""


@pytest.mark.parametrize(
    ("pod", "address", "library", "command"),
    [
        *(("dash", OURS, "redis-rs", command) for command in LISTENING),
        *(("dash", *other, "FT.AGGREGATE") for other in OTHERS),
        ("bash", OURS, "redis-rs", "ping"),
    ],
    indirect=["pod"],
)
def test_a_scheduler_that_only_listens_is_restarted(pod: Pod, address: str, library: str, command: str) -> None:
    pod.matching.touch()
    answer(pod, LINE.format(address=address, psub=1, command=command, library=library), DEAD)
    pod.start()
    until("a second start", lambda: starts(pod) == 2, 10)
    assert "has not matched for 4 seconds" in pod.log()
    assert not pod.matching.exists(), "the script removes the file of the container before"


@pytest.mark.parametrize(("address", "command"), [*((OURS, each) for each in READING), ("[fd00::1]", "FT.AGGREGATE")])
def test_a_scheduler_that_reads_the_queue_matches(pod: Pod, address: str, command: str) -> None:
    answer(pod, LINE.format(address=address, psub=1, command=command, library="redis-rs"))
    pod.start()
    until("the marker", pod.matching.exists, 5)
    assert starts(pod) == 1


@BOTH_SHELLS
def test_the_script_waits_for_redis_and_does_not_end_a_scheduler_while_redis_is_down(pod: Pod) -> None:
    pod.start()
    time.sleep(2)
    assert starts(pod) == 0
    answer(pod, DEAD)
    until("NativeLink's start", lambda: starts(pod) == 1, 5)
    (pod.folder / "list").unlink()
    time.sleep(6)
    assert starts(pod) == 1
    answer(pod, MATCHES)
    until("the marker", pod.matching.exists, 5)
    (pod.folder / "list").unlink()
    time.sleep(6)
    answer(pod, DEAD)
    time.sleep(6)
    assert starts(pod) == 1, "a scheduler that has matched stays alive, whatever its last command was"


@BOTH_SHELLS
def test_a_redis_that_does_not_show_the_pods_connection_is_reported(pod: Pod) -> None:
    pod.turn = {'"$unseen" -lt 60': '"$unseen" -lt 6', '"$unseen" -eq 60': '"$unseen" -eq 6'}
    answer(pod, LINE.format(address=OTHER, psub=1, command="FT.AGGREGATE", library="redis-rs"))
    pod.start()
    wanted = f"guard: Redis shows no connection of lib-name redis-rs from {OURS},fd00::1: "
    until("the report", lambda: wanted in pod.log(), 10)
    assert not pod.matching.exists()


@BOTH_SHELLS
def test_a_lost_subscription_is_renewed_and_a_working_one_is_kept(pod: Pod) -> None:
    pod.turn = {"while sleep 10": "while sleep 1"}
    answer(pod, MATCHES)
    pod.start()
    until("the marker", pod.matching.exists, 5)
    time.sleep(3)
    paused = pod.folder / "paused"
    assert not paused.exists()
    answer(pod, LINE.format(address=OURS, psub=0, command="hmget", library="redis-rs"))
    until("a pause", paused.exists, 10)
    assert "client pause 4500 all" in paused.read_text()
    assert starts(pod) == 1


# On a real Redis, with the stand-in ----------------------------------------------------------------------------------


FARM = render.tree(
    values_of(
        nativelink_scheduler_backend="redis",
        nativelink_cas_replicas=1,
        nativelink_worker_isolation="none",
        nativelink_worker_pools=[{"name": "default", "platform_properties": {"pool": "default"}, "slots": 20}],
    )
)
CONFIGURATIONS = {"cas": "cas/cas", "scheduler": "scheduler/scheduler", "worker": "worker/default/worker"}
LISTENERS = [
    f"{name}:{port}"
    for name, file in CONFIGURATIONS.items()
    for port in re.findall(r"0\.0\.0\.0:(\d+)", FARM[f"{file}.json5"])
]


class Farm(Pod):
    """A rendered farm on a real Redis: the scheduler with its script, a CAS and a worker, processes of the stand-in."""

    def __init__(self, folder: Path) -> None:
        self.redis = Redis(folder)
        super().__init__(folder, "dash", self.redis.cli)
        self.files, self.running = FARM, list[subprocess.Popen[Any]]()
        self.ports = dict(zip(LISTENERS, map(str, free_ports(len(LISTENERS))), strict=True))
        self.turn = {
            "-h nativelink-redis -p 6379": f"-h 127.0.0.1 -p {self.redis.port}",
            "50080": self.ports["scheduler:50080"],
        }
        self.binary.symlink_to(build.program("nativelink"))
        executable(folder / "config/precondition.sh", "")
        for name, file in CONFIGURATIONS.items():
            (folder / f"config/{name}.json5").write_text(self.here(name, FARM[f"{file}.json5"]))
        self.run("cas")
        self.run("worker", POD_NAME="worker")

    def here(self, name: str, text: str) -> str:
        """Return a configuration whose addresses and folders are those of this farm."""
        text = re.sub(r"nativelink-(cas|scheduler)[\w.-]*:", r"\1:", text.replace("0.0.0.0:", f"{name}:"))
        for listener, port in self.ports.items():
            text = text.replace(listener, f"127.0.0.1:{port}")
        text = text.replace(":${REDIS_PASSWORD}@nativelink-redis:6379", f"127.0.0.1:{self.redis.port}")
        return re.sub('"/(config|scratch|var)/', rf'"{self.folder}/\1/', text)

    def run(self, config: str, **environment: str) -> None:
        """Start the stand-in with a configuration in `config/`."""
        path = self.folder / f"config/{config}.json5"
        with (self.folder / f"{config}.log").open("ab") as log:
            command = [build.program("nativelink"), path]
            self.running.append(
                subprocess.Popen(command, env={**os.environ, **SCHEMA, **environment}, stdout=log, stderr=log)
            )

    def build(self, actions: int = 1, seconds: str = "0-0", timeout: float = 0) -> Process:
        scheduler, cas = (f"grpc://127.0.0.1:{self.ports[name]}" for name in ("scheduler:50052", "cas:50051"))
        options = (f"--actions={actions}", f"--seconds={seconds}", f"--timeout={timeout or patient(60)}")
        self.running.append(Client(scheduler, cas).start(*options, "--retries=20", pool="default"))
        return self.running[-1]

    def guarded(self, **environment: str) -> None:
        self.start(POD_IPS="127.0.0.1", LD_LIBRARY_PATH=str(self.folder), **SCHEMA, **environment)

    def psub(self) -> list[str]:
        return [
            line.partition(" psub=")[2].partition(" ")[0]
            for line in self.redis.run("client", "list").splitlines()
            if "lib-name=redis-rs" in line
        ]

    def stop(self) -> None:
        super().stop()
        for process in self.running:
            process.kill()
            process.wait()
        self.redis.stop()
        for log in self.folder.glob("*.log"):  # pytest shows it if the test failed
            print(f"--- {log.name}\n{log.read_text()[-2000:]}")


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    made = Farm(tmp_path)
    yield made
    made.stop()


def test_a_build_runs_although_the_first_two_starts_are_dead(farm: Farm) -> None:
    farm.guarded(NATIVELINK_STANDIN_DEAD_STARTS="2")
    until("NativeLink to match", farm.matching.exists, 40, farm.log)
    assert farm.log().count("starting it anew") == 2
    assert farm.build().wait(timeout=patient(90)) == 0


def test_without_the_guard_the_build_hangs(farm: Farm) -> None:
    """The counter-run of the test above starts a dead scheduler without guard.sh."""
    farm.run("scheduler", NATIVELINK_STANDIN_DEAD_STARTS="1")
    time.sleep(2)
    build = farm.build(timeout=20)
    until("the action", lambda: bool(farm.redis.run("KEYS", "aa_*")), 10)
    time.sleep(8)
    assert farm.redis.run("HGET", farm.redis.run("KEYS", "aa_*"), "state") == "queued"
    assert build.wait(timeout=patient(60)) == 1


def build_over_a_restart(farm: Farm, timeout: float = 0) -> Process:
    """Start a build, and Redis anew while its actions run."""
    farm.guarded()
    until("NativeLink to match", farm.matching.exists, 40, farm.log)
    build = farm.build(20, "2-4", timeout)
    until("actions to run", lambda: bool(farm.redis.run("KEYS", "aa_*")), 20)
    time.sleep(1)
    farm.redis.stop()
    time.sleep(3)
    farm.redis.start()
    return build


def test_without_retries_a_restart_of_redis_strands_actions(farm: Farm) -> None:
    """The counter-run of the next test takes the retries out of the configuration."""
    config = farm.folder / "config/scheduler.json5"
    text = config.read_text()
    config.write_text(text.replace("retry: {max_retries: 8},", ""))
    assert config.read_text() != text
    assert build_over_a_restart(farm, timeout=30).wait(timeout=patient(90)) == 1


def test_a_restart_of_redis_loses_nothing_and_the_subscription_is_renewed(farm: Farm) -> None:
    farm.turn["while sleep 10"] = "while sleep 1"
    build = build_over_a_restart(farm)
    told = build.communicate(timeout=patient(90))[0]
    assert build.returncode == 0, told
    until("the subscription", lambda: "1" in farm.psub(), 40, farm.log)
    assert farm.log().count("NativeLink matches") == 1, "NativeLink was not restarted"
