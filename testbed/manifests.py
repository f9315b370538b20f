"""Release manifests of the platform's components, made offline from the files of their own pinned Go modules.

A Go module doesn't contain the manifest of a release, but it contains the files that the manifest is made from. Each
recipe below processes these files as the project's own release job does, with ``kubectl kustomize`` and
``helm template``.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from testbed import build, cache, pins

# These tools make the manifests. Their versions are part of the cache key, because other versions may make others.
_MAKERS = ("kubernetes", "helm")


def source(modules: pins.ModuleSet, module: str) -> Path:
    """Return the (read-only) folder with a required module's files, downloaded if needed. Go checks them by go.sum."""
    command = ("go", "mod", "download", "-json", f"{module}@{modules.requires[module]}")
    said = build.run(*command, env=build.go_environment(modules), cwd=modules.folder, pauses=build.DOWNLOAD)
    return Path(json.loads(said)["Dir"])


def _copy(origin: Path, target: Path) -> Path:
    """Copy a folder of the module cache without its read-only modes."""
    for path in origin.rglob("*"):
        if path.is_file():
            copy = target / path.relative_to(origin)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    return target


def _edit(path: Path, change: Callable[[Any], None]) -> None:
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def _kustomize(folder: Path) -> str:
    return build.run(build.program("kubectl"), "kustomize", folder)


def _keda(modules: pins.ModuleSet, work: Path) -> str:
    """Render config/default with the version as the images' tag and as the version label.

    Both are ``main`` in the source.
    """
    version = pins.release(modules)
    config = _copy(source(modules, modules.main) / "config", work)

    def tag(kustomization: dict[str, Any]) -> None:
        for image in kustomization["images"]:
            image["newTag"] = version

    for part in ("manager", "metrics-server", "webhooks"):
        _edit(config / part / "kustomization.yaml", tag)
    _edit(
        config / "default" / "kustomize-config" / "metadataLabelTransformer.yaml",
        lambda labels: labels["labels"].update({"app.kubernetes.io/version": version}),
    )
    return _kustomize(config / "default")


# By component, whose manifest consists of files of its module: their paths, a text in them, and what replaces it. A
# folder is rendered by kustomize.
_FILES = {
    "argocd": (["manifests/core-install.yaml"], "", ""),
    # Nothing runs cert-manager here. Mutual TLS asks it for certificates.
    "cert-manager": (["deploy/crds/cert-manager.io_certificates.yaml"], "", ""),
    # The standard channel, including the safe-upgrades policy.
    "gateway-api": (["config/crd/standard/gateway*.yaml"], "", ""),
    "kube-state-metrics": (["examples/standard"], "", ""),
    # Local volumes, whose disk kubelet reports, in the place of hostPath ones.
    "local-path": (
        ["deploy/local-path-storage.yaml"],
        "  name: local-path\n",
        "  name: local-path\n  annotations: {defaultVolumeType: local}\n",
    ),
    # The definitions that monitoring is configured with. The operator does not run here, so those of what it runs
    # (Prometheus, Alertmanager) are left out. PyYAML refuses a bare equals sign, which YAML 1.1 gives a meaning.
    "prometheus-operator": (
        [f"example/prometheus-operator-crd/*_*{kind}.yaml" for kind in ("configs", "monitors", "rules")],
        "- =\n",
        '- "="\n',
    ),
}


def _files(modules: pins.ModuleSet, _work: Path) -> str:
    patterns, text, replacement = _FILES[modules.name]
    paths = [path for pattern in patterns for path in sorted(source(modules, modules.main).glob(pattern))]
    found = [_kustomize(path) if path.is_dir() else path.read_text() for path in paths]
    return "".join(f"---\n{each.removeprefix('---')}\n" for each in found).replace(text, replacement)


def _envoy_gateway(modules: pins.ModuleSet, work: Path) -> str:
    """Render the chart of all CRDs, then the chart of the controller.

    The second chart leaves out the policy of the CRDs, because the first one contains it.
    """
    charts, values = source(modules, modules.main) / "charts", work / "values.yaml"
    text = (charts / "gateway-helm" / "values.tmpl.yaml").read_text()
    image = {"${GatewayImage}": f"envoyproxy/gateway:{modules.version}", "${GatewayImagePullPolicy}": "IfNotPresent"}
    for placeholder, value in image.items():
        text = text.replace(placeholder, value)
    values.write_text(text)
    crds = "--set=crds.gatewayAPI.enabled=true,crds.envoyGateway.enabled=true"
    ours = "--set=createNamespace=true,crds.gatewayAPI.safeUpgradePolicy.enabled=false"
    return "".join(
        build.run(build.program("helm"), "template", *arguments, env=build.helm_home(work))
        for arguments in (
            ("eg-crds", charts / "gateway-crds-helm", crds),
            ("eg", charts / "gateway-helm", f"--values={values}", "--namespace=envoy-gateway-system", ours),
        )
    )


