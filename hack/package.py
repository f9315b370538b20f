"""What a release publishes: the chart and the collection of the commit that is checked out, checksums and provenance.

``python -m hack.package FOLDER`` makes the folder and writes into it:

- the chart, and with ``--key`` its signature (``.prov``), which ``helm verify`` checks;
- the collection, as ``ansible-galaxy collection build`` makes it;
- an in-toto statement with SLSA provenance, which says from which commit both were made;
- ``SHA256SUMS`` of these files.

The same commit and Python give the same bytes, but for the signature. The other tools are pinned in the commit.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import yaml

from testbed import build

ROOT = Path(__file__).resolve().parents[1]


def _git(*arguments: str | Path) -> str:
    return build.run("git", *arguments, cwd=ROOT).strip()


def _export(commit: str, folder: Path) -> Path:
    """Write the files of a commit into a folder, so that what is not committed stays out of the release."""
    archive, source = folder / "source.tar", folder / "source"
    _git("archive", "--output", archive, commit)
    source.mkdir()
    build.run("tar", "--extract", "--file", archive, "--directory", source)
    return source


def _chart(source: Path, target: Path, seconds: int, signing: list[str]) -> Path:
    """Package the chart. Helm may ask for the key's passphrase, so its output is not captured."""
    helm = build.program("helm")
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(seconds)}
    command = [helm, "package", source / "charts/nativelink", "--destination", target, *signing]
    subprocess.run(command, check=True, env=environment)
    (chart,) = target.glob("*.tgz")
    return chart


def _collection(source: Path, target: Path, seconds: int) -> Path:
    """Build the collection, and pack it again with its files in order and the time of the commit.

    ansible-galaxy takes the order of the file system and the time of the clock.
    """
    build.run("ansible-galaxy", "collection", "build", source, "--output-path", source.parent)
    (built,) = source.parent.glob("*.tar.gz")
    with tarfile.open(built) as files:
        members = sorted(files, key=lambda member: member.name)
        content = {member.name: files.extractfile(member).read() for member in members if member.isfile()}
    listed, manifest = (json.loads(content[name]) for name in ("FILES.json", "MANIFEST.json"))
    listed["files"].sort(key=lambda file: file["name"])
    content["FILES.json"] = json.dumps(listed, indent=True).encode()
    manifest["file_manifest_file"]["chksum_sha256"] = hashlib.sha256(content["FILES.json"]).hexdigest()
    content["MANIFEST.json"] = json.dumps(manifest, indent=True).encode()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as files:
        for member in members:
            data = content.get(member.name, b"")
            member.size, member.mtime, member.pax_headers = len(data), seconds, {}
            files.addfile(member, io.BytesIO(data))
    collection = target / built.name
    collection.write_bytes(gzip.compress(packed.getvalue(), mtime=seconds))
    return collection


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def statement(artifacts: list[Path], commit: str, repository: str, builder: str) -> dict[str, Any]:
    """Return the in-toto statement (v1) with the SLSA provenance (v1) of files that a commit made."""
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": path.name, "digest": {"sha256": _sha256(path)}} for path in artifacts],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": f"{repository}#make-package",
                "externalParameters": {"commit": commit},
                "resolvedDependencies": [{"uri": f"git+{repository}", "digest": {"gitCommit": commit}}],
            },
            "runDetails": {"builder": {"id": builder}},
        },
    }


def package(target: Path, signing: list[str], builder: str | None) -> None:
    """Write everything that a release publishes into a new folder."""
    commit = _git("rev-parse", "HEAD")
    seconds = int(_git("log", "-1", "--format=%ct"))
    if _git("status", "--porcelain"):
        print("uncommitted changes are left out", file=sys.stderr)
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        source = _export(commit, Path(folder))
        artifacts = [_chart(source, target, seconds, signing), _collection(source, target, seconds)]
        about = yaml.safe_load((source / "galaxy.yml").read_text())
    said = statement(artifacts, commit, about["repository"], builder or f"{about['repository']}#local-builder")
    provenance = target / f"nativelink-gitops-{about['version']}.intoto.json"
    provenance.write_text(json.dumps(said, indent=2) + "\n")
    published = [*artifacts, provenance, *target.glob("*.prov")]
    sums = [f"{_sha256(path)}  {path.name}\n" for path in sorted(published)]
    (target / "SHA256SUMS").write_text("".join(sums))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Make what a release publishes from the commit that is checked out.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--key", help="sign the chart with the key of this name; needs --keyring")
    parser.add_argument("--keyring", help="file that `gpg --export-secret-keys` wrote, because Helm reads no other")
    parser.add_argument("--builder", help="URI of what runs this, for the provenance (default: a local builder)")
    given = parser.parse_args()
    if bool(given.key) != bool(given.keyring):
        parser.error("--key and --keyring go together")
    signing = ["--sign", "--key", given.key, "--keyring", given.keyring] if given.key else []
    package(given.folder, signing, given.builder)


if __name__ == "__main__":
    try:
        main()
    except (build.BuildError, subprocess.CalledProcessError, FileExistsError) as error:
        sys.exit(f"package: {error}")
