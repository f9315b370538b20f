"""What `make package` makes of the last commit: what a user would download, and how a user verifies it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from testbed import build
from testkit.facts import at
from testkit.repository import git

from .conftest import ROOT, install, run

VERSION = yaml.safe_load((ROOT / "galaxy.yml").read_text())["version"]
CHART = f"nativelink-{VERSION}.tgz"
COLLECTION = f"nativelink-gitops-{VERSION}.tar.gz"
STATEMENT = f"nativelink-gitops-{VERSION}.intoto.json"


def package(folder: Path, *arguments: str | Path) -> Path:
    """Make the release."""
    run(sys.executable, "-m", "hack.package", folder, *arguments, cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package(tmp_path_factory.mktemp("release") / "dist", "--builder", "https://ci.example.com/1")


def spoil(path: Path) -> None:
    """Change the last byte of a file."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_a_release_has_what_helm_and_ansible_install(release: Path, tmp_path: Path) -> None:
    assert {path.name for path in release.iterdir()} == {CHART, COLLECTION, STATEMENT, "SHA256SUMS"}
    done = run(build.program("helm"), "template", "x", CHART, "-n", "x", "--set=cas.storageClass=gp3", cwd=release)
    assert "kind: StatefulSet" in done.stdout
    with tarfile.open(release / CHART) as chart:
        assert "nativelink/values-prod.yaml" in chart.getnames()
        assert "nativelink/README.md.gotmpl" not in chart.getnames()
    install(release / COLLECTION, tmp_path)
    assert (tmp_path / "ansible_collections/nativelink/gitops/playbooks/bootstrap.yml").is_file()


def test_the_same_commit_makes_the_same_bytes(release: Path, tmp_path: Path) -> None:
    again = package(tmp_path / "dist", "--builder", "https://ci.example.com/1")
    assert [path.name for path in again.iterdir() if path.read_bytes() != (release / path.name).read_bytes()] == []


def test_the_checksums_notice_a_changed_file(release: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(release, tmp_path / "dist")
    check = ("sha256sum", "--check", "--strict", "SHA256SUMS")
    assert run(*check, cwd=copy).stdout.count(": OK\n") == 3
    for file in (CHART, COLLECTION, STATEMENT):
        spoil(copy / file)
    assert run(*check, cwd=copy, check=False).stdout.count(": FAILED\n") == 3


def test_the_statement_says_what_was_made_from_which_commit(release: Path) -> None:
    commit = git(ROOT, "rev-parse", "HEAD").strip()
    sums = {name: hashlib.sha256((release / name).read_bytes()).hexdigest() for name in (CHART, COLLECTION)}
    statement = json.loads((release / STATEMENT).read_text())
    types = ("https://in-toto.io/Statement/v1", "https://slsa.dev/provenance/v1")
    assert (statement["_type"], statement["predicateType"]) == types
    assert {each["name"]: each["digest"]["sha256"] for each in statement["subject"]} == sums
    assert at(statement, "predicate.buildDefinition.externalParameters") == {"commit": commit}
    assert at(statement, "predicate.buildDefinition.resolvedDependencies.*.digest.gitCommit") == [commit]
    assert at(statement, "predicate.runDetails.builder.id") == "https://ci.example.com/1"


@dataclass(frozen=True)
class Key:
    """A key that signs, and the two keyrings in the format that Helm reads."""

    name: str
    secret: Path
    public: Path


@pytest.fixture(scope="module")
def key() -> Iterator[Key]:
    """Make a key with GnuPG, whose agent accepts only a short path."""
    if not shutil.which("gpg"):
        pytest.skip("gpg is not installed")
    with tempfile.TemporaryDirectory(prefix="gpg") as name:
        made = Key("release@example.com", Path(name, "secret.gpg"), Path(name, "public.gpg"))
        gpg = ("gpg", "--homedir", name, "--batch", "--quiet", "--passphrase", "")
        subprocess.run([*gpg, "--quick-generate-key", made.name, "rsa3072", "sign", "never"], check=True)
        subprocess.run([*gpg, "--output", made.secret, "--export-secret-keys"], check=True)
        subprocess.run([*gpg, "--output", made.public, "--export"], check=True)
        yield made
        subprocess.run(["gpgconf", "--homedir", name, "--kill", "gpg-agent"], check=True)


def test_helm_verifies_a_signed_chart(key: Key, tmp_path: Path) -> None:
    release = package(tmp_path / "dist", "--key", key.name, "--keyring", key.secret)
    assert f"  {CHART}.prov\n" in (release / "SHA256SUMS").read_text()
    verify = (build.program("helm"), "verify", CHART, "--keyring", key.public)
    assert f"Signed by: {key.name}" in run(*verify, cwd=release).stdout
    spoil(release / CHART)
    done = run(*verify, cwd=release, check=False)
    assert done.returncode == 1
    assert "sha256 sum does not match" in done.stdout
