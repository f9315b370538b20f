"""The cases in reject/ and accept.yml, which tests of the validation, of the API server and of the chart share."""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
_KEYS = {"name", "set", "unset", "says", "server", "server_alone", "rendered", "helm", "chart"}
# What follows the values of some kinds, in the texts of cases.
_PARTS = "at most 63 letters, digits, hyphens, dots and underscores"
_WORDS = {
    "$dns_name": "is not a valid DNS name; use lower-case letters, digits and hyphens, in parts separated by dots",
    "$dns_label": "is not a valid DNS label; "
    "use at most 63 lower-case letters, digits and hyphens, with no hyphen at an end",
    "$key": f"is not a valid key; write a name such as disk or example.com/disk: {_PARTS}",
    "$value": f"is not a valid label value; use {_PARTS}, the first and last a letter or digit",
}


@dataclass(frozen=True)
class Case:
    """Variables with one fault, and its place and text in the line that users read; reject/README.md has the rest."""

    name: str
    variables: dict[str, Any]
    place: str
    text: str
    unset: Sequence[str] = ()
    server: str = ""
    rendered: bool = False
    helm: str = ""
    chart: str = ""

    @property
    def line(self) -> str:
        return f"{self.name}: {self.place}: {self.text}"


def variables(stated: dict[str, Any]) -> dict[str, Any]:
    """Return variables of which `pool` is the only pool, named linux."""
    others = {name: value for name, value in stated.items() if name != "pool"}
    return {**others, "nativelink_worker_pools": [{"name": "linux", **stated["pool"]}]} if "pool" in stated else others


def single(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a case; with `says`, one for its place and value, or for those of `each`; and one for each of two names."""
    if isinstance(case.get("name"), list):
        for name, other in itertools.permutations(case["name"]):
            (text,) = case.keys() - _KEYS
            said = case[text].replace("OTHER", other).replace("NAME", name)
            yield {**case, "name": name, text: said}
        return
    if "says" not in case:
        yield case
        return
    more = {key: value for key, value in case.items() if key in _KEYS}
    for place, value in case.get("each", case).items():
        if place not in _KEYS:
            stated = reduce(lambda inner, key: {key: inner}, reversed(place.split(".")), value)
            yield {**more, "set": stated, place: case["says"].replace("VALUE", repr(value))}


def load(folder: Path = FOLDER / "reject") -> list[Case]:
    """Return the cases of a folder."""
    found = []
    for file in sorted(folder.glob("*.yml")):
        stated = yaml.load(file.read_text(), yaml.CSafeLoader)
        for index, case in enumerate(itertools.chain(*map(single, stated))):
            more = {key: case[key] for key in ("unset", "server", "rendered", "helm", "chart") if key in case}
            if "server_alone" in case:
                more |= {"server": case["server_alone"], "chart": "the API server refuses it"}
            ((place, text),) = ((key, value) for key, value in case.items() if key not in _KEYS)
            place = re.sub(r"^pool\.", "nativelink_worker_pools[linux].", place)
            for word, words in _WORDS.items():
                text = text.replace(word, words)
            name = case.get("name", f"{file.stem}-{index}")
            found.append(Case(name, variables(case.get("set", {})), place, text, **more))
    return found


CASES = load()
ACCEPTED = [variables(case["set"]) for case in yaml.safe_load((FOLDER / "accept.yml").read_text())]
