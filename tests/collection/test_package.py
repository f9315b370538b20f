"""What `make package` makes of the last commit: what a user would download, and how a user verifies it."""

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
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


def test_a_release_has_what_helm_and_ansible_install(release: Path, tmp_path: Path) -> None:
    assert {path.name for path in release.iterdir()} == {CHART, COLLECTION, STATEMENT, "SHA256SUMS"}
    values = "--set=cas.storageClass=gp3,edge.kind=none"
    done = run(build.program("helm"), "template", "x", CHART, "--namespace=x", values, cwd=release)
    assert "kind: StatefulSet" in done.stdout
    with tarfile.open(release / CHART) as chart:
        assert "nativelink/values-prod.yaml" in chart.getnames()
        assert "nativelink/README.md.gotmpl" not in chart.getnames()
    install(release / COLLECTION, tmp_path)
    assert (tmp_path / "ansible_collections/nativelink/gitops/playbooks/bootstrap.yml").is_file()


def test_the_same_commit_makes_the_same_bytes(release: Path, tmp_path: Path) -> None:
    again = package(tmp_path / "dist", "--builder", "https://ci.example.com/1")
    assert [path.name for path in again.iterdir() if path.read_bytes() != (release / path.name).read_bytes()] == []


def test_the_checksums_are_those_of_the_files(release: Path) -> None:
    assert run("sha256sum", "--check", "--strict", "SHA256SUMS", cwd=release).stdout.count(": OK\n") == 3


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


def test_helm_verifies_a_signed_chart(tmp_path: Path) -> None:
    if not shutil.which("gpg"):
        pytest.skip("gpg is not installed")
    name = "release@example.com"
    with tempfile.TemporaryDirectory(prefix="gpg") as home:  # the agent of GnuPG accepts only a short path
        secret, public = Path(home, "secret.gpg"), Path(home, "public.gpg")  # in the format that Helm reads
        gpg = ("gpg", "--homedir", home, "--batch", "--quiet", "--passphrase", "")
        subprocess.run([*gpg, "--quick-generate-key", name, "rsa3072", "sign", "never"], check=True)
        subprocess.run([*gpg, "--output", secret, "--export-secret-keys"], check=True)
        subprocess.run([*gpg, "--output", public, "--export"], check=True)
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "gpg-agent"], check=True)
        release = package(tmp_path / "dist", "--key", name, "--keyring", secret)
        assert f"  {CHART}.prov\n" in (release / "SHA256SUMS").read_text()
        verified = run(build.program("helm"), "verify", CHART, "--keyring", public, cwd=release)
        assert f"Signed by: {name}" in verified.stdout
