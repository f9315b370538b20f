"""The pinned versions. Each folder of ``testbed/go`` is one module set, and its go.mod and go.sum pin all modules."""

import re
from dataclasses import dataclass
from pathlib import Path

GO_DIR = Path(__file__).parent / "go"
REQUIREMENTS = GO_DIR / "requirements.txt"


@dataclass(frozen=True)
class ModuleSet:
    """One folder of ``testbed/go``, as its go.mod describes it.

    ``version`` is that of ``main``, the module of the first tool. In a set without tools, whose files are only read,
    ``main`` is the first required module. The version of a set with our own programs is ``v0.0.0``. ``requires`` maps
    every required module to its version. ``tools`` are the packages that ``go build tool`` builds.
    """

    name: str
    folder: Path
    go: str
    main: str
    version: str
    requires: dict[str, str]
    tools: tuple[str, ...]

    @property
    def content(self) -> bytes:
        """go.mod, go.sum and our own programs as bytes. Results of the set depend on nothing else in its folder."""
        sources = sorted(self.folder.rglob("*.go"))
        return b"".join(path.read_bytes() for path in (self.folder / "go.mod", self.folder / "go.sum", *sources))


def _entries(go_mod: str, directive: str) -> list[str]:
    """Return the lines of one directive, from its one-line and block forms, without comments."""
    found = re.findall(rf"^{directive} (?!\()(.+)$", go_mod, re.MULTILINE)
    for block in re.findall(rf"^{directive} \(\n(.*?)^\)", go_mod, re.MULTILINE | re.DOTALL):
        found += block.splitlines()
    return [line for line in (line.partition("//")[0].strip() for line in found) if line]


def module_set(name: str) -> ModuleSet:
    """Return the set in ``testbed/go/<name>``. FileNotFoundError if there is none."""
    folder = GO_DIR / name
    go_mod = (folder / "go.mod").read_text()
    requires = dict(line.split() for line in _entries(go_mod, "require"))
    tools = tuple(_entries(go_mod, "tool"))
    main = next(iter(requires))
    if tools:
        main = max(
            (module for module in requires if f"{tools[0]}/".startswith(f"{module}/")),
            key=len,
            default=f"testbed/{name}",
        )
    return ModuleSet(
        name=name,
        folder=folder,
        go=_entries(go_mod, "go")[0],
        main=main,
        version=requires.get(main, "v0.0.0"),
        requires=requires,
        tools=tools,
    )


def release(modules: ModuleSet) -> str:
    """Return the version of a set's main module as its project writes it: ``v1.6.3``, but ``2.21.0`` for KEDA."""
    return modules.version.removeprefix("v") if "/keda/" in modules.main else modules.version


def versions() -> dict[str, str]:
    """Return the release of each set by name: ``{"keda": "2.21.0", "kubernetes": "v1.36.4", ...}``."""
    return {path.parent.name: release(module_set(path.parent.name)) for path in sorted(GO_DIR.glob("*/go.mod"))}
