"""Writing changes only files that differ, leaves the old or the new tree, and stays inside of the cluster's folder."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render, tree

from testkit.trees import files_of, values_of

FILES = render.tree(values_of())
COLLECTIONS = str(Path(__file__).parents[2] / ".ansible/collections")
CHANGED = render.tree(values_of(nativelink_cas_resources={"requests": {"cpu": "3"}}))


def everything(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Return the kind, modification time and content of everything in a folder, without following links."""
    found = {}
    for path in folder.rglob("*"):
        stat = path.lstat()
        content = str(path.readlink()) if path.is_symlink() else path.read_text() if path.is_file() else ""
        found[str(path.relative_to(folder))] = (stat.st_mode, 0 if path.is_dir() else stat.st_mtime_ns, content)
    return found


def refused(folder: Path, files: dict[str, str] = FILES, **arguments: bool) -> str:
    """Write files, which must fail, and return the message."""
    with pytest.raises(tree.WriteError) as error:
        tree.write(folder, files, **arguments)
    return str(error.value).removeprefix("test: nativelink_clusters_dir: ")


def test_the_second_time_nothing_is_written(folder: Path) -> None:
    first = tree.write(folder, FILES)
    assert len(first.created) == len(FILES) + 2  # and the user's kustomization.yaml and patches/README.md
    assert not first.changed
    assert not first.removed
    before = everything(folder)
    assert not tree.write(folder, render.tree(values_of()))
    assert everything(folder) == before


@pytest.mark.parametrize("links", [True, False], ids=["", "without hard links"])
def test_only_the_file_that_differs_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def no_link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    tree.write(folder, FILES)
    before, inodes = everything(folder), {path: (folder / path).stat().st_ino for path in files_of(folder)}
    if not links:
        monkeypatch.setattr(os, "link", no_link)
    result = tree.write(folder, CHANGED)
    assert (result.created, result.changed, result.removed) == ([], ["rendered/cas/statefulset.yaml"], [])
    after = everything(folder)
    assert [path for path in after if after[path] != before[path]] == ["rendered/cas/statefulset.yaml"]
    if links:
        moved = [path for path, inode in inodes.items() if (folder / path).stat().st_ino != inode]
        assert moved == ["rendered/cas/statefulset.yaml"]
        assert {(folder / path).stat().st_nlink for path in inodes} == {1}


def test_a_hand_edit_and_a_deleted_file_are_put_right(folder: Path) -> None:
    tree.write(folder, FILES)
    wanted = files_of(folder)
    (folder / "rendered/cas/service.yaml").write_text("kind: Nonsense\n")
    (folder / "rendered/policy/dns.yaml").write_bytes(b"\xff\xfe")
    (folder / "rendered/scheduler/deployment.yaml").unlink()
    result = tree.write(folder, FILES)
    assert result.created == ["rendered/scheduler/deployment.yaml"]
    assert result.changed == ["rendered/cas/service.yaml", "rendered/policy/dns.yaml"]
    assert files_of(folder) == wanted


def test_files_that_are_no_longer_rendered_go_with_their_folder(folder: Path) -> None:
    pools = [{"name": "default"}, {"name": "gpu"}]
    tree.write(folder, render.tree(values_of(nativelink_worker_pools=pools)))
    (folder / "rendered/notes.txt").write_text("by hand")
    result = tree.write(folder, FILES)
    gone = ["deployment.yaml", "poddisruptionbudget.yaml", "scaledobject.yaml", "worker.json5"]
    assert result.removed == ["rendered/notes.txt", *(f"rendered/worker/gpu/{name}" for name in gone)]
    assert not (folder / "rendered/worker/gpu").exists()
    assert {path.removeprefix("rendered/") for path in files_of(folder) if path.startswith("rendered/")} == FILES.keys()


def test_the_users_files_are_written_once(folder: Path) -> None:
    tree.write(folder, FILES)
    (folder / "kustomization.yaml").write_text("resources: [rendered, mine.yaml]\n")
    (folder / "mine.yaml").write_text("kind: Mine\n")
    (folder / "patches/cas.yaml").write_text("kind: StatefulSet\n")
    (folder / "patches/README.md").unlink()
    mine = {path: text for path, text in files_of(folder).items() if not path.startswith("rendered/")}
    tree.write(folder, render.tree(values_of(nativelink_worker_pools=[{"name": "other"}])))
    assert {path: text for path, text in files_of(folder).items() if not path.startswith("rendered/")} == mine


