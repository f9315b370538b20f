"""Clusters: etcd and a real control plane as plain processes of this user, with nodes that kwok fakes.

With root, one node can be real: see ``testbed.node``.

All state of a cluster NAME is in ``<state>/NAME``. ``<state>`` is ``.testbed`` in the checkout, or ``TESTBED_STATE``.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from testbed import build, cache, components, images, node
from testbed.ports import free_ports, is_free
from testbed.waiting import ClusterError, patient, tails, until

DEFAULT_NAME = "local"
NODES = 6
HPA_SYNC = 5
"""Seconds between two syncs of an HPA. A user's cluster has 15, which only makes tests longer."""
ZONES = ("zone-a", "zone-b", "zone-c")
COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok")

# The names that kwokctl has for the components.
_PROGRAMS = ("etcd", "kubeApiserver", "kubeControllerManager", "kubeScheduler", "kwokController")
# Each cluster gets random ports. kwokctl would take the first free ports below 32768. Two clusters that start at once
# would then take the same ones, and another cluster could take the port of an API server that is stopped.
_LISTENERS = (*_PROGRAMS, "etcdPeer")

_STAGES = Path(__file__).parent / "stages.yaml"
_READY_SECONDS = 90.0

# Arguments that kwokctl does not set, by component. "{pki}" is the folder of the cluster's certificates.
_EXTRA_ARGUMENTS = {
    "etcd": {"unsafe-no-fsync": "true"},  # the cluster is temporary, so it need not wait for the disk
    "kube-apiserver": {
        "service-cluster-ip-range": "10.96.0.0/16",
        # The address in the Endpoints of the Service kubernetes, which must not be loopback. It is never called.
        "advertise-address": "198.51.100.1",
        # APIServices need these. kwokctl has one client certificate, which is also used as the proxy's.
        "requestheader-client-ca-file": "{pki}/ca.crt",
        "requestheader-allowed-names": "kwok-admin",
        "requestheader-username-headers": "X-Remote-User",
        "requestheader-group-headers": "X-Remote-Group",
        "requestheader-extra-headers-prefix": "X-Remote-Extra-",
        # There is no kube-proxy for the addresses of Services, so the API server itself has to look up endpoints.
        "enable-aggregator-routing": "true",
    },
    # One instance of each is enough. Without a lease it survives an API server that is paused.
    "kube-controller-manager": {
        "leader-elect": "false",
        "horizontal-pod-autoscaler-sync-period": f"{HPA_SYNC}s",
        # A real node requests its certificate.
        "cluster-signing-cert-file": "{pki}/ca.crt",
        "cluster-signing-key-file": "{pki}/ca.key",
    },
    "kube-scheduler": {"leader-elect": "false"},
    "kwok-controller": {"manage-all-nodes": "false", "manage-nodes-with-label-selector": f"{node.LABEL}=fake"},
}


def state_root() -> Path:
    """Return the folder of all state: ``TESTBED_STATE``, or ``.testbed`` in the checkout. It may not exist yet."""
    return Path(os.environ.get("TESTBED_STATE") or Path(__file__).parent.parent / ".testbed").resolve()


