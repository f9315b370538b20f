"""Measure rendering: 1, 10, 100 and 1,000 clusters, compared with other ways to render.

Each size is a fresh inventory in a temporary folder, with clusters like those of inventories/reference.
`ansible-playbook playbooks/render.yml` renders it twice, first into an empty folder. For comparison, a loop of
`ansible.builtin.template` renders the same templates, `helm template` renders the chart, and `kubectl kustomize` builds
the same trees.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render
from ansible_collections.nativelink.gitops.plugins.plugin_utils.context import template_context

from chart import values
from chart.files import FOLDER as CHART
from testbed import build
from testkit import numbers
from testkit.inventories import write_inventory
from testkit.playbooks import start_playbook
from testkit.trees import values_of

SECONDS_A_CLUSTER, TIMES_FASTER, MEMORY_MIB = 0.15, 50, 600
FILTERS = """\
from ansible_collections.nativelink.gitops.plugins.plugin_utils import filters
class FilterModule:
    def filters(self):
        return {name: getattr(filters, name) for name in ("quoted", "to_nice_yaml", "to_nice_json", "to_json")}
"""


@dataclass(frozen=True)
class Run:
    """The wall time of a run, and the most memory that all its processes had at once. Shared pages count once."""

    seconds: float
    mib: float


def main(arguments: list[str] | None = None) -> int:
    """Measure and print. Return 1 if a run failed; a high number is not an error."""
    parser = argparse.ArgumentParser(prog="python -m bench rendering", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 10, 100, 1000], metavar="CLUSTERS")
    parser.add_argument("--loop-sizes", type=int, nargs="*", default=[1, 10], metavar="CLUSTERS")
    given = parser.parse_args(arguments)
    print(numbers.machine(), flush=True)
    print(f"{'clusters':>8}  {'what':32} {'s':>8} {'s/cluster':>10} {'MiB':>6}  compared", flush=True)
    ours: dict[int, float] = {}
    loops: dict[int, float] = {}
    most = 0.0
    for size in sorted({*given.sizes, *given.loop_sizes}):
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            folder = Path(name)
            inventory = _inventory(folder, size)
            first = _playbook("render", inventory)
            ours[size], most = first.seconds / size, max(most, first.mib)
            _row(size, "render", first)
            before = _written(folder / "clusters")
            _row(size, "render again (nothing to write)", _playbook("render", inventory))
            if _written(folder / "clusters") != before:
                raise SystemExit(f"the second run wrote files again (with {size} clusters)")
            _row(size, "kubectl kustomize", _commands(_kustomize(folder / "clusters")), ours[size])
            if size in given.loop_sizes:
                _row(size, "helm template of the chart", _commands(_helm(folder)), ours[size])
                loop = _playbook(_loop(folder), inventory)
                loops[size] = loop.seconds / size
                _row(size, "loop of the template module", loop, ours[size])
    largest = max(ours)
    print()
    _target(f"seconds a cluster at {largest}", ours[largest], SECONDS_A_CLUSTER)
    _target("MiB at most, all processes", most, MEMORY_MIB)
    for size, seconds in loops.items():
        times = seconds / ours[largest]
        print(f"a cluster in the template loop at {size} takes {times:.0f} times as long (target: {TIMES_FASTER})")
    return 0


def _variables(index: int) -> dict[str, Any]:
    """Return the variables of a cluster with two pools. Clusters are like prod and like dev by turns."""
    pools = [{"name": "default", "platform_properties": {"pool": "default"}}, {"name": "large", "longest_action": "1h"}]
    shared = {"nativelink_scheduler_backend": "redis", "nativelink_scheduler_replicas": 2} if index % 2 else {}
    return {
        "cluster_kubeconfig": f"/nowhere/{index}",
        "cluster_context": f"c{index}",
        "nativelink_hostname": f"c{index}.example.com",
        "nativelink_worker_pools": pools,
        **shared,
    }


def _inventory(folder: Path, size: int) -> Path:
    """Write an inventory with this many hosts, and return its path."""
    common = {
        "storage_classes_list": [{"name": "gp3", "preset": "aws-ebs-gp3"}],
        "nativelink_clusters_dir": str(folder / "clusters"),
    }
    hosts = {f"c{index:04}": _variables(index) for index in range(size)}
    return write_inventory(folder / "inventory", hosts, **common)


def _clusters(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the effective variables of the inventory's clusters, by name."""
    hosts = yaml.load((folder / "inventory/hosts.yml").read_text(), yaml.CSafeLoader)["all"]
    return {name: values_of(name, **hosts["vars"], **variables) for name, variables in hosts["hosts"].items()}