def test_check_writes_nothing_and_says_everything(folder: Path) -> None:
    result = tree.write(folder, FILES, check=True, diff=True)
    assert len(result.created) == len(FILES) + 2
    assert len(result.diff) == len(FILES) + 2
    assert not folder.exists()

    tree.write(folder, FILES)
    (folder / "rendered/extra.yaml").write_text("extra: 1\n")
    before = everything(folder)
    result = tree.write(folder, CHANGED, check=True, diff=True)
    assert (result.changed, result.removed) == (["rendered/cas/statefulset.yaml"], ["rendered/extra.yaml"])
    changed, removed = result.diff
    assert 'cpu: "1"' in changed["before"]
    assert 'cpu: "3"' in changed["after"]
    assert (removed["before"], removed["after"]) == ("extra: 1\n", "")
    assert everything(folder) == before


def test_a_file_and_a_folder_in_each_others_place_below_rendered(folder: Path) -> None:
    tree.write(folder, FILES)
    wanted = files_of(folder)
    shutil.rmtree(folder / "rendered/cas")
    (folder / "rendered/cas").write_text("a file\n")
    (folder / "rendered/policy/dns.yaml").unlink()
    (folder / "rendered/policy/dns.yaml").mkdir()
    (folder / "rendered/policy/dns.yaml/mine.yaml").write_text("a file\n")
    result = tree.write(folder, FILES)
    assert result.removed == ["rendered/cas", "rendered/policy/dns.yaml/mine.yaml"]
    assert files_of(folder) == wanted


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("dangling", [False, True], ids=["", "dangling"])
@pytest.mark.parametrize(
    ("place", "remedy"),
    [
        ("", "put a folder in its place"),
        ("rendered", "remove the link"),
        ("rendered/cas", "remove the link"),
        ("rendered/cas/service.yaml", "remove the link"),
        ("rendered/worker/default/notes.txt", "remove the link"),
        (tree.TEMPORARY, "remove the link"),
    ],
)
def test_a_symbolic_link_is_refused_and_nothing_changes(
    folder: Path, tmp_path: Path, place: str, remedy: str, dangling: bool, check: bool
) -> None:
    tree.write(folder, FILES)
    outside, link = tmp_path / "outside", folder / place
    if link.exists():
        link.rename(outside)
    else:
        outside.mkdir()
    if dangling:
        outside.rename(tmp_path / "elsewhere")
    link.symlink_to(outside)
    before = everything(tmp_path)

    assert refused(folder, CHANGED, check=check) == (
        f"{link} is a symbolic link, and rendering writes only inside of the cluster's folder; "
        f"{remedy}, and render again"
    )
    assert everything(tmp_path) == before
    link.unlink()
    tree.write(folder, CHANGED)
    assert {path: files_of(folder)[f"rendered/{path}"] for path in CHANGED} == CHANGED


def test_all_links_of_a_tree_are_named_at_once(folder: Path, tmp_path: Path) -> None:
    tree.write(folder, FILES)
    names = ["rendered/cas/mine.yaml", "rendered/policy/mine.yaml"]
    for name in names:
        (folder / name).symlink_to(tmp_path)
    lines = refused(folder, CHANGED).splitlines()
    assert [line.partition(" is a ")[0].rpartition(" ")[2] for line in lines] == [str(folder / name) for name in names]


def test_nativelink_clusters_dir_may_be_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder.parent.symlink_to(tmp_path / "elsewhere")
    tree.write(folder, FILES)
    assert (tmp_path / "elsewhere/test/rendered/kustomization.yaml").read_text() == FILES["kustomization.yaml"]


