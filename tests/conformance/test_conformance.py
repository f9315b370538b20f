"""Tests of the conformance run without a NativeLink: which files it accepts, and what it reports.

Tests that run a NativeLink use the stand-in, in an image as docker saves it.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils.versions import VERSIONS

from conformance import trees
from conformance.namespaces import has_users
from testbed import build
from testkit.subject import subject
from testkit.trees import CLUSTERS, ROOT, VERSION, committed

OLDER = [*VERSIONS][-1]
SCRIPT = b"#!/bin/sh\n"
NAMESPACES = ("unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--mount-proc", "true")
AS_USER = NAMESPACES[:3]
needs_namespaces = pytest.mark.skipif(
    subprocess.run(NAMESPACES, capture_output=True, check=False).returncode != 0,
    reason="pods need namespaces, and so root or a kernel that allows user namespaces",
)


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the files that a failed run leaves for its user."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def run(*arguments: str | Path, within: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*within, sys.executable, "-m", "conformance", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def layer(files: Mapping[str, bytes | str], mode: Literal["w:gz", "w"] = "w:gz") -> bytes:
    """Return a tarball of files, such as a layer. An entry whose content is a text is a symbolic link."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as packed:
        for name, found in files.items():
            entry = tarfile.TarInfo(name)
            if isinstance(found, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, found
                packed.addfile(entry)
            else:
                entry.size, entry.mode = len(found), 0o755
                packed.addfile(entry, io.BytesIO(found))
    return content.getvalue()


def saved(path: Path, *layers: bytes, tag: str, images: int = 1) -> Path:
    """Write a tarball as `docker save` does, of an image whose entrypoint is /bin/nativelink."""
    files: dict[str, bytes | str] = {f"{number}/layer.tar": content for number, content in enumerate(layers)}
    image = {"Config": "config.json", "RepoTags": [tag], "Layers": list(files)}
    files["config.json"] = json.dumps({"config": {"Entrypoint": ["/bin/nativelink"]}}).encode()
    files["manifest.json"] = json.dumps([image] * images).encode()
    path.write_bytes(layer(files, "w"))
    return path


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the stand-in's image, which also contains the schema of its version."""
    program = build.program("nativelink")
    schema = ROOT / "schemas" / f"nativelink-{VERSION}.schema.json"
    files = {"bin/nativelink": program.read_bytes(), "bin/nativelink.schema.json": schema.read_bytes()}
    return saved(tmp_path_factory.mktemp("stand-in") / "image.tar", layer(files), tag=f"nativelink:{VERSION}")


# Files of NativeLink


def test_without_a_file_it_explains_how_to_get_one() -> None:
    done = run()
    assert done.returncode == 2
    assert "make conformance NATIVELINK=FILE" in done.stderr
    assert f"\n    docker save ghcr.io/tracemachina/nativelink:{VERSION} -o FILE\n" in done.stderr


def test_a_missing_file_is_named() -> None:
    done = run("/nowhere/nativelink")
    assert done.returncode == 2
    assert "/nowhere/nativelink does not exist" in done.stderr


def test_the_entrypoint_of_an_image_is_extracted_from_its_last_layer(tmp_path: Path) -> None:
    real = f"#!/bin/sh\necho nativelink {OLDER.removeprefix('v')}\n".encode()
    layers = layer({"bin/nativelink": b"an older one"}), layer({"bin/nativelink": "../opt/it", "opt/it": real})
    found = subject(saved(tmp_path / "image.tar", *layers, tag="example.com/mirror/nativelink:latest"), tmp_path)
    assert (found.version, found.stand_in, found.title) == (OLDER, False, OLDER)
    assert Path(found.binary).read_bytes() == real


def test_a_version_that_is_newer_than_the_table_is_tested(tmp_path: Path) -> None:
    newer = layer({"bin/nativelink": b"#!/bin/sh\necho nativelink 9.9.9\n"})
    assert subject(saved(tmp_path / "image.tar", newer, tag="nativelink:latest"), tmp_path).version == "v9.9.9"


def test_the_stand_in_is_named_as_such_and_has_the_version_of_its_tag(stand_in: Path, tmp_path: Path) -> None:
    found = subject(stand_in, tmp_path)
    assert (found.version, found.stand_in, found.title) == (VERSION, True, f"{VERSION}*")


@pytest.mark.parametrize(
    ("tag", "images", "files", "message"),
    [
        ("latest", 1, {"bin/nativelink": SCRIPT}, "its version is unknown"),
        ("latest", 1, {"bin/nativelink": SCRIPT + b"echo native 1.6.6\n"}, "its version is unknown"),
        ("v1.0.0", 1, {"bin/nativelink": SCRIPT}, "its version is v1.0.0"),
        (VERSION, 2, {"bin/nativelink": SCRIPT}, "has 2 images"),
        (VERSION, 1, {"bin/other": b""}, "no layer has the entrypoint /bin/nativelink"),
        (VERSION, 1, {"bin/nativelink": b"\x7fELF of another machine"}, "does not run"),
    ],
)
def test_other_images_are_refused(
    tmp_path: Path, tag: str, images: int, files: dict[str, bytes | str], message: str
) -> None:
    image = saved(tmp_path / "image.tar", layer(files), tag=f"nativelink:{tag}", images=images)
    with pytest.raises(build.BuildError, match=message):
        subject(image, tmp_path)


def test_a_tarball_of_something_else_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "other.tar", "w") as archive:
        archive.add(__file__, "file")
    with pytest.raises(build.BuildError, match=r"other\.tar is not a tarball of docker save"):
        subject(tmp_path / "other.tar", tmp_path)


