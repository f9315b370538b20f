"""What the conformance run takes besides NativeLink: made before the run enters its namespaces, where no network is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from testbed import bazel, build, cache, components

STACK = "/opt/redis-stack"
LIBRARIES = {"LD_LIBRARY_PATH": f"{STACK}/libraries"}  # of pods that have it


@dataclass
class Tools:
    """Paths of programs; of one that can't be had "", and why in ``missing``, by its name.

    ``redis`` is a folder: ``bin``, ``lib`` and, for LD_LIBRARY_PATH, ``libraries``.
    """

    reapi_load: str = ""
    bazel: str = ""
    redis: str = ""
    missing: dict[str, str] = field(default_factory=dict)

    @classmethod
    def made(cls, folder: Path, *, clients: bool) -> Self:
        """Fetch and build them, Bazel and reapi-load if ``clients``; ``build.BuildError`` without reapi-load."""
        wanted: dict[str, Callable[[], Path]] = {"redis": lambda: _redis(folder / "redis")}
        found = cls()
        if clients:
            names = build.NODE_SETS["standin"]
            found = cls(str(build.binaries({"standin": names})["reapi-load"]))
            wanted["bazel"] = bazel.program
        for name, make in wanted.items():
            try:
                setattr(found, name, str(make()))
            except build.BuildError as error:
                cache.say(f"without {name}: {error}")
                found.missing[name] = str(error)
        return found


def _redis(folder: Path) -> Path:
    """Redis with its search module, laid out for any machine."""
    (image,) = components.images_of("redis")
    for target, source in image.files.items():
        inside = Path(target).is_relative_to(STACK)
        name = str(Path(target).relative_to(STACK)) if inside else f"libraries/{Path(target).name}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / name)
    for target, points_to in image.links.items():
        (folder / "libraries" / Path(target).name).symlink_to(points_to)
    return folder
