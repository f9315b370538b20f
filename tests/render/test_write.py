"""Writing a tree: nothing that is not needed, whole files only, and the user's files never."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render, tree

from tests.render.conftest import values_of

FILES = render.tree(values_of())


def snapshot(folder: Path) -> dict[str, tuple[str, int]]:
    """Content and time of change of every file."""
    return {
        str(path.relative_to(folder)): (path.read_text(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def texts(folder: Path) -> dict[str, str]:
    return {path: text for path, (text, _) in snapshot(folder).items()}


def test_the_second_time_nothing_is_written(folder: Path) -> None:
    first = tree.write(folder, FILES)
    assert len(first.created) == len(FILES) + 2  # and the user's kustomization.yaml and patches/README.md
    assert not first.changed
    assert not first.removed
    before = snapshot(folder)
    assert not tree.write(folder, render.tree(values_of()))
    assert snapshot(folder) == before


def test_only_the_file_that_differs_is_written(folder: Path) -> None:
    tree.write(folder, FILES)
    before = snapshot(folder)
    result = tree.write(folder, render.tree(values_of(nativelink_cas_resources={"requests": {"cpu": "3"}})))
    assert (result.created, result.changed, result.removed) == ([], ["rendered/cas/statefulset.yaml"], [])
    after = snapshot(folder)
    assert [path for path in after if after[path] != before[path]] == ["rendered/cas/statefulset.yaml"]


def test_a_hand_edit_and_a_deleted_file_are_put_right(folder: Path) -> None:
    tree.write(folder, FILES)
    wanted = texts(folder)
    (folder / "rendered/cas/service.yaml").write_text("kind: Nonsense\n")
    (folder / "rendered/policy/dns.yaml").write_bytes(b"\xff\xfe")
    (folder / "rendered/scheduler/deployment.yaml").unlink()
    result = tree.write(folder, FILES)
    assert result.created == ["rendered/scheduler/deployment.yaml"]
    assert result.changed == ["rendered/cas/service.yaml", "rendered/policy/dns.yaml"]
    assert texts(folder) == wanted


def test_what_nobody_renders_any_more_goes_with_its_folder(folder: Path) -> None:
    pools = [{"name": "default"}, {"name": "gpu"}]
    tree.write(folder, render.tree(values_of(nativelink_worker_pools=pools)))
    (folder / "rendered/notes.txt").write_text("by hand")
    result = tree.write(folder, FILES)
    gone = ["deployment.yaml", "poddisruptionbudget.yaml", "scaledobject.yaml", "service.yaml", "worker.json5"]
    assert result.removed == ["rendered/notes.txt", *(f"rendered/worker/gpu/{name}" for name in gone)]
    assert not (folder / "rendered/worker/gpu").exists()
    assert {path.removeprefix("rendered/") for path in texts(folder) if path.startswith("rendered/")} == FILES.keys()


def test_the_users_files_are_written_once(folder: Path) -> None:
    tree.write(folder, FILES)
    (folder / "kustomization.yaml").write_text("resources: [rendered, mine.yaml]\n")
    (folder / "mine.yaml").write_text("kind: Mine\n")
    (folder / "patches/cas.yaml").write_text("kind: StatefulSet\n")
    (folder / "patches/README.md").unlink()
    mine = {path: text for path, text in texts(folder).items() if not path.startswith("rendered/")}
    tree.write(folder, render.tree(values_of(nativelink_worker_pools=[{"name": "other"}])))
    assert {path: text for path, text in texts(folder).items() if not path.startswith("rendered/")} == mine


def test_check_writes_nothing_and_says_everything(folder: Path) -> None:
    result = tree.write(folder, FILES, check=True, diff=True)
    assert len(result.created) == len(FILES) + 2
    assert len(result.diff) == len(FILES) + 2
    assert not folder.exists()

    tree.write(folder, FILES)
    (folder / "rendered/extra.yaml").write_text("extra: 1\n")
    before = snapshot(folder)
    new = render.tree(values_of(nativelink_cas_resources={"requests": {"cpu": "3"}}))
    result = tree.write(folder, new, check=True, diff=True)
    assert (result.changed, result.removed) == (["rendered/cas/statefulset.yaml"], ["rendered/extra.yaml"])
    changed, removed = result.diff
    assert 'cpu: "1"' in changed["before"]
    assert 'cpu: "3"' in changed["after"]
    assert (removed["before"], removed["after"]) == ("extra: 1\n", "")
    assert snapshot(folder) == before


class Killed(BaseException):
    """Nothing catches it, like a kill."""


@pytest.mark.parametrize("survived", [0, 1, 5, len(FILES), len(FILES) + 1])
def test_interrupted_between_two_files_it_converges(
    folder: Path, survived: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced = 0
    replace = os.replace

    def dying(source: Path, target: Path) -> None:
        nonlocal replaced
        if replaced == survived:
            raise Killed
        replaced += 1
        replace(source, target)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(Killed):
        tree.write(folder, FILES)
    monkeypatch.undo()
    left = [path for path in texts(folder) if path.endswith(".tmp")]
    assert len(left) == 1, "the interrupted file leaves its temporary one"
    whole = [path for path in texts(folder) if not path.endswith(".tmp")]
    assert len(whole) == survived
    assert "rendered/kustomization.yaml" not in whole, "the kustomization comes last"

    result = tree.write(folder, FILES)
    assert not result.removed, "a temporary file is no news"
    clean = folder.parent / "clean"
    tree.write(clean, FILES)
    assert texts(folder) == texts(clean)


def test_interrupted_before_its_orphans_are_removed_it_converges(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.write(folder, render.tree(values_of(nativelink_worker_pools=[{"name": "old"}])))
    unlink = Path.unlink

    def dying(path: Path, missing_ok: bool = False) -> None:
        if path.name == "service.yaml":
            raise Killed
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", dying)
    with pytest.raises(Killed):
        tree.write(folder, FILES)
    monkeypatch.undo()
    assert "worker/old" not in (folder / "rendered/kustomization.yaml").read_text(), "what is left is listed nowhere"
    assert tree.write(folder, FILES).removed == [
        "rendered/worker/old/service.yaml",
        "rendered/worker/old/worker.json5",
    ]


def test_a_full_disk_leaves_the_old_file_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.write(folder, FILES)
    before = texts(folder)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        tree.write(folder, render.tree(values_of(nativelink_cas_resources={"requests": {"cpu": "3"}})))
    assert {path: text for path, text in texts(folder).items() if not path.endswith(".tmp")} == before


def test_an_output_that_does_not_parse_names_cluster_and_template(monkeypatch: pytest.MonkeyPatch) -> None:
    # Quoting is what keeps such a value harmless; without it the output must not get through.
    values = values_of("prod", nativelink_cas_node_selector={"zone": "a: b: [c"})
    assert render.tree(values)
    monkeypatch.setitem(
        render._environment().filters, "to_nice_yaml", lambda value: str(value).strip("{}").replace("'", "")
    )
    render._environment().cache.clear()
    with pytest.raises(render.RenderError, match=r"^prod: roles/nativelink/templates/cas/\S+\.j2: "):
        render.tree(values)
    render._environment.cache_clear()