def _flux(modules: pins.ModuleSet, work: Path, *, engine: str) -> str:
    """Render manifests/install with source-controller and an engine, as ``flux install --components`` does.

    The bases fetch the release assets of each controller, which are replaced with config/crd and config/manager of the
    controller's module.
    """
    manifests = _copy(source(modules, modules.main) / "manifests", work)
    controllers = {name: f"github.com/fluxcd/{name}" for name in ("source-controller", engine)}

    for name, module in controllers.items():
        base = manifests / "bases" / name
        kustomization = yaml.safe_load((base / "kustomization.yaml").read_text())
        assets = [resource for resource in kustomization["resources"] if "://" in resource]
        if strangers := [asset for asset in assets if f"/{modules.requires[module]}/" not in asset]:
            raise build.BuildError(f"flux {modules.version} ships {strangers}, not {modules.requires[module]}")
        kept = [resource for resource in kustomization["resources"] if resource not in assets]
        kustomization["resources"] = ["crd", "manager", *kept]
        (base / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        for part in ("crd", "manager"):
            _copy(source(modules, module) / "config" / part, base / part)
        # Without notification-controller each event would wait for an address that doesn't resolve.
        patches = yaml.safe_load((base / "patch.yaml").read_text())
        patches = [patch for patch in patches if "--events-addr" not in str(patch["value"])]
        (base / "patch.yaml").write_text(yaml.safe_dump(patches))

    def ours(install: dict[str, Any]) -> None:
        install["resources"] = [
            path for path in install["resources"] if "/bases/" not in path or Path(path).name in controllers
        ]

    _edit(manifests / "install" / "kustomization.yaml", ours)
    return _kustomize(manifests / "install")


# By component, if it is not made of files of its own module set: its recipe, and its module sets. The first set is the
# version that the project uses.
_RECIPES: dict[str, tuple[Callable[[pins.ModuleSet, Path], str], tuple[str, ...]]] = {
    "keda": (_keda, ("keda", "keda-previous")),
    "envoy-gateway": (_envoy_gateway, ("envoy-gateway",)),
    "flux": (partial(_flux, engine="kustomize-controller"), ("flux",)),
    "flux-helm": (partial(_flux, engine="helm-controller"), ("flux",)),
}

# By component: the variable of a role that names its manifest.
VARIABLES = {
    "keda": "keda_manifest",
    "gateway-api": "ingress_gateway_api_manifest",
    "envoy-gateway": "ingress_envoy_gateway_manifest",
    "argocd": "gitops_argocd_manifest",
    "flux": "gitops_flux_manifest",
}


def path(component: str, version: str | None = None) -> Path:
    """Return the manifest of a component, and make it if needed.

    ``component`` is a key of ``_RECIPES`` or ``_FILES``, such as ``keda``. ``version`` is a pinned version, as
    ``pins.versions()`` writes it. By default it is the version that the project uses. FileNotFoundError is raised for
    another component, KeyError for another version, ``build.BuildError`` if the manifest can't be made.
    """
    recipe, sets = _RECIPES.get(component, (_files, (component,)))
    pinned = {pins.release(modules): modules for modules in map(pins.module_set, sets)}
    modules = pinned[version or next(iter(pinned))]
    makers = [pins.module_set(maker).version for maker in _MAKERS]
    key = cache.digest(component, modules.content, Path(__file__).read_bytes(), *makers)
    file = f"{component}-{pins.release(modules)}.yaml"

    def make(draft: Path) -> None:
        cache.say(f"making the manifest of {component} {pins.release(modules)}")
        with tempfile.TemporaryDirectory() as work:
            made_from = f"# Made from the Go module {modules.main} {modules.version}.\n"
            (draft / file).write_text(made_from + recipe(modules, Path(work)))

    return cache.made(cache.root() / "manifests" / key, make) / file


def variables(components: Collection[str] = ()) -> dict[str, str | bool]:
    """Return the roles' variables for a cluster with fake nodes and with these components (keys of ``VARIABLES``).

    Without components it names the manifests of all of them. It makes those that do not exist yet.
    """
    paths = {VARIABLES[each]: str(path(each)) for each in components or VARIABLES}
    unchecked = {f"{name}_sha256": "" for name in paths}  # they are made here, and not the releases
    # The pods are fake, so KEDA's metrics API never answers.
    return paths | unchecked | {"keda_wait_for_metrics_api": False}