@dataclass(frozen=True)
class Cluster:
    """A cluster by name. The object alone changes nothing: ``up`` starts a cluster, and ``down`` removes it."""

    name: str
    home: Path

    @property
    def kubeconfig(self) -> Path:
        """The kubeconfig file with embedded certificates, which exists when the cluster has been started."""
        return self.home / "kubeconfig"

    @property
    def context(self) -> str:
        """The only context of the kubeconfig, which is also the current one."""
        return f"testbed-{self.name}"

    @property
    def kubectl(self) -> Path:
        """The kubectl of the cluster's version."""
        return build.program("kubectl")

    @property
    def real(self) -> bool:
        """True if the cluster was started with a real node."""
        return (self.home / "node").exists()

    @property
    def endpoint(self) -> str:
        """The API server's address, ``https://127.0.0.1:PORT``; ClusterError if the cluster was never started."""
        return str(self._settings()["clusters"][0]["cluster"]["server"])

    @property
    def port(self) -> int:
        """The API server's port, which is neither 443 nor 6443."""
        return int(self.endpoint.rpartition(":")[2])

    @property
    def _workdir(self) -> Path:
        """The folder in which kwokctl keeps the cluster, and the working directory of the cluster's processes."""
        return self.home / "kwok" / "clusters" / self.name

    def _settings(self) -> dict[str, Any]:
        try:
            return dict(yaml.safe_load(self.kubeconfig.read_text()))
        except FileNotFoundError:
            raise ClusterError(f"cluster {self.name} was not started: {self.kubeconfig} does not exist") from None

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of ``kubectl ARGUMENTS`` on this cluster."""
        ours = [str(self.kubectl), "--kubeconfig", str(self.kubeconfig), "--context", self.context]
        # kubectl caches the API of a server by its address, and the next cluster may get the same port.
        return [*ours, "--cache-dir", str(self.home / "kubectl-cache"), *arguments]

    def run(self, *arguments: str, stdin: str | None = None) -> str:
        """Return the stdout of ``kubectl ARGUMENTS`` on this cluster. ClusterError with its stderr if it fails."""
        done = subprocess.run(self.command(*arguments), input=stdin, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply objects server-side, as field manager ``testbed``."""
        arguments = ("--server-side", "--force-conflicts", "--field-manager=testbed", "-f", "-")
        self.run("apply", *arguments, stdin=yaml.safe_dump_all(objects, sort_keys=False))

    def rolled_out(self, namespace: str, *workloads: str) -> None:
        """Wait until workloads (``deployment/NAME``) are rolled out. ClusterError if that fails."""
        for workload in workloads:
            self.run("-n", namespace, "rollout", "status", workload, f"--timeout={patient(120)}s")

    def service_address(self, namespace: str, name: str) -> str:
        """Return the cluster IP of a Service. This machine reaches it if the cluster has a real node."""
        return self.run("-n", namespace, "get", "service", name, "-o", "jsonpath={.spec.clusterIP}")

    def kubeconfig_of(self, token: str, file: Path) -> Path:
        """Write a kubeconfig with this cluster's context and a bearer token to a file, and return the file."""
        config = self._settings()
        config["users"] = [{"name": self.context, "user": {"token": token}}]
        file.write_text(yaml.safe_dump(config))
        return file

    def processes(self) -> dict[str, int]:
        """Return the process ID of each running component of this cluster by the component's name."""
        return {name: number for name, number in node.processes(self._workdir).items() if name in COMPONENTS}

    def ready(self) -> bool:
        """Return True if all components, and the real node if there is one, run and the API server is ready."""
        return self._complete() and self._answers()

    def _complete(self) -> bool:
        return set(self.processes()) == set(COMPONENTS) and (not self.real or node.process(self.home) is not None)

    def _becomes_ready(self) -> bool:
        """Return True if the cluster gets ready while it runs. On a busy machine an API server may answer late."""
        with contextlib.suppress(ClusterError):
            until(f"cluster {self.name} to be ready", lambda: not self._complete() or self.ready(), 30)
        return self.ready()

    def _answers(self) -> bool:
        """Return True if the API server says that it is ready."""
        with contextlib.suppress(ClusterError):
            return self.run("get", "--raw", "/readyz", f"--request-timeout={patient(3)}s") == "ok"
        return False

    def pause(self) -> None:
        """Pause the API server until ``resume``: it accepts connections, but does not answer."""
        self._signal("kube-apiserver", signal.SIGSTOP)
        stopped = Path(f"/proc/{self.processes()['kube-apiserver']}/stat")
        until("the API server to be paused", lambda: stopped.read_text().rpartition(") ")[2][0] == "T", 10)

    def resume(self) -> None:
        """Let a paused API server continue."""
        self._signal("kube-apiserver", signal.SIGCONT)

    def stop_api(self) -> None:
        """Kill the API server, so that connections are refused until ``start_api``."""
        self._kill("kube-apiserver")
        # A process that ends may still hold its port when its program is no longer visible.
        until(f"port {self.port} to be free", lambda: is_free(self.port), 10)

    def start_api(self) -> None:
        """Start the components that do not run, and wait until the cluster is ready."""
        self._await(f"cluster {self.name} to be ready", lambda: self._all_run() and self.ready())

    def _signal(self, component: str, number: signal.Signals) -> None:
        try:
            os.kill(self.processes()[component], number)
        except KeyError:
            raise ClusterError(f"{component} of cluster {self.name} does not run") from None

    def _kill(self, component: str) -> None:
        self._signal(component, signal.SIGKILL)
        until(f"{component} to be gone", lambda: component not in self.processes(), 10)

    def _kwokctl(self, *arguments: str) -> None:
        """Run kwokctl on this cluster, with only our configuration, and with our kubectl first on PATH."""
        tools = build.programs("cluster")
        environment = {name: value for name, value in node.environment().items() if not name.startswith("KWOK_")}
        environment |= {
            "KWOK_WORKDIR": str(self.home / "kwok"),
            "KUBECONFIG": str(self.kubeconfig),
            "PATH": f"{tools['kubectl'].parent}{os.pathsep}{os.environ['PATH']}",
        }
        command = [str(tools["kwokctl"]), "--name", self.name, *arguments]
        # The output goes to a file, because a pipe would stay open as long as the components run.
        with (self.home / "kwokctl.log").open("a") as log:
            done = subprocess.run(command, env=environment, stdout=log, stderr=log, check=False)
        if done.returncode:
            raise ClusterError(f"kwokctl {' '.join(arguments[:2])} failed{self._log_tails()}")

    def _await(self, what: str, check: Callable[[], bool]) -> None:
        until(what, check, _READY_SECONDS, self._log_tails)

    def _log_tails(self) -> str:
        """Return the last lines of every log that has any, for an error message."""
        logs = [self.home / "kwokctl.log", *sorted((self._workdir / "logs").glob("*.log"))]
        return tails(logs) + (node.logs(self.home) if self.real else "")

    def never_ready(self, namespace: str, *, on: bool = True) -> None:
        """Keep new pods of a namespace Pending, so that Deployments and Jobs do not progress. Stop that if not ``on``.

        Pods that are already ready stay ready. With ``on=False`` this waits until the pending pods are.
        """
        stage = json.loads(self.run("get", "stage", "pod-ready", "-o", "json"))
        expressions = stage["spec"]["selector"]["matchExpressions"]
        rule = next(rule for rule in expressions if rule["key"] == ".metadata.namespace")
        rule["values"] = sorted(set(rule["values"]) - {namespace} | ({namespace} if on else set()))
        patch = [{"op": "replace", "path": "/spec/selector/matchExpressions", "value": expressions}]
        self.run("patch", "stage", "pod-ready", "--type=json", "-p", json.dumps(patch))
        time.sleep(0.5)  # kwok notices the change with its watch

        def none_is_pending() -> bool:
            """Change all pods, because kwok looks at a pod only when it changes."""
            self.run("-n", namespace, "annotate", "pods", "--all", "--overwrite", f"testbed/looked-at={time.time()}")
            return "Pending" not in self.run("-n", namespace, "get", "pods", "-o", "jsonpath={.items[*].status.phase}")

        if not on:
            until(f"the pods of {namespace} to run", none_is_pending, 60)

    def offer_volumes(self, storage_class: str, size: str, count: int) -> None:
        """Offer ``count`` PersistentVolumes of a class, which need not exist, each with a ``size`` like ``200Gi``.

        They replace those of an earlier call, none of which may be in use.
        """
        self.run("delete", "pv", "-l", f"testbed/offered={storage_class}")
        self.apply(*_volumes(storage_class, size, count))

    def load(self, *wanted: images.Image) -> None:
        """Offer images to the real node, which pulls them by their full names. ``images.saved()`` override ours."""
        content = _content(wanted)
        with self._locked():  # after a `down` the node's address may belong to another cluster
            node.push(self.home, content)

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        """Hold the cluster. Meanwhile ``up``, ``down`` and ``load`` of other processes wait."""
        return cache.locked(self.home.parent / ".locks" / self.name)

    def _configuration(self, network: node.Network | None) -> dict[str, Any]:
        """Return the configuration for kwokctl, with ports that are free at this moment."""
        tools = build.programs("cluster")
        pki = self._workdir / "pki"
        extra_arguments = {
            name: {key: value.format(pki=pki) for key, value in extra.items()}
            for name, extra in _EXTRA_ARGUMENTS.items()
        }
        if network:
            extra_arguments["kube-apiserver"] |= node.api_server_arguments(network, pki)
        return {
            "apiVersion": "config.kwok.x-k8s.io/v1alpha1",
            "kind": "KwokctlConfiguration",
            "options": {
                "runtime": "binary",
                "bindAddress": "127.0.0.1",  # etcd does not authenticate its clients
                "enableCRDs": ["Stage"],
                "disableQPSLimits": True,
                **{f"{name}Port": port for name, port in zip(_LISTENERS, free_ports(len(_LISTENERS)), strict=True)},
                **{f"{name}Binary": str(tools[each]) for name, each in zip(_PROGRAMS, COMPONENTS, strict=True)},
                **({"kubeApiserverCertSANs": node.certificate_names(network)} if network else {}),
            },
            "componentsPatches": [
                {"name": name, "extraArgs": [{"key": key, "value": value} for key, value in extra.items()]}
                for name, extra in extra_arguments.items()
            ],
        }

    def _create(self, nodes: int, real: bool) -> None:
        pki = self._workdir / "pki"
        (self.home / "kwok").mkdir(parents=True)
        network = node.claim(self.home) if real else None
        steps = 3 if real else 2
        cache.say(f"[1/{steps}] starting {', '.join(COMPONENTS)} (about 10 s)")
        # The lock is held until the components listen. Otherwise two clusters that start could pick the same free port.
        with cache.locked(cache.root() / ".ports"):
            (self.home / "kwok" / "kwok.yaml").write_text(yaml.safe_dump(self._configuration(network)))
            self._kwokctl("create", "cluster", "--kubeconfig=", f"--timeout={patient(_READY_SECONDS)}s")
        self._write_kubeconfig()
        stages = list(yaml.safe_load_all(_STAGES.read_text()))
        fakes = [*stages, *(_node(index, tainted=real) for index in range(nodes))]
        if not real:
            fakes += _volumes("local-path", "200Gi", NODES)
        self._await("all components to run", lambda: self._all_run() and self._answers())
        cache.say(f"[2/{steps}] adding fake nodes: {nodes} (some seconds)")
        # This fails for a moment while the kind Stage is new.
        self._await("its nodes to be accepted", lambda: self.apply(*fakes) is None)
        if nodes:
            self._await("its nodes to be ready", lambda: self._are("Ready", "nodes", "--all"))
        self._await("a ServiceAccount", lambda: bool(self.run("get", "serviceaccount", "default", "-n", "default")))
        if network:
            cache.say("[3/3] adding a real node (about half a minute)")
            self._add_node(network, (pki / "ca.crt").read_bytes())

    def _all_run(self) -> bool:
        """Start the components that do not run. Return True if all of them ran already.

        A component that gives up on a slow API server may end again, so callers repeat this.
        """
        missing = set(COMPONENTS) - set(self.processes())
        for name in missing:  # until a dead process is reaped, kwokctl would consider it a running one
            (self._workdir / "pids" / f"{name}.pid").unlink(missing_ok=True)
        if missing:
            self._kwokctl("start", "cluster")
        return not missing

    def _add_node(self, network: node.Network, authority: bytes) -> None:
        """Start the real node, its name server and its volume provisioner, and wait until they are ready."""
        settings = self._settings()
        settings["clusters"][0]["cluster"]["server"] = f"https://{network.machine}:{self.port}"
        node.start(self.home, network, settings, authority)
        node.push(self.home, _content(components.images_of(components.NODE)) | images.saved())
        self.apply(*node.addons(network))
        self._await(f"node {node.NAME} to be ready", lambda: self._are("Ready", f"node/{node.NAME}"))
        for namespace in ("kube-system", "local-path-storage"):
            available = "Available", "deployments", "--all", "-n", namespace
            self._await(f"{namespace} to be available", lambda available=available: self._are(*available))  # type: ignore[misc]

    def _are(self, condition: str, *things: str) -> bool:
        """Return True if things meet a condition now or soon. ClusterError if not."""
        self.run("wait", f"--for=condition={condition}", "--timeout=2s", *things)
        return True

    def _write_kubeconfig(self) -> None:
        """Write our kubeconfig with embedded certificates, from the one that kwokctl keeps for itself."""
        theirs = self._workdir / "kubeconfig.yaml"
        text = build.run(self.kubectl, "--kubeconfig", theirs, "config", "view", "--flatten", "--raw")
        draft = self.kubeconfig.with_suffix(".draft")  # readers must never see half of the file
        draft.touch(mode=0o600)
        draft.write_text(text.replace(f"kwok-{self.name}", self.context))
        draft.rename(self.kubeconfig)

    def _destroy(self) -> None:
        """Kill this cluster's processes, wait until they are gone, and remove its state. There may be none."""
        until("all processes to be gone", self._killed, 15)
        node.stop(self.home)
        until(f"{self.home} to be gone", self._removed, 15)

    def _killed(self) -> bool:
        """Kill running processes. Return True if there were none; a component that is starting may appear late."""
        running = self.processes()
        for process in running.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)  # all state is removed, so a clean shutdown is not needed
        return not running

    def _removed(self) -> bool:
        """Remove the state. ClusterError while files are left, because an ending process may still write some."""
        try:
            shutil.rmtree(self.home)
        except OSError as error:
            if self.home.exists():
                raise ClusterError(str(error)) from None
        return True


