"""Tests of the conformance run without a NativeLink: which files it accepts, and what it reports.

Tests that run a NativeLink use the stand-in, in an image as docker saves it, or a script.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils.versions import VERSIONS

from conformance import trees
from conformance.checks import KINDS
from conformance.namespaces import has_users
from conformance.subject import SubjectError, subject
from conformance.workloads import SECRET, workloads_of
from testbed import build
from testkit.trees import CLUSTERS, ROOT, VERSION, committed

OLDER = next(version for version in VERSIONS if version != VERSION)
REFUSES = f"""#!/bin/sh
[ "$1" = --version ] && echo "nativelink {VERSION.removeprefix("v")}" && exit
echo "error: missing field weight" >&2
exit 1
"""


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the files that a failed run leaves for its user."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def namespaces() -> bool:
    """Return True if this machine allows the namespaces of pods."""
    command = ["unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--mount-proc", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


needs_namespaces = pytest.mark.skipif(
    not namespaces(), reason="pods need namespaces, and so root or a kernel that allows user namespaces"
)


# A run without root has no other users, which isolated workers need.
NOT_RUN = ["not", "run", "isolation", "needs", "root"]
ISOLATES = os.geteuid() == 0 and has_users()
ALONE = ("unshare", "--user", "--map-root-user")


def run(*arguments: str | Path, within: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*within, sys.executable, "-m", "conformance", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def layer(files: Mapping[str, bytes | str]) -> bytes:
    """Return a layer with files. An entry whose content is a text is a symbolic link."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as packed:
        for name, found in files.items():
            entry = tarfile.TarInfo(name)
            if isinstance(found, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, found
                packed.addfile(entry)
            else:
                entry.size, entry.mode = len(found), 0o755
                packed.addfile(entry, io.BytesIO(found))
    return content.getvalue()


def saved(path: Path, *layers: bytes, tags: tuple[str, ...], images: int = 1) -> Path:
    """Write a tarball as `docker save` does, of an image whose entrypoint is /bin/nativelink."""
    files = {f"{number}/layer.tar": content for number, content in enumerate(layers)}
    image = {"Config": "config.json", "RepoTags": list(tags), "Layers": list(files)}
    files["config.json"] = json.dumps({"config": {"Entrypoint": ["/bin/nativelink"]}}).encode()
    files["manifest.json"] = json.dumps([image] * images).encode()
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def stand_in(path: Path) -> Path:
    """Write the stand-in's image, which also contains the schema of its version."""
    program = build.program("nativelink")
    schema = ROOT / "schemas" / f"nativelink-{VERSION}.schema.json"
    files = {"bin/nativelink": program.read_bytes(), "bin/nativelink.schema.json": schema.read_bytes()}
    return saved(path, layer(files), tags=(f"nativelink:{VERSION}",))


def clusters(folder: Path, name: str, old: str, new: str) -> Path:
    """Make a folder of clusters with a committed one, in whose files one text is replaced with another."""
    rendered, files = folder / name / "rendered", committed("dev")
    assert any(old in text for text in files.values()), old
    for path, text in files.items():
        (rendered / path).parent.mkdir(parents=True, exist_ok=True)
        (rendered / path).write_text(text.replace(old, new))
    return folder


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


# Files of NativeLink


def test_without_a_file_it_explains_how_to_get_one() -> None:
    done = run()
    assert done.returncode == 2
    assert "make conformance NATIVELINK=FILE" in done.stderr
    assert f"docker pull ghcr.io/tracemachina/nativelink:{VERSION}\n" in done.stderr
    assert f"docker save ghcr.io/tracemachina/nativelink:{VERSION} -o nativelink-{VERSION}.tar\n" in done.stderr


def test_a_missing_file_is_named() -> None:
    done = run("/nowhere/nativelink")
    assert done.returncode == 2
    assert "/nowhere/nativelink does not exist" in done.stderr


def test_the_entrypoint_of_an_image_is_extracted_from_its_last_layer(tmp_path: Path) -> None:
    real = f"#!/bin/sh\necho nativelink {OLDER.removeprefix('v')}\n".encode()
    layers = layer({"bin/nativelink": b"an older one"}), layer({"bin/nativelink": "../opt/it", "opt/it": real})
    found = subject(saved(tmp_path / "image.tar", *layers, tags=("example.com/mirror/nativelink:latest",)), tmp_path)
    assert (found.version, found.stand_in, found.title) == (OLDER, False, OLDER)
    assert Path(found.binary).read_bytes() == real


def test_the_stand_in_is_named_as_such_and_has_the_version_of_its_tag(tmp_path: Path) -> None:
    found = subject(stand_in(tmp_path / "image.tar"), tmp_path)
    assert (found.version, found.stand_in, found.title) == (VERSION, True, f"{VERSION}*")


@pytest.mark.parametrize(
    ("tags", "images", "layers", "message"),
    [
        (("nativelink:latest",), 1, [{"bin/nativelink": b"#!/bin/sh\n"}], "its version is unknown"),
        (("nativelink:v1.0.0",), 1, [{"bin/nativelink": b"#!/bin/sh\n"}], "its version is v1.0.0"),
        ((f"nativelink:{VERSION}",), 2, [{"bin/nativelink": b"#!/bin/sh\n"}], "has 2 images"),
        ((f"nativelink:{VERSION}",), 1, [{"bin/other": b""}], "no layer has the entrypoint /bin/nativelink"),
        ((f"nativelink:{VERSION}",), 1, [{"bin/nativelink": b"\x7fELF of another machine"}], "does not run"),
    ],
)
def test_other_images_are_refused(
    tmp_path: Path, tags: tuple[str, ...], images: int, layers: list[dict[str, bytes | str]], message: str
) -> None:
    image = saved(tmp_path / "image.tar", *map(layer, layers), tags=tags, images=images)
    with pytest.raises(SubjectError, match=message):
        subject(image, tmp_path)


def test_a_tarball_of_something_else_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "other.tar", "w") as archive:
        archive.add(__file__, "file")
    with pytest.raises(SubjectError, match=r"other\.tar is not a tarball of docker save"):
        subject(tmp_path / "other.tar", tmp_path)


