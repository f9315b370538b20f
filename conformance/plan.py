"""What one run does: made by ``__main__``, and done in namespaces of its own by ``inside``."""

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

    ``folder`` is where its files go, ``clusters`` has the committed trees, ``inventories`` is how many are generated,
    and of a farm's checks those run whose names have ``only``.
    """

    folder: Path
    subjects: tuple[Subject, ...]
    tools: Tools
    parts: tuple[str, ...]
    clusters: Path
    inventories: int
    only: str

    def write(self) -> Path:
        """Write it into a file for the process that does it."""
        path = self.folder / "plan.json"
        path.write_text(json.dumps(asdict(self), default=str))
        return path

    @classmethod
    def read(cls, path: Path) -> Self:
        """A plan that ``write`` wrote."""
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
