"""OCI images made of our own binaries and of Debian packages, without Docker.

An image carries its upstream name, so that manifests are used unchanged. Its content is what its pins say, or a
stand-in, which the label ``testbed.stand-in`` of the image then describes.
"""

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from testbed import build, cache

NATIVELINK = "ghcr.io/tracemachina/nativelink"
_TABLE = Path(__file__).parents[1] / "roles/nativelink/files/versions.yml"
NATIVELINK_VERSIONS: tuple[str, ...] = tuple(reversed(yaml.safe_load(_TABLE.read_text())["versions"]))
"""Those that are known, the newest last."""

_OCI = "application/vnd.oci.image"


@dataclass(frozen=True)
class Image:
    """One image: its full name, and what it consists of.

    ``files`` maps absolute paths in the image to files or folders of this machine, ``links`` maps paths to the targets
    of symbolic links, and ``root`` is a folder whose whole content is added. ``user`` is ``UID`` or ``UID:GID``.
    ``stands_in`` describes the content if it is not what the name promises.
    """

    reference: str
    entrypoint: tuple[str, ...]
    files: Mapping[str, Path] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    root: Path | None = None
    user: str = "0"
    stands_in: str = ""


def nativelink_schema(version: str) -> Path:
    """Return the JSON Schema of the configuration of a version (``v1.6.6``), which the stand-in for it reads."""
    return Path(__file__).parents[1] / "schemas" / f"nativelink-{version}.schema.json"


def mirrored(reference: str) -> str:
    """Return a full or short name as a mirror serves it, without the registry: ``library/busybox:1.35.0``."""
    registry, slash, name = reference.partition("/")
    if not slash:
        return f"library/{reference}"
    return name if "." in registry or ":" in registry else reference


def saved() -> dict[str, Path]:
    """Return the images in the tarballs (as ``docker save`` writes them) of the folder ``TESTBED_IMAGES``, by name.

    They replace the images that we make under the same names, so that a real image takes the place of its stand-in.
    """
    found: dict[str, Path] = {}
    if folder := os.environ.get("TESTBED_IMAGES"):
        for path in sorted(Path(folder).glob("*.tar")):
            found |= dict.fromkeys(saved_image(path)["RepoTags"] or (), path)
    return found


def saved_image(path: Path) -> dict[str, Any]:
    """Return what a tarball of ``docker save`` says about its image: ``{"RepoTags": […], "Config": …, "Layers": […]}``.

    ``build.BuildError`` is raised for a file that is not such a tarball, or that has more than one image, because
    several images in one file can't be pushed.
    """
    try:
        with tarfile.open(path) as archive:
            listing = archive.extractfile("manifest.json")
            inside = json.load(listing) if listing else []
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise build.BuildError(f"{path} is not a tarball of docker save: {error}") from None
    if len(inside) != 1:
        raise build.BuildError(f"{path} has {len(inside)} images: save each into a file of its own")
    return dict(inside[0])


def _sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return a member of a layer that doesn't say who made it, and when."""
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def _write_layer(image: Image, target: Path) -> None:
    def add(path: str, kind: bytes, mode: int, points_to: str = "") -> None:
        entry = tarfile.TarInfo(path.lstrip("/"))
        entry.type, entry.mode, entry.linkname = kind, mode, points_to
        layer.addfile(entry)

    with tarfile.open(target, "w") as layer:
        add("/tmp", tarfile.DIRTYPE, 0o1777)
        for source in sorted(image.root.rglob("*")) if image.root else ():
            layer.add(source, source.relative_to(image.root), recursive=False, filter=_anonymous)
        for path, source in sorted(image.files.items()):
            layer.add(source.resolve(), path, filter=_anonymous)
        for path, points_to in sorted(image.links.items()):
            add(path, tarfile.SYMTYPE, 0o777, points_to)


def _write_layout(image: Image, draft: Path) -> None:
    """Write one OCI image layout: https://specs.opencontainers.org/image-spec/image-layout/."""
    blobs = draft / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def add(kind: str, content: bytes | Path) -> dict[str, Any]:
        file = content if isinstance(content, Path) else draft / "blob"
        if isinstance(content, bytes):
            file.write_bytes(content)
        digest, size = _sha256(file), file.stat().st_size
        file.rename(blobs / digest)
        return {"mediaType": f"{_OCI}.{kind}", "digest": f"sha256:{digest}", "size": size}

    def add_json(kind: str, content: dict[str, Any]) -> dict[str, Any]:
        return add(kind, json.dumps(content, sort_keys=True).encode())

    _write_layer(image, draft / "layer")
    layer = add("layer.v1.tar", draft / "layer")
    settings: dict[str, Any] = {
        "Entrypoint": list(image.entrypoint),
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "User": image.user,
        "Labels": {"testbed.stand-in": image.stands_in} if image.stands_in else {},
    }
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    }
    manifest = add_json(
        "manifest.v1+json",
        {
            "schemaVersion": 2,
            "mediaType": f"{_OCI}.manifest.v1+json",
            "config": add_json("config.v1+json", config),
            "layers": [layer],
        },
    )
    manifest["annotations"] = {"org.opencontainers.image.ref.name": image.reference}
    (draft / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    (draft / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def layout(image: Image) -> Path:
    """Return the folder with an image in OCI layout, for ``crane push`` and other tools, and make it if needed."""
    files = {path: _sha256(source) if source.is_file() else source for path, source in image.files.items()}
    described = asdict(image) | {"files": files}  # the path of a folder says what is in it
    key = cache.digest(Path(__file__).read_bytes(), json.dumps(described, sort_keys=True, default=str))
    name = f"{re.sub('[/:]', '-', mirrored(image.reference))}-{key}"
    return cache.made(cache.root() / "images" / name, lambda draft: _write_layout(image, draft))