def test_a_program_of_another_name_is_refused(tmp_path: Path) -> None:
    program = script(tmp_path / "other", f"#!/bin/sh\necho native {VERSION.removeprefix('v')}\n")
    with pytest.raises(SubjectError, match="its version is unknown"):
        subject(program, tmp_path)


# Trees and workloads


def test_a_workload_matches_its_manifest() -> None:
    found = workloads_of(committed("prod"))
    assert {*found} == {"cas", "scheduler", "collector", "collector-workers", "worker default"}
    cas, worker = found["cas"], found["worker default"]
    assert cas.command == ("/nativelink", "/config/cas.json5")
    assert cas.ports == (50051, 50052, 50053, 50080)
    assert worker.command == ("/config/start.sh", "guarded")
    assert worker.drain == ("/config/drain.sh",)
    assert worker.environment["POD_NAME"] == "$POD_NAME"
    assert [*worker.configuration["config"]] == ["worker.json5", "start.sh", "precondition.sh", "drain.sh"]
    assert worker.settings == committed("prod")["worker/default/worker.json5"]
    assert {(each.volume, each.path, each.sub_path) for each in worker.mounts} >= {
        ("scratch", "/scratch", ""),
        ("scratch", "/tmp", "tmp"),
    }


def test_environment_variables_are_expanded_in_a_command() -> None:
    redis = workloads_of(dict(trees.trees(Path("/nowhere"), VERSION, 60))[first_on_redis()])["redis"]
    assert redis.command[redis.command.index("--requirepass") + 1] == SECRET


def first_on_redis() -> str:
    found = trees.variables_of(VERSION, 60)
    bundled = [
        number
        for number, variables in enumerate(found)
        if variables.get("nativelink_scheduler_backend") == "redis"
        and variables.get("nativelink_redis_provider", "bundled") == "bundled"
    ]
    return f"generated-{bundled[0]:02}"


def test_the_committed_clusters_are_rendered_again_for_the_older_version() -> None:
    found = dict(trees.trees(CLUSTERS, "v1.3.2", 0))
    assert set(found) == {"dev (again)", "local (again)", "prod (again)", "staging (again)"}
    for tree in found.values():
        assert "image: ghcr.io/tracemachina/nativelink:v1.3.2\n" in tree["cas/statefulset.yaml"]
        assert "max_action_timeout:" in next(text for path, text in tree.items() if path.endswith("worker.json5"))


@pytest.mark.parametrize("version", VERSIONS)
def test_generated_inventories_are_deterministic_and_use_every_field_of_pools(version: str) -> None:
    found = trees.variables_of(version, 60)
    assert len(found) == 60
    assert found == trees.variables_of(version, 60)
    assert {variables["nativelink_version"] for variables in found} == {version}
    pools = [pool for variables in found for pool in variables["nativelink_worker_pools"]]
    for option in ("slots", "persistent_workers", "env", "platform_properties", "fast_store_size", "longest_action"):
        assert any(option in pool for pool in pools), option
    backends = {variables.get("nativelink_scheduler_backend", "memory") for variables in found}
    assert backends == ({"memory"} if version == "v1.3.2" else {"memory", "redis"})


# The table


@needs_namespaces
def test_the_stand_in_accepts_the_configurations(tmp_path: Path) -> None:
    done = run(stand_in(tmp_path / "image.tar"), "--part=configurations", "--inventories=2")
    assert done.returncode == 0, done.stdout + done.stderr
    title = f"{VERSION}*"
    assert done.stdout.startswith(f"NativeLink {title}, a stand-in, which shows nothing about NativeLink itself")
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith(f"{title} ")]
    assert [title, "prod", "cas", "starts", "ok"] in rows
    assert [title, "generated-01", "scheduler", "starts", "ok"] in rows
    alone = [] if ISOLATES else [row for row in rows if row[-5:] == NOT_RUN]
    if ISOLATES:
        assert [title, "staging", "worker", "large", "starts", "ok"] in rows
    assert f"{title}: {len(rows) - len(alone)} ok, 0 FAILED, {len(alone)} not run" in done.stdout


