"""The number of CAS pods changes, and what was cached stays."""

import json

from ansible_collections.nativelink.gitops.plugins.plugin_utils import grow

from conformance.farm import PATIENCE, Farm, Tell, on, succeeded
from testkit.client import reported

_ACTIONS = 200


@on("grow")
def test_grow(farm: Farm, tell: Tell) -> None:
    """3, 4, 5 and 3 CAS pods: what is copied stays a hit

    The counter-run is the step from 3 to 4, where nothing is copied. A quarter of the keys moves, and an action is a
    hit if neither its result nor its output did: 56 %.
    """
    assert _hits(farm, "first") == 0
    farm.configure(nativelink_cas_shards=4)
    alone = _hits(farm, "first")
    assert 85 <= alone <= 140
    assert _hits(farm, "second") == 0
    said = []
    for pods, salt in ((5, "third"), (3, "fourth")):
        with farm.loaded("--actions=8", "--seconds=10-10", f"--timeout={3 * PATIENCE}") as client:
            farm.configure(nativelink_cas_shards_next=pods)
            assert _hits(farm, salt) == 0
            said += _copy(farm)
            farm.configure(nativelink_cas_shards=pods, nativelink_cas_shards_next=0)
            succeeded(reported(client))
        assert {name: _hits(farm, name) for name in ("second", salt)} == {"second": _ACTIONS, salt: _ACTIONS}
    # NativeLink's health probe leaves a file among the results that is none.
    assert {line.partition("there; ")[2] for line in said} <= {"", "1 refused"}
    tell(f"{alone} of {_ACTIONS} hits without a copy, {_ACTIONS} with; {said[0]}")


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
