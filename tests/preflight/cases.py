"""The cases in reject/ and accept.yml, which tests of the validation, of the API server and of the chart share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
_KEYS = {"name", "set", "unset", "server", "rendered", "helm", "chart"}


@dataclass(frozen=True)
class Case:
    """Variables with one fault, and its place and text in the line that users read; reject/README.md has the rest."""

    name: str
    variables: dict[str, Any]
    unset: tuple[str, ...]
    place: str
    text: str
    server: str
    rendered: bool
    helm: str
    chart: str

    @property
    def line(self) -> str:
        return f"{self.name}: {self.place}: {self.text}"


def variables(stated: dict[str, Any]) -> dict[str, Any]:
    """Return variables of which `pool` is the only pool, named linux."""
    others = {name: value for name, value in stated.items() if name != "pool"}
    return {**others, "nativelink_worker_pools": [{"name": "linux", **stated["pool"]}]} if "pool" in stated else others


def load(folder: Path = FOLDER / "reject") -> list[Case]:
    """Return the cases of a folder."""
    found = []
    for file in sorted(folder.glob("*.yml")):
        for index, case in enumerate(yaml.safe_load(file.read_text())):
            ((place, text),) = ((key, value) for key, value in case.items() if key not in _KEYS)
            found.append(
                Case(
                    name=case.get("name", f"{file.stem}-{index}"),
                    variables=variables(case.get("set", {})),
                    unset=tuple(case.get("unset", ())),
                    place=place,
                    text=text,
                    server=case.get("server", ""),
                    rendered=case.get("rendered", False),
                    helm=case.get("helm", ""),
                    chart=case.get("chart", ""),
                )
            )
    return found


CASES = load()
ACCEPTED = [variables(case["set"]) for case in yaml.safe_load((FOLDER / "accept.yml").read_text())]