def _loop(folder: Path) -> Path:
    """Write a playbook that renders the same files with the template module, and return its path.

    The host variables have everything that the templates need, computed beforehand.
    """
    (folder / "filter_plugins").mkdir()
    (folder / "filter_plugins/nativelink.py").write_text(FILTERS)
    for name, cluster in _clusters(folder).items():
        context = template_context(cluster)
        files = [(path, f"{template}.j2", scope) for path, template, scope in render._wanted(context)]
        resources = [path for path in render.tree(cluster) if path.endswith(".yaml")]
        jobs = [
            {"src": str(render.TEMPLATES / src), "dest": str(folder / "loop" / name / path), "scope": scope}
            for path, src, scope in [*files, ("kustomization.yaml", "kustomization.yaml.j2", {})]
        ]
        for job in jobs:
            Path(job["dest"]).parent.mkdir(parents=True, exist_ok=True)
        data = {
            **{key: value for key, value in context.items() if key != "cluster"},
            "resources": resources,
            "dashboards": [],
            "generated": render.config_maps(context),
            "jobs": jobs,
        }
        (folder / "inventory/host_vars").mkdir(exist_ok=True)
        (folder / f"inventory/host_vars/{name}.json").write_text(json.dumps(data, default=vars))
    playbook = [
        {
            "hosts": "all",
            "connection": "local",
            "gather_facts": False,
            "strategy": "free",
            "vars": {
                "ansible_python_interpreter": "{{ ansible_playbook_python }}",
                "cluster": "{{ inventory_hostname }}",
            },
            "tasks": [
                {
                    "name": "Render one file",
                    "ansible.builtin.template": {
                        "src": "{{ job.src }}",
                        "dest": "{{ job.dest }}",
                        "lstrip_blocks": True,
                    },
                    "vars": {
                        "pool": "{{ job.scope.pool | default({}) }}",
                        "component": "{{ job.scope.component | default({}) }}",
                    },
                    "loop": "{{ jobs }}",
                    "loop_control": {"loop_var": "job", "label": "{{ job.dest }}"},
                }
            ],
        }
    ]
    path = folder / "loop.yml"
    path.write_text(yaml.safe_dump(playbook, sort_keys=False))
    return path


def _playbook(playbook: str | Path, inventory: Path) -> Run:
    began = time.monotonic()
    with tempfile.NamedTemporaryFile(prefix="bench-") as file:
        log = Path(file.name)
        with start_playbook(playbook, inventory, log=log) as process:
            peak = 0.0
            while process.poll() is None:
                peak = max(peak, _memory(process.pid))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.5)
        if process.returncode:
            raise SystemExit(f"{playbook} failed:\n{log.read_text()[-4000:]}")
    return Run(time.monotonic() - began, peak)


def _memory(root: int) -> float:
    """Return the MiB of a process and its descendants. Each shared page is divided among its users (PSS)."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    tree = {root}
    while grown := {child for child, parent in parents.items() if parent in tree and child not in tree}:
        tree |= grown
    total = 0
    for process in tree:
        try:
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total / 1024


def _kustomize(clusters: Path) -> list[list[str]]:
    """Return the commands that build every tree."""
    kubectl = str(build.program("kubectl"))
    return [[kubectl, "kustomize", str(folder)] for folder in sorted(clusters.iterdir())]


def _helm(folder: Path) -> list[list[str]]:
    """Write the values of every cluster, and return the commands that render the chart with them."""
    helm = str(build.program("helm"))
    commands = []
    for name, cluster in _clusters(folder).items():
        file = folder / f"{name}.json"
        file.write_text(json.dumps(values.helm_values({**cluster, "nativelink_cas_storage_class": "gp3"})))
        commands.append([helm, "template", name, str(CHART), "--namespace=nativelink", f"--values={file}"])
    return commands


def _commands(commands: list[list[str]]) -> Run:
    """Run commands, as many at a time as there are cores."""
    began = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = [pool.submit(subprocess.run, each, stdout=subprocess.DEVNULL, check=True) for each in commands]
        for each in runs:
            each.result()
    return Run(time.monotonic() - began, 0)


def _written(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def _row(size: int, what: str, run: Run, ours: float = 0) -> None:
    each = run.seconds / size
    beside = f"{each / ours:.1f} times render" if ours else ""
    memory = f"{run.mib:.0f}" if run.mib else ""
    print(f"{size:8}  {what:32} {run.seconds:8.2f} {each:10.3f} {memory:>6}  {beside}", flush=True)


def _target(what: str, found: float, wanted: float) -> None:
    print(f"{what}: {found:.3g} (target: {wanted:g}{', missed' if found > wanted else ''})")