@pytest.mark.parametrize("dangling", [False, True])
def test_links_among_the_users_files_are_the_users(folder: Path, tmp_path: Path, dangling: bool) -> None:
    theirs, shared = tmp_path / "kustomization.yaml", tmp_path / "shared"
    if not dangling:
        theirs.write_text("resources: [rendered]\n")
        shared.mkdir()
    folder.mkdir(parents=True)
    (folder / "patches").symlink_to(shared)
    result = tree.write(folder, FILES)
    assert result.created[0] == "kustomization.yaml", "patches/README.md is not made behind the link"

    (folder / "kustomization.yaml").unlink()
    (folder / "kustomization.yaml").symlink_to(theirs)
    before = {path: found for path, found in everything(tmp_path).items() if "/rendered" not in path}
    tree.write(folder, CHANGED)
    assert {path: found for path, found in everything(tmp_path).items() if "/rendered" not in path} == before


@pytest.mark.parametrize("place", [".", "..", "rendered", tree.TEMPORARY])
def test_a_file_where_a_folder_belongs_is_named(folder: Path, place: str) -> None:
    file = (folder / place).resolve()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("in the way\n")
    assert refused(folder) == f"{file} is a file where a folder belongs; move the file away, and render again"
    assert file.read_text() == "in the way\n"
    assert list(file.parent.iterdir()) == [file]


def test_a_pipe_below_rendered_is_named_and_not_read(folder: Path) -> None:
    tree.write(folder, FILES)
    pipe = folder / "rendered/cas/service.yaml"
    pipe.unlink()
    os.mkfifo(pipe)
    assert refused(folder) == f"{pipe} is neither a regular file nor a folder; remove it, and render again"


def test_a_second_run_at_the_same_time_is_refused(folder: Path) -> None:
    tree.write(folder, FILES)
    before = everything(folder)
    with tree._locked(folder):
        said = refused(folder, CHANGED)
    assert said == f"another run is writing {folder}; wait until it has ended, and render again"
    assert everything(folder) == before
    assert tree.write(folder, CHANGED).changed == ["rendered/cas/statefulset.yaml"]


KILLED = 9
OLD = {"cas/a.yaml": "old", "cas/b.yaml": "same", "worker/old/c.yaml": "gone", "kustomization.yaml": "old"}
NEW = {"cas/a.yaml": "new", "cas/b.yaml": "same", "worker/new/d.yaml": "new", "kustomization.yaml": "new"}


def killed_at(step: int, folder: Path) -> bool:
    """Write NEW in a process that dies at a step in the file system. Return False if there are fewer steps."""
    child = os.fork()
    if not child:
        left = step

        def die(event: str, _: object) -> None:
            nonlocal left
            if event in ("open", "os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir", "os.scandir"):
                left -= 1
                if left < 0:
                    os._exit(KILLED)

        sys.addaudithook(die)
        try:
            tree.write(folder, NEW)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED


@pytest.mark.parametrize("before", [{}, OLD], ids=["new", "changed"])
def test_killed_at_any_step_it_leaves_the_old_or_the_new_tree(tmp_path: Path, before: dict[str, str]) -> None:
    tree.write(tmp_path / "clean/test", NEW)
    found = []
    for step in range(1000):
        folder = tmp_path / f"{step}/test"
        if before:
            tree.write(folder, before)
        if not killed_at(step, folder):
            break
        found.append(files_of(folder / "rendered"))
        if not found[-1] and before:  # between the two renames
            assert files_of(folder / tree.TEMPORARY / "replaced") == OLD
            assert files_of(folder / tree.TEMPORARY / "rendered") == NEW
        tree.write(folder, NEW)
        assert files_of(folder) == files_of(tmp_path / "clean/test")
    kinds = [name for each in found for name, files in (("old", OLD), ("new", NEW), ("none", {})) if each == files]
    assert len(kinds) == len(found) > len(NEW), "a mixture of both trees"
    assert list(dict.fromkeys(kinds)) == (["old", "none", "new"] if before else ["none", "new"])
    assert not before or kinds.count("none") == 1


