"""The program of isolated workers: its bytes, and what it says where it cannot work. The attacks are in conformance."""

import os
import subprocess
from pathlib import Path

import pytest

from testbed import clang

NEEDED = ("chown", "dac_override", "fowner", "kill", "setgid", "setuid")
BOUNDED = f"--bounding-set=-all,{','.join(f'+{name}' for name in NEEDED)}"


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_the_committed_program_is_what_the_pinned_compiler_makes(architecture: str) -> None:
    assert clang.isolation(architecture) == (clang.ISOLATION / architecture).read_bytes()


@pytest.fixture
def prepare(tmp_path: Path) -> Path:
    program = tmp_path / "prepare"
    program.symlink_to(clang.ISOLATION / "amd64")
    return program


def said(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (126, "")
    return done.stderr


def test_it_runs_on_this_machine(prepare: Path) -> None:
    assert subprocess.run([prepare, "--version"], check=False).returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up some of its privileges")
@pytest.mark.parametrize(
    ("before", "says"),
    [
        (("--reuid=65532", "--clear-groups", "--no-new-privs"), "must run as user 0 (runAsUser)"),
        *(((f"{BOUNDED},-{name}", "--no-new-privs"), f"lacks the capabilities {name.upper()}") for name in NEEDED),
        ((BOUNDED,), "must not allow privilege escalation (allowPrivilegeEscalation: false)"),
    ],
)
def test_a_container_that_cannot_isolate_is_told_why(prepare: Path, before: tuple[str, ...], says: str) -> None:
    prepare.parent.chmod(0o755)
    assert said("setpriv", *before, prepare) == f"isolation: the container {says}\n"


def test_an_action_outside_of_the_directory_of_an_action_is_refused(tmp_path: Path) -> None:
    action = tmp_path / "action"
    action.symlink_to(clang.ISOLATION / "amd64")
    assert said(action, "true") == "isolation: the command is not in a directory of /scratch/actions\n"
