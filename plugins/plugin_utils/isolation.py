"""The program that gives each action a user of its own (roles/nativelink/files/isolation), as a ConfigMap holds it."""

import hashlib
import textwrap
from base64 import b64encode

from .specs import ROOT

FOLDER = ROOT / "roles/nativelink/files/isolation"
ARCHITECTURES = ("amd64", "arm64")
PROGRAMS = {name: textwrap.wrap(b64encode((FOLDER / name).read_bytes()).decode(), 120) for name in ARCHITECTURES}
"""The lines of the programs in base64, by architecture."""
CONFIG_MAP = f"nativelink-isolation-{hashlib.sha256(repr(PROGRAMS).encode()).hexdigest()[:10]}"
"""The ConfigMap's name, which changes with the programs, so that changed ones replace the workers."""
