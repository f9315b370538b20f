"""Farms on a cluster with a real node: a rendered tree with patches, applied as an engine does, and its pods.

The actions of a worker are read from its volume: NativeLink makes a folder for each action, and removes it when the
action ends. Volumes of pods on a real node are folders of this machine.
"""

import base64
import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render
from ansible_collections.nativelink.gitops.plugins.plugin_utils.tree import write

from testbed import components, manifests, node
from testbed.cluster import Cluster
from testbed.waiting import patient, until
from testkit.client import Client, Load
from testkit.git_server import address_for
from testkit.record import Record
from testkit.site import SMALL
from testkit.trees import Object, resource, values_of

# Fields of a pool whose workers are fake pods. There can be any number of them.
FAKE: Object = {
    "node_selector": {node.LABEL: "fake"},
    "tolerations": [{"key": node.LABEL, "operator": "Exists", "effect": "NoSchedule"}],
}
VOLUMES = "/opt/local-path-provisioner"
"""The folder of the node with all volumes of class local-path."""
T = TypeVar("T")
_METRICS_API = "apiservice/v1beta1.external.metrics.k8s.io"
_CLAIM = "begun"


def load_images(where: Cluster, *names: str) -> None:
    """Offer the images of components to the real node."""
    where.load(*(image for name in names for image in components.images_of(name)))


def install(where: Cluster, *names: str) -> None:
    """Apply the release manifests of components, whose images the real node has. ``await_keda`` waits for KEDA."""
    for name in names:
        where.run("apply", "--server-side", "-f", str(manifests.path(name)))


def await_keda(where: Cluster) -> None:
    """Wait until KEDA serves metrics to the HPAs."""
    where.run("wait", "--for=condition=Available", _METRICS_API, f"--timeout={patient(120)}s")


def patch(change: Object, **target: str) -> Object:
    """Return a patch of a kustomization: of the object that it names, or of all that match a target."""
    return {"patch": yaml.safe_dump(change), **({"target": target} if target else {})}


def deployment(name: str, pod: Object, **metadata: str) -> Object:
    """Return a change of a Deployment's pod, as a document for ``patch``."""
    return resource("apps/v1/Deployment", name, spec={"template": {"spec": pod}}, metadata=metadata)


BEGUN = patch(
    deployment(
        "any",
        {
            "containers": [{"name": "worker", "volumeMounts": [{"name": "begun", "mountPath": "/begun"}]}],
            "volumes": [{"name": "begun", "persistentVolumeClaim": {"claimName": _CLAIM}}],
        },
    ),
    kind="Deployment",
    labelSelector="app.kubernetes.io/component=worker",
)
"""Mounts a volume of all workers at ``/begun``, where actions leave something when they begin: ``Farm.begun``."""


