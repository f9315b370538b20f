"""The program that gives each action a user of its own (roles/nativelink/files/isolation), as a ConfigMap holds it."""

from __future__ import annotations

import hashlib
from base64 import b64encode

from .specs import ROOT

FOLDER = ROOT / "roles/nativelink/files/isolation"
ARCHITECTURES = ("amd64", "arm64")
PROGRAMS = {name: b64encode((FOLDER / name).read_bytes()).decode() for name in ARCHITECTURES}
"""The programs by architecture, in base64."""
CONFIG_MAP = f"nativelink-isolation-{hashlib.sha256(''.join(PROGRAMS.values()).encode()).hexdigest()[:10]}"
"""The ConfigMap's name, which changes with the programs, so that changed ones replace the workers."""
