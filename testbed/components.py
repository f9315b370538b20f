"""The images that the testbed makes: images.yml, with the versions that the project pins."""

import re
import shutil
from collections.abc import Mapping
from functools import cache as remembered
from pathlib import Path
from typing import Any

import yaml

from testbed import build, cache, debian, manifests, pins
from testbed.images import NATIVELINK_VERSIONS, Image

_ROOT = Path(__file__).parents[1]
_IMAGES: Mapping[str, list[dict[str, Any]]] = yaml.safe_load(Path(__file__).with_name("images.yml").read_text())
NODE = "node"
COMPONENTS = tuple(sorted(_IMAGES.keys() - {NODE}))


@remembered
def _versions() -> dict[str, str]:
    """Return the values of the placeholders in images.yml, except for ``{version}``."""
    found = {f"go/{name}": version for name, version in pins.versions().items()}
    for path in Path(__file__).parent.glob("*-requirements.txt"):
        found |= {f"pip/{name}": version for name, version in re.findall(r"^(\S+)==(\S+)", path.read_text(), re.M)}
    for role in ("nativelink", "node_agent"):
        found |= yaml.safe_load((_ROOT / "roles" / role / "defaults" / "main.yml").read_text())
    return found


def _tagged(component: str, name: str) -> str:
    """Return the image without a tag, ``name``, as the release manifest of a component has it."""
    (found,) = set(re.findall(rf'image: "?({re.escape(name)}:[^\s"]+)', manifests.path(component).read_text()))
    return str(found)


def _argocd() -> Path:
    """Return the folder with the files of Argo CD's image that are no program."""
    modules = pins.module_set("argocd")

    def prepare(draft: Path) -> None:
        for name in ("git-verify-wrapper.sh", "gpg-wrapper.sh"):
            shutil.copyfile(manifests.source(modules, modules.main) / "hack" / name, draft / name)
            (draft / name).chmod(0o755)  # files of a Go module are never executable
        (draft / "passwd").write_text("root:x:0:0::/:/bin/sh\nargocd:x:999:999::/home/argocd:/bin/sh\n")
        (draft / "group").write_text("root:x:0:\nargocd:x:999:\n")

    key = cache.digest(modules.content, Path(__file__).read_bytes())
    return cache.made(cache.root() / "images" / f"argocd-files-{key}", prepare)


# What the playbook `verify` imports, with all that these need.
_PACKAGES = (
    *("ansible-core", "cffi", "cryptography", "grpcio", "jinja2", "markupsafe", "packaging", "protobuf", "pycparser"),
    *("pyyaml", "resolvelib", "typing-extensions"),
)
_COLLECTION = ("meta", "playbooks", "plugins", "roles")


def _verify() -> Path:
    """Return the folder with the files of the image of ``verify`` for Debian's Python: our collection and packages."""
    python = (debian.root(*_IMAGES["verify"][0]["debian"]) / "usr/bin/python3").readlink().name.removeprefix("python")
    names = "|".join(_PACKAGES)
    pins = re.findall(rf"^(?:{names})==(?:.+\\\n)+.+\n", (_ROOT / "requirements.txt").read_text(), re.M)
    paths = [path for name in _COLLECTION for path in sorted((_ROOT / name).rglob("*"))]
    sources = [path for path in paths if path.is_file() and path.suffix != ".pyc"]

    def prepare(draft: Path) -> None:
        (draft / "requirements.txt").write_text("".join(pins))
        build.install_wheels(draft / "requirements.txt", draft / "packages", python)
        for path in sources:
            target = draft / "collection" / path.relative_to(_ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        program = draft / "ansible-playbook"
        program.write_text("#!/usr/bin/python3\nfrom ansible.cli.playbook import main\n\nmain()\n")
        program.chmod(0o755)

    content = b"".join(str(path.relative_to(_ROOT)).encode() + path.read_bytes() for path in sources)
    key = cache.digest(*pins, content, python, Path(__file__).read_bytes())
    return cache.made(cache.root() / "images" / f"verify-files-{key}", prepare)


# The folders of images.yml that are no wheels alone.
_FOLDERS = {"argocd": _argocd, "verify": _verify}


def _file(source: str) -> Path:
    folder, colon, path = source.partition(":")
    if colon:
        return (_FOLDERS[folder]() if folder in _FOLDERS else build.wheels(folder)) / path
    return _ROOT / source if "/" in source else build.program(source)


def _image(found: Mapping[str, Any], version: str) -> Image:
    values = {**_versions(), "version": version}
    name = found["image"].format_map(values)
    return Image(
        _tagged(found["manifest"], name) if "manifest" in found else name,
        tuple(found["run"]),
        {path: _file(source.format_map(values)) for path, source in found.get("files", {}).items()},
        {
            str(Path(target).with_name(name)): Path(target).name
            for target, names in found.get("links", {}).items()
            for name in names.split()
        },
        debian.root(*found["debian"]) if "debian" in found else None,
        found.get("user", "0"),
        found.get("stands_in", "").format_map(values),
    )


def images_of(component: str) -> list[Image]:
    """Return the images of a component, or those that a real node has from its start (``NODE``).

    KeyError is raised for a component that isn't in ``COMPONENTS``, ``build.BuildError`` if an image can't be made.
    """
    return [
        _image(found, version)
        for found in _IMAGES[component]
        for version in (NATIVELINK_VERSIONS if "{version}" in found["image"] else ("",))
    ]


def reference(name: str) -> str:
    """Return the full name of an image that a real node has from its start: ``busybox``. Nothing is built for that."""
    (found,) = (each["image"] for each in _IMAGES[NODE] if f"/{name}:" in each["image"])
    return str(found.format_map(_versions()))


def redis_stack() -> Image:
    """Return the image of Redis without Debian's packages: its programs, the search module, and OpenSSL 1.1."""
    (redis,) = _IMAGES["redis"]
    return _image({key: value for key, value in redis.items() if key != "debian"}, "")
