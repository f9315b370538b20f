"""The number of CAS pods changes, and what was cached stays."""

import hashlib
import json

from ansible_collections.nativelink.gitops.plugins.plugin_utils import grow
from ansible_collections.nativelink.gitops.plugins.plugin_utils.versions import row

from conformance.farm import PATIENCE, Farm, Tell, on, succeeded
from conformance.pods import Pod
from testkit.client import reported

_ACTIONS = 200
_CONTENT = "volumes/data/cas/content/d"


@on("grow")
def test_grow(farm: Farm, tell: Tell) -> None:
    """3, 4, 5 and 3 CAS pods: what is copied stays a hit

    The counter-run is the step from 3 to 4, where nothing is copied. A quarter of the keys moves, and an action is a
    hit if neither its result nor its output did: 56%. Actions that run meanwhile succeed, and wrong bytes on a volume
    stay there.
    """
    assert _hits(farm, "first") == 0
    farm.configure(nativelink_cas_shards=4)
    alone = _hits(farm, "first")
    assert 85 <= alone <= 140
    assert _hits(farm, "second") == 0
    wrong, said = _spoil(farm.cas[0]), []
    for pods, salt in ((5, "third"), (3, "fourth")):
        with farm.loaded("--actions=8", "--seconds=10-10", f"--timeout={3 * PATIENCE}") as client:
            farm.configure(nativelink_cas_shards_next=pods)
            assert _hits(farm, salt) == 0
            _put(farm)
            said += _copy(farm)
            farm.configure(nativelink_cas_shards=pods, nativelink_cas_shards_next=0)
            succeeded(reported(client))
        assert {name: _hits(farm, name) for name in ("second", salt)} == {"second": _ACTIONS, salt: _ACTIONS}
    assert [wrong & _names(pod) for pod in farm.cas[1:]] == [set()] * 4
    assert int(said[0].partition("there; ")[2].removesuffix(" refused")) > 10
    # NativeLink's health probe leaves a file among the results that is none.
    others = [line for number, line in enumerate(said) if number % 5]
    assert {line.partition("there; ")[2] for line in others} <= {"", "1 refused"}
    tell(f"{alone} of {_ACTIONS} hits without a copy, {_ACTIONS} with; {said[0]}")


def _put(farm: Farm) -> None:
    """Write and read blobs, some of which move, in all ways that clients have."""
    compressed = ["--compressed"] if row(farm.version).compression else []
    for number in range(12):
        told = farm.api.put("--right", *compressed, f"--size={100_000 + number}")
        assert {*told.values()} == {"taken, and read back"}, told


def _spoil(pod: Pod) -> set[str]:
    """Put wrong bytes on a pod's volume, as a disk may that lost power. Return the names of the files."""
    names = {f"{hashlib.sha256(bytes([number])).hexdigest()}-5" for number in range(20)}
    for name in names:
        (pod.folder / _CONTENT / name).write_bytes(b"wrong")
    return names


def _names(pod: Pod) -> set[str]:
    return {path.name for path in (pod.folder / _CONTENT).iterdir()}


def _hits(farm: Farm, salt: str) -> int:
    """Run the actions of a salt, each of which has an output. Return how many did not begin because of a hit."""
    script = "umask 0; echo begun >> /ledger/{salt}-{index}; echo {salt} {index} > out"
    command = json.dumps(["/bin/sh", "-c", script])
    before = sum(farm.begun(salt).values())
    arguments = ("--output=out", f"--salt={salt}", f"--actions={_ACTIONS}", "--lookup", f"--timeout={2 * PATIENCE}")
    succeeded(farm.load(f"--command={command}", *arguments))
    return _ACTIONS - (sum(farm.begun(salt).values()) - before)


def _copy(farm: Farm) -> list[str]:
    """Copy what moves from the volume of each pod, as the Jobs do. Return their last lines."""
    said = []
    for number, pod in enumerate(farm.cas):
        settings = json.dumps(grow.settings(farm.values, number))
        said.append(pod.run("python3", "/copier.py", settings, seconds=120).splitlines()[-1])
    return said