@needs_namespaces
def test_isolated_workers_are_not_run_without_other_users(tmp_path: Path) -> None:
    done = run(stand_in(tmp_path / "image.tar"), "--part=configurations", "--inventories=0", within=ALONE)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith(f"{VERSION}* ")]
    assert [f"{VERSION}*", "staging", "worker", "large", "starts", *NOT_RUN] in rows
    assert [f"{VERSION}*", "staging", "cas", "starts", "ok"] in rows
    assert f"{VERSION}*: 8 ok, 0 FAILED, 5 not run" in done.stdout


@needs_namespaces
def test_attacks_are_not_run_without_other_users(tmp_path: Path) -> None:
    done = run(stand_in(tmp_path / "image.tar"), "--part=farm", "--only=result is made up", within=ALONE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{VERSION}*: 0 ok, 0 FAILED, 2 not run" in done.stdout


@needs_namespaces
def test_the_row_of_a_refused_configuration_has_its_output(tmp_path: Path) -> None:
    done = run(script(tmp_path / "nativelink", REFUSES), "--part=configurations", "--inventories=0")
    assert done.returncode == 1, done.stdout + done.stderr
    (row,) = [line for line in done.stdout.splitlines() if line.startswith(f"{VERSION:9} dev              cas starts")]
    assert row.split()[4] == "FAILED"
    assert "ended with 1: error: missing field weight" in row
    assert f": 0 ok, {'13 FAILED, 0' if ISOLATES else '8 FAILED, 5'} not run" in done.stdout


@needs_namespaces
def test_the_stand_in_refuses_what_nativelink_refuses(tmp_path: Path) -> None:
    bad = clusters(tmp_path / "clusters", "dev", '"weight": 1', "")
    done = run(stand_in(tmp_path / "image.tar"), "--part=configurations", "--inventories=0", f"--clusters={bad}")
    assert done.returncode == 1, done.stdout + done.stderr
    rows = {line[27:].split()[0]: line for line in done.stdout.splitlines() if line.startswith(f"{VERSION}* ")}
    assert sorted(rows) == ["cas", "scheduler", "worker"], "the processes with shards"
    for name, row in rows.items():
        if name == "worker" and not ISOLATES:
            continue
        assert "FAILED" in row.split()
        assert "at '/stores/" in row  # the schema requires a weight there


@needs_namespaces
def test_the_tree_of_an_unknown_cluster_is_not_run(tmp_path: Path) -> None:
    other = clusters(tmp_path / "clusters", "mine", f"nativelink:{VERSION}", f"nativelink:{OLDER}")
    command = (script(tmp_path / "nativelink", REFUSES), "--part=configurations", "--inventories=0")
    done = run(*command, f"--clusters={other}")
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = [line for line in done.stdout.splitlines() if line.startswith(f"{VERSION:9} mine")]
    assert "not run  its tree is for another version" in row


def test_each_kind_of_farm_has_a_folder_of_its_own() -> None:
    """A run without --only starts all of them."""
    assert sorted(kind.folder for kind in KINDS) == [
        "Redis",
        "attacks",
        "isolation-none",
        "memory",
        "metrics",
        "metrics-and-Redis",
        "mutual-TLS",
        "tools",
    ]


@needs_namespaces
def test_a_farm_of_the_stand_in_refuses_wrong_bytes(tmp_path: Path) -> None:
    done = run(stand_in(tmp_path / "image.tar"), "--part=farm", "--only=wrong bytes")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith(f"{f'{VERSION}*':9} farm, memory")]
    assert sum("refused by BatchUpdateBlobs and ByteStream" in row for row in rows) == 2


@needs_namespaces
def test_all_pods_of_a_farm_of_the_stand_in_report(tmp_path: Path) -> None:
    done = run(stand_in(tmp_path / "image.tar"), "--part=farm", "--only=report")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith(f"{f'{VERSION}*':9} farm, metrics")]
    assert sum("6 pods; nativelink-cas-0 has most series" in row for row in rows) == 2
    assert sum("3 queued actions count at the scheduler's port only" in row for row in rows) == 1


@needs_namespaces
def test_a_farm_of_the_stand_in_asks_for_certificates(tmp_path: Path) -> None:
    done = run(stand_in(tmp_path / "image.tar"), "--part=farm", "--only=opens ports 50053 and 50061")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith(f"{f'{VERSION}*':9} farm, mutual TLS")]
    assert sum("a worker's certificate: answers; no certificate: TLS" in row for row in rows) == ISOLATES