def _content(wanted: Iterable[images.Image]) -> dict[str, Path]:
    """Return the argument of ``node.push``: by full name the saved image, or the one that we make."""
    saved = {images.mirrored(name): path for name, path in images.saved().items()}
    return {image.reference: saved.get(images.mirrored(image.reference)) or images.layout(image) for image in wanted}


def _node(index: int, *, tainted: bool) -> dict[str, Any]:
    """Return the fake node number ``index`` (from 0). The Stage that makes it ready sets its size."""
    name = f"node-{index + 1}"
    labels = {
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/os": "linux",
        "kubernetes.io/hostname": name,
        "topology.kubernetes.io/zone": ZONES[index % len(ZONES)],
        "topology.kubernetes.io/region": "region-a",
        node.LABEL: "fake",
    }
    # In a cluster with a real node, only pods that tolerate this are faked.
    taints = [{"key": node.LABEL, "value": "fake", "effect": "NoSchedule"}] if tainted else []
    metadata = {"name": name, "labels": labels}
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"taints": taints}}


def _volumes(storage_class: str, size: str, count: int) -> list[dict[str, Any]]:
    """Return static volumes that any node can use, so that claims bind without a provisioner."""
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"{storage_class}-{number}", "labels": {"testbed/offered": storage_class}},
            "spec": {
                "storageClassName": storage_class,
                "capacity": {"storage": size},
                "accessModes": ["ReadWriteOnce"],
                "hostPath": {"path": f"/fake/{storage_class}-{number}"},
            },
        }
        for number in range(1, count + 1)
    ]


