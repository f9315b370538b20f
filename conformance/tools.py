"""The programs that a run needs besides NativeLink. They are made before it enters its namespaces without a network."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from testbed import bazel, build, cache, components

STACK = "/opt/redis-stack"
LIBRARIES = {"LD_LIBRARY_PATH": f"{STACK}/libraries"}  # the path of Redis in pods


@dataclass
class Tools:
    """The paths of programs. If one is not available, its path is "", and ``missing`` says why, by its name.

    ``redis`` is a folder with ``bin``, ``lib`` and, for LD_LIBRARY_PATH, ``libraries``.
    """

    reapi_load: str = ""
    bazel: str = ""
    collector: str = ""
    redis: str = ""
    missing: dict[str, str] = field(default_factory=dict)

    @classmethod
    def made(cls, folder: Path, *, clients: bool) -> Self:
        """Fetch and build the programs; Bazel and reapi-load only if ``clients``.

        ``build.BuildError`` if reapi-load cannot be built.
        """
        wanted: dict[str, Callable[[], Path]] = {"redis": lambda: _redis(folder / "redis")}
        found = cls()
        if clients:
            found = cls(str(build.program("reapi-load")))
            wanted["bazel"] = bazel.program
            wanted["collector"] = lambda: build.program("otelcol")
        for name, make in wanted.items():
            try:
                setattr(found, name, str(make()))
            except build.BuildError as error:
                cache.say(f"without {name}: {error}")
                found.missing[name] = str(error)
        return found


def _redis(folder: Path) -> Path:
    """Make a folder with Redis and its search module, which works on any machine."""
    (image,) = components.images_of("redis")
    for target, source in image.files.items():
        inside = Path(target).is_relative_to(STACK)
        name = str(Path(target).relative_to(STACK)) if inside else f"libraries/{Path(target).name}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / name)
    for target, points_to in image.links.items():
        (folder / "libraries" / Path(target).name).symlink_to(points_to)
    return folder
