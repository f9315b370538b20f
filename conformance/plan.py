"""The plan of one run. ``__main__`` makes it, and ``inside`` carries it out in separate namespaces."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from conformance.subject import Subject
from conformance.tools import Tools

PARTS = ("configurations", "farm")


@dataclass(frozen=True)
class Plan:
    """A run.

    ``folder`` is for its files. ``clusters`` is the folder of the committed trees, and ``inventories`` the number of
    generated inventories. Only the checks of a farm whose names contain ``only`` run.
    """

    folder: Path
    subjects: tuple[Subject, ...]
    tools: Tools
    parts: tuple[str, ...]
    clusters: Path
    inventories: int
    only: str

    def write(self) -> Path:
        """Write the plan into a file for the process that carries it out, and return the file."""
        path = self.folder / "plan.json"
        path.write_text(json.dumps(asdict(self), default=str))
        return path

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return a plan that ``write`` wrote."""
        given = json.loads(path.read_text())
        return cls(
            folder=Path(given["folder"]),
            subjects=tuple(Subject(**each) for each in given["subjects"]),
            tools=Tools(**given["tools"]),
            parts=tuple(given["parts"]),
            clusters=Path(given["clusters"]),
            inventories=given["inventories"],
            only=given["only"],
        )
