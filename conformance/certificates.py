"""The certificates of mutual TLS, which a pod has in the volume of a Secret."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from cryptography.x509 import DNSName

from conformance import namespaces
from testkit.authority import Authority

_NAMES = ("*.nativelink-cas-headless.{}.svc", "nativelink-scheduler-workers.{}.svc")


@dataclass(frozen=True)
class Trust:
    """The CA whose certificate a pod shows, and the CAs whose certificates it accepts."""

    issuer: Authority
    accepted: tuple[Authority, ...]

    def write(self, volume: Path, namespace: str, mode: int, group: int) -> None:
        """Make a certificate for a pod of a namespace, and write the files as a kubelet does, behind links."""
        certificate, key = self.issuer.issue("pod", *(DNSName(name.format(namespace)) for name in _NAMES))
        authorities = b"".join(each.pem for each in self.accepted)
        shutil.rmtree(volume, ignore_errors=True)
        (volume / "..data").mkdir(parents=True)
        for name, text in {"tls.crt": certificate, "tls.key": key, "ca.crt": authorities}.items():
            path = volume / "..data" / name
            path.write_bytes(text)
            path.chmod(mode)
            if namespaces.has_users():
                os.chown(path, -1, group)
            (volume / name).symlink_to(f"..data/{name}")


FIRST = Authority("first")
TRUST = Trust(FIRST, (FIRST,))
"""What pods have unless they are given something else."""
