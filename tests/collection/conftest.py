"""The collection as users install it: built into a tarball, and installed into an empty folder."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed.waiting import patient
from testkit.playbooks import BIN, ROOT


def run(*command: str | Path, cwd: Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of Ansible, without the configuration of this checkout; the output has both streams."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "K8S_AUTH", "PYTHONPATH"))
    }
    inherited |= {"PATH": f"{BIN}:{os.environ['PATH']}", "KUBECONFIG": "/dev/null", **environment}
    done = subprocess.run(
        [str(each) for each in command],
        cwd=cwd,
        env=inherited,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=patient(600),
    )
    print(done.stdout)  # shown by pytest when the test fails
    if check:
        assert done.returncode == 0, command
    return done


def install(tarball: Path, target: Path) -> None:
    """Install the collection without the network; what it depends on is in the Python environment."""
    run("ansible-galaxy", "collection", "install", tarball, "--offline", "-p", target, cwd=tarball.parent)


@dataclass(frozen=True)
class Collection:
    """The tarball that users get, and the folder that Ansible has as `ANSIBLE_COLLECTIONS_PATH`."""

    tarball: Path
    path: Path

    @property
    def folder(self) -> Path:
        return self.path / "ansible_collections/nativelink/gitops"


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """Build and install the collection from the committed and changed files of this checkout."""
    folder = tmp_path_factory.mktemp("collection")
    run("ansible-galaxy", "collection", "build", ROOT, "--output-path", folder, cwd=folder)
    (tarball,) = folder.glob("nativelink-gitops-*.tar.gz")
    install(tarball, folder / "collections")
    return Collection(tarball, folder / "collections")
