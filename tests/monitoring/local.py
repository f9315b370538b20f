"""Prometheus and its Alertmanager on this machine."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import yaml

from testbed import build
from testbed.ports import free_port
from testbed.waiting import until

_OPTIONS = {
    "prometheus": ["--storage.tsdb.path=data"],
    "alertmanager": ["--storage.path=data", "--cluster.listen-address="],
}


@contextmanager
def local(name: str, folder: Path, settings: Mapping[str, Any]) -> Iterator[str]:
    """Run ``prometheus`` or ``alertmanager`` with these settings, and yield its address when it is ready.

    Its data, its log and the rules that the settings name are in the folder.
    """
    program = build.binaries({name: build.COMPONENT_SETS[name]})[name]
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(dict(settings)))
    address = f"127.0.0.1:{free_port()}"
    command = [program, f"--config.file={name}.yaml", f"--web.listen-address={address}", *_OPTIONS[name]]
    log = folder / f"{name}.log"
    with log.open("w") as output, subprocess.Popen(command, cwd=folder, stdout=output, stderr=output) as process:
        try:
            until(f"{name} to be ready", lambda: urlopen(f"http://{address}/-/ready").status == 200, 60, log.read_text)
            yield f"http://{address}"
        finally:
            process.kill()
