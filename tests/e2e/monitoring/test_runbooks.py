"""The commands of the runbooks, run as they stand on the pages, on a farm with an action that no pool can run.

The farm has the default namespaces. It first keeps its queue in memory, and then in Redis. Of the edge, Flux and Argo
CD it has the objects and not the programs, so that commands about these objects run, and find them.

A comment before a block names the part that it needs: ``<!-- needs: redis -->``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed import build, cluster, components, manifests
from testbed.cluster import Cluster
from testbed.waiting import patient, until
from testkit import chain, nativelink
from testkit.authority import Authority
from testkit.chain import Entry, secret
from testkit.site import pool

Object = dict[str, Any]

DOCS = Path(__file__).resolve().parents[3] / "docs"
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
HOST = "nativelink.example.com"
# The farm does not have these parts. The shell reads blocks that need them, and does not run them.
NOT_COVERED = {
    "envoy": "Envoy Gateway and its proxies",
    "cert-manager": "cert-manager",
    "certificate": "the files of a new certificate",
    "mutual-tls": "certificates of workers",
    "inventory": "the inventory of a real cluster",
}
SECONDS = 60
# Blocks that change the farm run after all others, which then see a farm at rest.
CHANGES = re.compile(r" (rollout restart|delete|scale|patch|annotate|config set) ")
DEFINITIONS = {
    "gateway-api": ("gateways", "grpcroutes"),
    "envoy-gateway": ("backendtrafficpolicies", "clienttrafficpolicies"),
    "flux": ("gitrepositories", "kustomizations"),
    "argocd": ("applications",),
}
SMALL_REDIS = {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}}


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


def blocks(pages: Iterable[Path]) -> list[Block]:
    """Return the blocks of pages, each code once, and those that change something last."""
    found = {}
    for page in pages:
        text = page.read_text()
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start("code"))
            code = re.sub(rf"^{match['indent']}", "", match["code"], flags=re.MULTILINE)
            code = re.sub(rf"\b({'|'.join(PLACEHOLDERS)})\b(?!:)", lambda found: PLACEHOLDERS[found[0]], code)
            at = f"{page.relative_to(DOCS)}:{line}"
            found.setdefault(code, Block(at, match["needs"] or "", code, match["said"] or ""))
    return sorted(found.values(), key=lambda block: bool(CHANGES.search(block.code)))


def faults(block: Block, where: Cluster, *, parse: bool = False) -> str:
    """Return what is wrong with a block on a cluster, or "". With `parse` the shell reads it and runs nothing."""
    path = f"{where.home}/bin:/usr/local/bin:/usr/bin:/bin"
    run = subprocess.Popen(
        ["bash", "-eu", *(["-n"] if parse else []), "-c", block.code],
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


def definitions() -> list[Object]:
    """Return the definitions of the objects of the edge and of the engines."""
    found = []
    for component, wanted in DEFINITIONS.items():
        for item in yaml.load_all(manifests.path(component).read_text(), yaml.CSafeLoader):
            if item and item["kind"] == "CustomResourceDefinition" and item["spec"]["names"]["plural"] in wanted:
                found.append(item)
    return found


def engines() -> list[Object]:
    """Return the objects by which Flux and Argo CD sync a cluster named prod, without what they would sync."""
    flux, argocd = ({"namespace": name, "name": "nativelink-prod"} for name in ("flux-system", "argocd"))
    source = {"kind": "GitRepository", "name": "nativelink-prod"}
    url = "https://git.example.com/nativelink.git"
    return [
        *({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in ("flux-system", "argocd")),
        {
            "apiVersion": "source.toolkit.fluxcd.io/v1",
            "kind": "GitRepository",
            "metadata": flux,
            "spec": {"url": url, "interval": "1m"},
        },
        {
            "apiVersion": "kustomize.toolkit.fluxcd.io/v1",
            "kind": "Kustomization",
            "metadata": flux,
            "spec": {"sourceRef": source, "interval": "1m", "prune": True},
        },
        {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Application",
            "metadata": argocd,
            "spec": {
                "project": "nativelink-prod",
                "source": {"repoURL": url, "path": "clusters/prod"},
                "destination": {"server": "https://kubernetes.default.svc"},
            },
        },
    ]


class Farm:
    """The farm, whose queue is in Redis or in memory."""

    def __init__(self, where: Cluster, folder: Path) -> None:
        self.where, self.entry = where, Entry(where, "nativelink", folder)

    def apply(self, backend: str) -> None:
        """Apply the tree with this backend of the scheduler."""
        self.entry.apply(
            [pool("default")],
            nativelink_scheduler_backend=backend,
            nativelink_redis_resources=SMALL_REDIS,
            nativelink_redis_volume_size="1Gi",
            nativelink_metrics=["scheduler", "cas", "worker"],
            nativelink_prometheus="bundled",
            nativelink_edge="gateway",
            ingress_provider="envoy-gateway",
            nativelink_hostname=HOST,
            nativelink_edge_tls_secret="edge-tls",
        )

    def send_wrong_bytes(self) -> None:
        """Send the CAS bytes that do not have the hash of their digest, which it refuses."""
        client = build.program("reapi-load")
        to = (f"--cas-endpoint=grpc://{self.entry.address('nativelink-cas')}:50051", "--instance=main")
        done = subprocess.run([client, "put", *to], capture_output=True, text=True, check=True)
        assert all(told.startswith("refused") for told in json.loads(done.stdout).values()), done.stdout

    def ready(self, *more: str) -> None:
        """Wait until CAS, scheduler, collector, these workloads and the workers are ready."""
        self.entry.await_ready()
        self.where.rolled_out("nativelink", *more)
        self.where.rolled_out("nativelink-workers", "deployment/nativelink-worker-default")


@pytest.fixture(scope="module")
def farm(state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    with cluster.fresh("runbooks", nodes=0, real=True) as where:
        wanted = ("keda", "collector", "redis", "redis-exporter", "prometheus")
        where.load(*(image for name in wanted for image in components.images_of(name)))
        (where.home / "bin").mkdir()
        (where.home / "bin/kubectl").symlink_to(where.kubectl)
        chain.install_keda(where)
        where.apply(*definitions())
        names = [f"customresourcedefinition/{item['metadata']['name']}" for item in definitions()]
        where.run("wait", "--for=condition=Established", *names, f"--timeout={patient(60)}s")
        certificate, key = Authority("Servers of the tests").issue(HOST)
        where.apply(
            *engines(),
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "nativelink"}},
            secret("nativelink-redis", "Opaque", {"password": b"of-a-test"}),
            secret("edge-tls", "kubernetes.io/tls", {"tls.crt": certificate, "tls.key": key}),
        )
        made = Farm(where, tmp_path_factory.mktemp("tree"))
        made.apply("memory")
        chain.await_keda(where)
        made.ready("deployment/nativelink-prometheus")
        yield made


def run(farm: Farm, *needs: str) -> str:
    """Run the blocks that need one of these parts, and return what is wrong with them, a line each."""
    wanted = [block for part in needs for block in blocks(PAGES) if block.needs == part]
    assert {block.needs for block in wanted} == set(needs)
    return "\n".join(fault for block in wanted if (fault := faults(block, farm.where)))


def test_each_part_that_a_block_needs_is_known() -> None:
    found = blocks(PAGES)
    assert len(found) > 70
    assert {block.needs for block in found} == {"", "memory", "original", "redis", *NOT_COVERED}


def test_commands_run_with_the_queue_in_memory(farm: Farm) -> None:
    farm.send_wrong_bytes()
    path, volume = f"/api/v1/nodes/{PLACEHOLDERS['NODE']}/proxy/metrics", 'claim="data-nativelink-cas-0"'
    until("the kubelet to measure the volume", lambda: volume in farm.where.run("get", "--raw", path), 60)
    query = ("promtool", "query", "instant", "http://localhost:9090", "nativelink_worker_connected_count")
    ask = ("-n", "nativelink", "exec", "deployment/nativelink-prometheus", "--", *query)
    until("Prometheus to have the workers", lambda: "component" in farm.where.run(*ask), 60)
    with farm.entry.load(pool="no-pool-has-it") as load:
        load.hold(1)
        assert run(farm, "", "memory") == ""
        if nativelink.SAVED:  # the stand-in does not log the reason
            log = ("-n", "nativelink", "logs", "deployment/nativelink-scheduler")
            until("the scheduler to log the action", lambda: "No candidate workers" in farm.where.run(*log), 90)
            assert run(farm, "original") == ""


def test_commands_run_with_the_queue_in_redis(farm: Farm) -> None:
    farm.apply("redis")
    farm.ready("statefulset/nativelink-redis", "deployment/nativelink-demand")
    farm.entry.only_scheduler()
    with farm.entry.load(pool="no-pool-has-it") as load:
        load.hold(1)
        assert run(farm, "redis") == ""


def test_commands_that_need_more_are_valid_for_the_shell(farm: Farm) -> None:
    wanted = [block for block in blocks(PAGES) if block.needs in NOT_COVERED]
    assert [fault for block in wanted if (fault := faults(block, farm.where, parse=True))] == []


@pytest.mark.parametrize(
    ("code", "said", "fault"),
    [
        ("kubectl -n nativelink get statefulset nativelink-css", "", "not found"),
        ("kubectl -n nativelink get statefulset nativelink-cas", "NAME   READY   RESTARTS", "['RESTARTS']"),
        ("kubectl -n nativelink get statefulset nativelink-cas; echo $NOWHERE", "", "NOWHERE: unbound variable"),
    ],
)
def test_a_wrong_command_or_output_is_found(farm: Farm, tmp_path: Path, code: str, said: str, fault: str) -> None:
    """The counter-run of the tests above."""
    (tmp_path / "page.md").write_text(f"# A page\n\n```sh\n{code}\n```\n\n```text\n{said}\n```\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.e2e.monitoring.test_runbooks.DOCS", tmp_path)
        (block,) = blocks([tmp_path / "page.md"])
    found = faults(block, farm.where)
    assert found.startswith("page.md:3 ")
    assert fault in found