# Trees


def test_the_committed_clusters_are_rendered_again_for_the_older_version() -> None:
    found = dict(trees.trees(CLUSTERS, OLDER, 0))
    assert set(found) == {"dev (again)", "local (again)", "prod (again)", "staging (again)"}
    for tree in found.values():
        assert f"image: ghcr.io/tracemachina/nativelink:{OLDER}\n" in tree["cas/statefulset.yaml"]
        assert "max_action_timeout:" in next(text for path, text in tree.items() if path.endswith("worker.json5"))


# The table


def rows(done: subprocess.CompletedProcess[str], status: int) -> dict[str, str]:
    """Return what stands behind the name of each check, whose blanks are single: `ok`, `not run REASON` …"""
    assert done.returncode == status, done.stdout + done.stderr
    assert done.stdout.startswith(f"NativeLink {VERSION}*, a stand-in, which shows nothing about NativeLink itself")
    found = [line for line in done.stdout.splitlines() if line.startswith(f"{VERSION}* ")]
    return {" ".join(line[10:85].split()): line[86:] for line in found}


@needs_namespaces
def test_the_stand_in_accepts_the_configurations(stand_in: Path) -> None:
    found = rows(run(stand_in, "--part=configurations", "--inventories=2"), 0)
    assert {"staging worker large starts", "generated-01 scheduler starts"} <= {*found}
    isolates = os.geteuid() == 0 and has_users()
    assert {told for name, told in found.items() if "worker" not in name} == {"ok"}
    assert found["staging worker large starts"] == ("ok" if isolates else "not run  isolation needs root")


@needs_namespaces
def test_a_farm_of_the_stand_in_asks_for_certificates(stand_in: Path) -> None:
    ((name, told),) = rows(run(stand_in, "--part=farm", "--only=opens ports 50053"), 0).items()
    assert name == "farm, mutual TLS only a worker's certificate opens ports 50053 and 50061"
    assert told.startswith(("ok       a worker's certificate: answers; no certificate: TLS", "not run  isolation"))


@needs_namespaces
def test_a_refused_configuration_has_its_output_and_the_others_the_reason_why_they_are_not_run(
    stand_in: Path, tmp_path: Path
) -> None:
    for name, old, new in (("dev", "weight: 1,", ""), ("mine", f"nativelink:{VERSION}", f"nativelink:{OLDER}")):
        assert any(old in text for text in committed("dev").values())
        for path, text in committed("dev").items():
            file = tmp_path / "clusters" / name / "rendered" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text.replace(old, new))
    arguments = (stand_in, "--part=configurations", "--inventories=0", f"--clusters={tmp_path / 'clusters'}")
    found = rows(run(*arguments, within=AS_USER), 1)
    for process in ("cas", "scheduler"):
        assert found[f"dev {process} starts"].startswith("FAILED")
        assert "at '/stores/" in found[f"dev {process} starts"]  # the schema requires a weight there
    assert found["dev worker default starts"] == "not run  isolation needs root"
    assert found["mine (again) everything starts"].startswith("not run  its tree is for another version")


@needs_namespaces
def test_a_run_without_a_check_does_not_pass(stand_in: Path) -> None:
    assert run(stand_in, "--part=configurations", "--inventories=0", "--only=no such check").returncode == 2