@dataclass(frozen=True)
class Farm:
    """A farm on a cluster: its name, with which its namespaces begin, and the folder of its tree."""

    where: Cluster
    name: str
    folder: Path

    @property
    def workers(self) -> str:
        """The namespace of the workers. The other namespace has the name of the farm."""
        return f"{self.name}-workers"

    def run(self, *arguments: str) -> str:
        """Run kubectl in the namespace of the workers, and return its output."""
        return self.where.run("-n", self.workers, *arguments)

    def tree(self, pools: list[Object], **variables: Any) -> dict[str, str]:
        """Render the tree. It has only the add-ons that the variables name."""
        spaces = {"nativelink_namespace": self.name, "nativelink_workers_namespace": self.workers}
        return render.tree(values_of(self.name, **{**SMALL, **spaces, "nativelink_worker_pools": pools, **variables}))

    def apply(self, pools: list[Object], *patches: Object, **variables: Any) -> None:
        """Render the tree, and apply it with patches."""
        self.apply_files(self.tree(pools, **variables), *patches)

    def apply_files(self, files: dict[str, str], *patches: Object) -> None:
        """Write a tree that may be mixed from several, and apply it with patches."""
        write(self.folder, files)
        kustomization = {"resources": ["rendered"], "patches": [*patches]}
        (self.folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        self.where.apply(
            secure_namespace(self.name, "restricted"),
            secure_namespace(self.workers, "baseline"),
            this_machine(self.where, self.name),
            *([_claim(self.workers)] if BEGUN in patches else []),
        )
        self.apply_folder()

    def apply_folder(self) -> None:
        """Apply the folder as an engine does."""
        self.where.run("apply", "--server-side", "--force-conflicts", "--field-manager=engine", "-k", str(self.folder))

    def ready(self, *more: str) -> None:
        """Wait for CAS, scheduler and more workloads: ``deployment/nativelink-worker-default``."""
        for workload in ("statefulset/nativelink-cas", "deployment/nativelink-scheduler", *more):
            self.where.rolled_out(self.workers if "-worker-" in workload else self.name, workload)

    def only_scheduler(self) -> str:
        """Wait until earlier schedulers, which still serve while they end, are gone. Return the name of the pod."""

        def pods() -> list[str]:
            selector = "app.kubernetes.io/component=scheduler"
            return self.where.run("-n", self.name, "get", "pods", "-l", selector, "-o", "name").split()

        until("the old scheduler to be gone", lambda: len(pods()) == 1, 60)
        (name,) = pods()
        return name.removeprefix("pod/")

    def address(self, name: str) -> str:
        """Return the address of one of the farm's Services, which this machine reaches."""
        return self.where.service_address(self.name, name)

    def client(self) -> Client:
        """Return a client of the farm on this machine."""
        scheduler, cas = self.address("nativelink-scheduler"), self.address("nativelink-cas")
        return Client(f"grpc://{scheduler}:50052", f"grpc://{cas}:50051")

    def load(self, chunk: int = 40, pool: str = "", **platform: str) -> Load:
        """Return actions that wait. ``pool`` is a pool with fake workers."""
        workers = f"grpc://{self.address('nativelink-scheduler-workers')}:50061"
        return Load(self.client(), chunk, pool, workers, **platform)

    @contextlib.contextmanager
    def without(self, workload: str, *, killed: bool = False) -> Iterator[float]:
        """Stop the only pod of a workload beside the CAS, yield the time, and start it again.

        With ``killed`` the pod does not drain.
        """

        def scale(number: int) -> None:
            self.where.run("-n", self.name, "scale", workload, f"--replicas={number}")

        component = workload.partition("/nativelink-")[2]
        pods = ("pod", "-l", f"app.kubernetes.io/component={component}")
        scale(0)
        if killed:
            self.where.run("-n", self.name, "delete", *pods, "--force", "--grace-period=0")
        self.where.run("-n", self.name, "wait", "--for=delete", *pods, f"--timeout={patient(120)}s")
        try:
            yield time.monotonic()
        finally:
            scale(1)
            self.where.rolled_out(self.name, workload)

    def deployments(self) -> Record:
        """Return a record of the Deployments of the workers."""
        return Record(self.where, f"/apis/apps/v1/namespaces/{self.workers}/deployments")

    def pods(self) -> Record:
        """Return a record of the pods of the workers."""
        return Record(self.where, f"/api/v1/namespaces/{self.workers}/pods")

    def begun(self, pattern: str) -> list[int]:
        """Return the number of lines of each file on the volume of ``BEGUN`` that matches a pattern, sorted by name."""
        files = sorted(claimed(self.where, self.workers, _CLAIM).glob(pattern))
        return [len(file.read_text().splitlines()) for file in files]


@contextlib.contextmanager
def repeated(act: Callable[[int], T]) -> Iterator[Future[list[T]]]:
    """Call ``act`` with 0, 1 and so on, beside the block and until it ends, but once at least.

    The future has what the calls returned. An exception of one of them is raised at the end of the block.
    """
    over = threading.Event()

    def load() -> list[T]:
        found = [act(0)]
        while not over.is_set():
            found.append(act(len(found)))
        return found

    with ThreadPoolExecutor(1) as background:
        calls = background.submit(load)
        try:
            yield calls
        finally:
            over.set()
        calls.result()


def drain(where: Cluster, selector: str, *options: str) -> str:
    """Drain the pods with a label from the node, and return kubectl's output.

    The node is uncordoned at once, so that the new pods start on it.
    """
    command = where.command("drain", node.NAME, f"--pod-selector={selector}", *options, f"--timeout={patient(180)}s")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as drained:
        closed = ("get", "node", node.NAME, "-o", "jsonpath={.spec.unschedulable}")
        until("kubectl drain to cordon the node", lambda: where.run(*closed) == "true", 10)
        where.run("uncordon", node.NAME)
        said = drained.communicate()[0]
    assert drained.returncode == 0, said
    return said


def fingerprint(
    where: Cluster, *namespaces: str, kinds: str = "statefulsets,deployments,pods,persistentvolumeclaims"
) -> dict[str, str]:
    """Return UID and generation of each object, one of which differs after a replacement or a change.

    Objects that are being deleted are left out: a worker may end long after the test that removed it.
    """
    found: dict[str, str] = {}
    for namespace in namespaces:
        for each in json.loads(where.run("-n", namespace, "get", kinds, "-o", "json"))["items"]:
            metadata = each["metadata"]
            if "deletionTimestamp" not in metadata:
                name = f"{each['kind']}/{metadata['name']}"
                found[name] = f"{metadata['uid']} {metadata.get('generation', '')}".strip()
    return found


def this_machine(where: Cluster, namespace: str) -> Object:
    """Return a policy that lets this machine reach the pods of a namespace. The policies of a tree do not."""
    rule = {"from": [{"ipBlock": {"cidr": f"{address_for(where)}/32"}}]}
    spec = {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [rule]}
    return resource("networking.k8s.io/v1/NetworkPolicy", "this-machine", namespace, spec=spec)


def secret(name: str, kind: str, data: dict[str, bytes], namespace: str = "nativelink") -> Object:
    """Return a Secret of a type."""
    encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
    return resource("v1/Secret", name, namespace, type=kind, data=encoded)


def secure_namespace(name: str, security: str) -> Object:
    """Return a Namespace with a level of Pod Security."""
    labels = {"pod-security.kubernetes.io/enforce": security}
    return resource("v1/Namespace", name, metadata={"labels": labels})


def actions(where: Cluster, uid: str) -> set[str]:
    """Return the actions that the worker's pod with this UID runs, or none if the pod is gone."""
    pod = where.home / "node/data/var/lib/kubelet/pods" / uid
    try:
        return {path.name for path in (pod / "volumes/kubernetes.io~empty-dir/scratch/actions").iterdir()}
    except FileNotFoundError:
        return set()


def process_of(uid: str, program: str = "/shared/nativelink") -> int:
    """Return the process ID on this machine of a program, or of a shell's script, in the pod with this UID."""
    for found in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has just ended
            words = (found / "cmdline").read_text().split("\0")[:2]
            if program in words and uid in (found / "cgroup").read_text():
                return int(found.name)
    raise AssertionError(f"pod {uid} does not run {program}")


def _claim(namespace: str) -> Object:
    spec = {
        "storageClassName": "local-path",
        "accessModes": ["ReadWriteOnce"],  # one node may mount it, and there is only one
        "resources": {"requests": {"storage": "1Gi"}},
    }
    return resource("v1/PersistentVolumeClaim", _CLAIM, namespace, spec=spec)


def claimed(where: Cluster, namespace: str, claim: str) -> Path:
    """Return the folder of a claim's volume of class local-path."""
    volumes = Path(f"/proc/{node.process(where.home)}/root{VOLUMES}")
    (folder,) = volumes.glob(f"pvc-*_{namespace}_{claim}")
    return folder