def cluster(name: str) -> Cluster:
    """Return the cluster of a name, running or not. ValueError unless it is a DNS label of at most 30 characters."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,28}[a-z0-9])?", name):
        raise ValueError(f"{name!r} is not a valid cluster name: use at most 30 lower-case letters, digits and dashes")
    return Cluster(name, state_root() / name)


def clusters() -> list[Cluster]:
    """Return all clusters that have state, sorted by name."""
    return [Cluster(path.parent.name, path.parent) for path in sorted(state_root().glob("[!.]*/kwok"))]


def up(name: str, nodes: int = NODES, *, real: bool = False) -> Cluster:
    """Start a cluster, or reuse it if it runs, and return it when it is ready.

    The remains of a crash or a reboot are removed first. ``nodes`` is the number of fake nodes; a cluster that runs
    keeps its own. ``real`` adds a real node, which needs root. ClusterError or ``build.BuildError`` if that fails, and
    then no process is left.
    """
    wanted = cluster(name)
    if real and (missing := node.missing()):
        raise ClusterError(f"a real node needs {', '.join(missing)}; fake nodes do not")
    with wanted._locked():
        if wanted._becomes_ready():
            if wanted.real != real:
                raise ClusterError(
                    f"cluster {name} runs {'with' if wanted.real else 'without'} a real node; run `down` first"
                )
            return wanted
        build.programs("cluster")
        if real:
            build.programs("node")
            components.images_of(components.NODE)
        wanted._destroy()
        try:
            wanted._create(nodes, real)
        except BaseException:
            try:
                wanted._destroy()
            except ClusterError as left:
                cache.say(f"testbed: {left}")  # the first failure is raised below
            raise
    return wanted


@contextlib.contextmanager
def fresh(name: str, nodes: int = NODES, *, real: bool = False) -> Iterator[Cluster]:
    """Yield a new cluster as ``up`` starts it, and remove it afterwards. It replaces a cluster of the same name."""
    down(name)
    try:
        yield up(name, nodes, real=real)
    finally:
        down(name)


def down(name: str) -> None:
    """Stop a cluster's processes and remove its state. The cluster need not exist."""
    unwanted = cluster(name)
    with unwanted._locked():
        unwanted._destroy()