# This program runs on a file system that a shell mounts in its own namespace. It prints the result, and all paths.
WRITE = """\
import sys
from pathlib import Path
from ansible_collections.nativelink.gitops.plugins.plugin_utils import tree
folder = Path(sys.argv[1])
try:
    tree.write(folder, {"a.yaml": "new", "b.yaml": "x" * int(sys.argv[2])})
    print("written")
except tree.WriteError as error:
    print(error)
print(sorted(str(path.relative_to(folder.parent)) for path in folder.parent.rglob("*")))
"""


def on_a_small_disk(disk: Path, script: str) -> list[str]:
    """Return the lines of a shell script, in which `write BYTES` writes a tree of that size on a disk of 256 KiB."""
    disk.mkdir()
    setup = 'set -eu; mount -t tmpfs -o size=256k none "$DISK"; write() { "$PYTHON" -c "$WRITE" "$DISK/test" "$1"; }'
    user = ["--map-root-user"] if os.geteuid() else []
    done = subprocess.run(
        ["unshare", "--mount", *user, "sh", "-c", f"{setup}\n{script}"],
        env={**os.environ, "WRITE": WRITE, "DISK": str(disk), "PYTHON": sys.executable, "PYTHONPATH": COLLECTIONS},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


TREE = ["test", "test/kustomization.yaml", "test/patches", "test/patches/README.md", "test/rendered"]
TREE += ["test/rendered/a.yaml", "test/rendered/b.yaml"]


def test_a_full_disk_keeps_the_old_tree_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    message = (
        f"test: nativelink_clusters_dir: {disk}/test cannot be read or written: No space left on device; "
        "free space on its file system, and render again"
    )
    lines = on_a_small_disk(disk, 'write 900000; write 9; write 900000; cat "$DISK/test/rendered/b.yaml"')
    assert lines == [message, "[]", "written", str(TREE), message, str(TREE), "x" * 9]


def test_a_read_only_disk_is_named_and_an_unchanged_tree_does_not_mind_it(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    lines = on_a_small_disk(disk, 'write 9; mount -o remount,ro "$DISK"; write 9; write 10')
    assert lines[2:4] == ["written", str(TREE)]
    assert lines[4:] == [
        f"test: nativelink_clusters_dir: {disk}/test cannot be read or written: Read-only file system; mount its file "
        "system writable, or set nativelink_clusters_dir to a writable folder, and render again",
        str(TREE),
    ]


def test_a_mount_below_the_folder_of_the_cluster_is_named(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    lines = on_a_small_disk(disk, 'write 9; mount --bind "$DISK/test/rendered" "$DISK/test/rendered"; write 10')
    assert lines[2:] == [
        f"test: nativelink_clusters_dir: {disk}/test/rendered cannot be read or written: Device or resource busy; "
        "do not mount a folder inside of the cluster's folder; mount the cluster's folder as a whole, and render again",
        str(TREE),
    ]


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """Return a folder that every user may enter. If the test gives up root's rights, they come back afterwards."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
        if os.getuid() == 0:
            os.seteuid(0)


@pytest.mark.parametrize("place", [".", "rendered", "rendered/cas"])
def test_a_folder_of_another_user_is_named(unprivileged: Path, place: str) -> None:
    folder = unprivileged / "test"
    tree.write(folder, OLD)
    for each in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        each.chmod(0o555 if each == folder / place else 0o777)
    before = everything(folder)
    if os.getuid() == 0:
        os.seteuid(65534)
    assert refused(folder, NEW) == (
        f"{folder / place} cannot be read or written: Permission denied; give the user that runs Ansible read and "
        "write access to it and to all that it contains, and render again"
    )
    assert everything(folder) == before


def test_an_output_that_does_not_parse_names_cluster_and_template(monkeypatch: pytest.MonkeyPatch) -> None:
    # Quoting makes such a value harmless. Without it, rendering must refuse the output.
    values = values_of("prod", nativelink_cas_node_selector={"zone": "a: b: [c"})
    assert render.tree(values)
    monkeypatch.setitem(
        render.environment().filters, "to_nice_yaml", lambda value: str(value).strip("{}").replace("'", "")
    )
    render.environment().cache.clear()
    with pytest.raises(render.RenderError, match=r"^prod: roles/nativelink/templates/cas/\S+\.j2: "):
        render.tree(values)
    render.environment.cache_clear()
