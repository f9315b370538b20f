"""Access of the tests to NativeLink, in ways that work with the original and with its stand-in.

The images are the stand-in's, or the original's if ``TESTBED_IMAGES`` has them (testbed/README.md). The actions of a
worker are read from its volume: NativeLink makes a folder for each action, and removes it when the action ends. Volumes
of pods on a real node are folders of this machine.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from conformance.subject import subject
from testbed import build, cache, images, node
from testbed.cluster import Cluster

SAVED = {name: path for name, path in images.saved().items() if name.startswith(f"{images.NATIVELINK}:")}
"""The saved images of the original by name. There are none if NativeLink is the stand-in."""


def only_stand_in(can: str) -> pytest.MarkDecorator:
    """Skip a test that needs the stand-in if NativeLink is the original."""
    return pytest.mark.skipif(bool(SAVED), reason=f"NativeLink is the original here, but only its stand-in can {can}")


def only_original(shows: str) -> pytest.MarkDecorator:
    """Skip a test that says something about NativeLink itself if NativeLink is the stand-in."""
    return pytest.mark.skipif(not SAVED, reason=f"NativeLink is its stand-in here, and only the original shows {shows}")


def program() -> Path:
    """Return NativeLink as a program of this machine: from the newest saved image, or the stand-in."""
    if not SAVED:
        return build.program("nativelink")
    image = SAVED[max(SAVED)]
    folder = cache.root() / "saved" / f"nativelink-{cache.digest(image.read_bytes())}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    return cache.made(folder, lambda draft: Path(subject(image, draft).binary)) / "nativelink"


def started(name: Path, config: dict[str, Any], *before: str, **environment: str) -> subprocess.Popen[bytes]:
    """Start NativeLink on this machine, with the configuration ``NAME.json5`` and the log ``NAME.log``.

    ``before`` is a command that runs NativeLink, such as ``unshare`` with its options.
    """
    file, schema = name.with_suffix(".json5"), images.nativelink_schema(images.NATIVELINK_VERSIONS[-1])
    file.write_text(json.dumps(config))
    variables = {**os.environ, "NATIVELINK_SCHEMA": str(schema), **environment}
    with name.with_suffix(".log").open("ab") as log:
        return subprocess.Popen([*before, program(), file], env=variables, stdout=log, stderr=log)


def scratch(where: Cluster, uid: str) -> Path:
    """Return the folder that the worker's pod with this UID has as ``/scratch``. Its ``/tmp`` is ``tmp`` in it."""
    return where.home / "node/data/var/lib/kubelet/pods" / uid / "volumes/kubernetes.io~empty-dir/scratch"


def actions(where: Cluster, uid: str) -> set[str]:
    """Return the actions that the worker's pod with this UID runs, or none if the pod is gone."""
    try:
        return {path.name for path in (scratch(where, uid) / "actions").iterdir()}
    except FileNotFoundError:
        return set()


VOLUMES = "/opt/local-path-provisioner"
"""The folder of the node with all volumes of class local-path."""


def claim(namespace: str, name: str) -> dict[str, Any]:
    """Return a claim of a volume that several pods of the node can mount, and whose folder ``claimed`` returns."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "storageClassName": "local-path",
            "accessModes": ["ReadWriteOnce"],  # one node may mount it, and there is only one
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }


def claimed(where: Cluster, namespace: str, claim: str) -> Path:
    """Return the folder of a claim's volume of class local-path."""
    volumes = Path(f"/proc/{node.process(where.home)}/root{VOLUMES}")
    (folder,) = volumes.glob(f"pvc-*_{namespace}_{claim}")
    return folder
