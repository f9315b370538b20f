"""Prometheus and its Alertmanager on this machine, and rules that wait less, for tests that make an alert fire."""

from __future__ import annotations

import copy
import re
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
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# A range or an offset.
_SPAN = re.compile(r"(\[|offset )(\d+)([smhd])")
SHORTEST = 5
"""Seconds that no wait, range or offset falls below."""


@contextmanager
def local(name: str, folder: Path, settings: Mapping[str, Any]) -> Iterator[str]:
    """Run ``prometheus`` or ``alertmanager`` with these settings, and yield its address when it is ready.

    Its data, its log and the rules that the settings name are in the folder.
    """
    program = build.program(name)
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


def hurried(groups: list[dict[str, Any]], factor: float) -> list[dict[str, Any]]:
    """Return groups of rules whose `for`, ranges and offsets are divided by a factor, in whole seconds.

    A range needs two samples to be of use, so the factor depends on the scrape interval of the test.
    """
    changed = copy.deepcopy(groups)
    for rule in (rule for group in changed for rule in group["rules"]):
        rule["expr"] = _SPAN.sub(lambda found: f"{found[1]}{_divided(found[2], found[3], factor)}", rule["expr"])
        if "for" in rule:
            rule["for"] = _divided(rule["for"][:-1], rule["for"][-1], factor)
    return changed


def _divided(number: str, unit: str, factor: float) -> str:
    return f"{max(SHORTEST, round(int(number) * _UNITS[unit] / factor))}s"
