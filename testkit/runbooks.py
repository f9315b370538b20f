"""The commands of the runbooks, which tests run as they stand on the pages.

A comment before a block names the part that it needs: ``<!-- needs: redis -->``.
"""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from testbed.cluster import Cluster
from testbed.waiting import patient
from testkit.trees import ROOT

DOCS = ROOT / "docs"
PAGES = [*sorted((DOCS / "alerts").glob("*.md")), DOCS / "runbooks.md"]
BLOCK = re.compile(
    r"^(?: *<!-- needs: (?P<needs>[a-z-]+) -->\n)?"
    r"(?P<indent> *)```sh\n(?P<code>.*?)^(?P=indent)```$"
    r"(?:\n\n(?P=indent)```text\n(?P<said>.*?)^(?P=indent)```$)?",
    re.DOTALL | re.MULTILINE,
)
PLACEHOLDERS = {
    "POOL": "default",
    "NODE": "real-1",
    "POD": "nativelink-cas-0",
    "WORKER": "$(kubectl -n nativelink-workers get pods --field-selector=status.phase=Running "
    "-o jsonpath='{.items[0].metadata.name}')",
}
SECONDS = 60
# Blocks that change the farm run after all others, which then see a farm at rest.
CHANGES = re.compile(r" (rollout restart|delete|scale|patch|annotate|config set) ")


# The function of the shell that asks the bundled Prometheus.
ASK = re.search(r"^ask\(\) \{.+?; \}\n", (DOCS / "alerts/index.md").read_text(), re.DOTALL | re.MULTILINE)[0]


@dataclass(frozen=True)
class Block:
    """Commands on a page: the page and line, the part that they need, the commands, and what they print."""

    at: str
    needs: str
    code: str
    said: str

    @property
    def promised(self) -> list[str]:
        """The words of the first line of the output that have no digit, because others differ from farm to farm."""
        first = self.said.strip().partition("\n")[0]
        return [word for word in first.split() if not re.search(r"\d", word) and "…" not in word]


def blocks(pages: Iterable[Path] = PAGES) -> list[Block]:
    """Return the blocks of pages, each code once, and those that change something last."""
    found: dict[str, Block] = {}
    for page in pages:
        text = page.read_text()
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start("code"))
            code = re.sub(rf"^{match['indent']}", "", match["code"], flags=re.MULTILINE)
            code = re.sub(rf"\b({'|'.join(PLACEHOLDERS)})\b(?!:)", lambda found: PLACEHOLDERS[found[0]], code)
            at = f"{page.name}:{line}"
            found.setdefault(code, Block(at, match["needs"] or "", code, match["said"] or ""))
    return sorted(found.values(), key=lambda block: bool(CHANGES.search(block.code)))


def faults(block: Block, where: Cluster, *, parse: bool = False) -> str:
    """Return what is wrong with a block on a cluster, or "". With `parse` the shell reads it and runs nothing."""
    (where.home / "bin").mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (where.home / "bin/kubectl").symlink_to(where.kubectl)
    path = f"{where.home}/bin:/usr/local/bin:/usr/bin:/bin"
    run = subprocess.Popen(
        ["bash", "-eu", *(["-n"] if parse else []), "-c", ASK + block.code],
        env={"PATH": path, "HOME": str(where.home), "KUBECONFIG": str(where.kubeconfig)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )
    try:
        said, _ = run.communicate(timeout=patient(SECONDS))
    except subprocess.TimeoutExpired:
        return f"{block.at} still runs after {patient(SECONDS):.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
    if run.returncode:
        return f"{block.at} ends with {run.returncode}: {said.strip()[-300:]}"
    missing = [] if parse else [word for word in block.promised if word not in said]
    return f"{block.at} does not print {missing}, but {said.strip()[-300:]!r}" if missing else ""


def run(where: Cluster, *needs: str, name: str = "nativelink") -> str:
    """Run the blocks that need these parts ("" for none), and return what is wrong with them, a line each.

    ``name`` is the namespace of the farm, which has its workers in ``NAME-workers``.
    """
    found = blocks()
    wanted = [block for part in needs for block in found if block.needs == part]
    assert {block.needs for block in wanted} == set(needs)
    mine = [replace(block, code=block.code.replace("-n nativelink", f"-n {name}")) for block in wanted]
    return "\n".join(fault for block in mine if (fault := faults(block, where)))
