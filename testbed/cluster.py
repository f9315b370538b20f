"""Clusters: etcd and a real control plane as plain processes of this user, with nodes that kwok fakes.

With root one node can be real: see ``testbed.node``.

Everything about cluster NAME is in ``<state>/NAME``; ``<state>`` is ``.testbed`` in the checkout, or ``TESTBED_STATE``.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from testbed import build, cache, images, node
from testbed.waiting import ClusterError, patient, tails, until

DEFAULT_NAME = "local"
NODES = 6
ZONES = ("zone-a", "zone-b", "zone-c")
COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok")

# kwokctl would take the first free ports below 32768: of two clusters that start at a time both would take the same,
# and that of an API server that was stopped for a while would be gone. So each cluster gets some at random.
_PORTS = (
    "etcdPort",
    "etcdPeerPort",
    "kubeApiserverPort",
    "kubeControllerManagerPort",
    "kubeSchedulerPort",
    "kwokControllerPort",
)
_PORT_RANGE = range(12000, 32000)  # below those that the kernel gives to outgoing connections

_STAGES = Path(__file__).parent / "stages.yaml"
_READY_SECONDS = 90.0

# What kwokctl leaves out, as arguments by component. "{pki}" is the folder of the cluster's certificates.
_EXTRA_ARGUMENTS = {
    "etcd": {"unsafe-no-fsync": "true"},  # a cluster that is thrown away need not wait for the disk
    "kube-apiserver": {
        "service-cluster-ip-range": "10.96.0.0/16",
        # Written into the Endpoints of the Service kubernetes, where loopback is not allowed. Nobody calls it.
        "advertise-address": "198.51.100.1",
        # Without these no APIService can be registered. kwokctl has one client certificate, used as the proxy's too.
        "requestheader-client-ca-file": "{pki}/ca.crt",
        "requestheader-allowed-names": "kwok-admin",
        "requestheader-username-headers": "X-Remote-User",
        "requestheader-group-headers": "X-Remote-Group",
        "requestheader-extra-headers-prefix": "X-Remote-Extra-",
        # No kube-proxy serves Service addresses here, so that the API server itself has to look up endpoints.
        "enable-aggregator-routing": "true",
    },
    # One of each is enough, and one without a lease survives an API server that is paused.
    "kube-controller-manager": {
        "leader-elect": "false",
        # A real node asks for its certificate.
        "cluster-signing-cert-file": "{pki}/ca.crt",
        "cluster-signing-key-file": "{pki}/ca.key",
    },
    "kube-scheduler": {"leader-elect": "false"},
    "kwok-controller": {"manage-all-nodes": "false", "manage-nodes-with-label-selector": f"{node.LABEL}=fake"},
}


def state_root() -> Path:
    """The folder of all clusters' state: ``TESTBED_STATE``, else ``.testbed`` in the checkout. It need not exist."""
    return Path(os.environ.get("TESTBED_STATE") or Path(__file__).parent.parent / ".testbed").resolve()


@dataclass(frozen=True)
class Cluster:
    """One cluster by name. Making the object touches nothing: ``up`` starts a cluster, ``down`` removes it."""

    name: str
    home: Path

    @property
    def kubeconfig(self) -> Path:
        """The kubeconfig file, complete in itself; it is there once the cluster is."""
        return self.home / "kubeconfig"

    @property
    def context(self) -> str:
        """The only context of the kubeconfig, which is also its current one."""
        return f"testbed-{self.name}"

    @property
    def kubectl(self) -> Path:
        """The kubectl of the cluster's own version."""
        return build.binaries()["kubectl"]

    @property
    def real(self) -> bool:
        """Whether it was started with a real node."""
        return (self.home / "node").exists()

    @property
    def endpoint(self) -> str:
        """The API server's address, ``https://127.0.0.1:PORT``; ClusterError if the cluster was never started."""
        return str(self._settings()["clusters"][0]["cluster"]["server"])

    @property
    def _workdir(self) -> Path:
        """Where kwokctl keeps the cluster, and the working directory of each of its processes."""
        return self.home / "kwok" / "clusters" / self.name

    def _settings(self) -> dict[str, Any]:
        try:
            return dict(yaml.safe_load(self.kubeconfig.read_text()))
        except FileNotFoundError:
            raise ClusterError(f"cluster {self.name} was not started: no {self.kubeconfig}") from None

    def command(self, *arguments: str) -> list[str]:
        """The command line of ``kubectl ARGUMENTS`` on this cluster."""
        ours = [str(self.kubectl), "--kubeconfig", str(self.kubeconfig), "--context", self.context]
        # kubectl caches what an endpoint serves by its address, and the next cluster may well get the same port.
        return [*ours, "--cache-dir", str(self.home / "kubectl-cache"), *arguments]

    def run(self, *arguments: str, stdin: str | None = None) -> str:
        """The stdout of ``kubectl ARGUMENTS`` on this cluster; ClusterError with its stderr if it fails."""
        done = subprocess.run(self.command(*arguments), input=stdin, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply objects server-side, as field manager ``testbed``."""
        arguments = ("--server-side", "--force-conflicts", "--field-manager=testbed", "-f", "-")
        self.run("apply", *arguments, stdin=yaml.safe_dump_all(objects, sort_keys=False))

    def rolled_out(self, namespace: str, *workloads: str) -> None:
        """Wait until all pods of workloads (``deployment/NAME``) are as told, and ready; ClusterError if that fails."""
        for workload in workloads:
            self.run("-n", namespace, "rollout", "status", workload, f"--timeout={patient(120)}s")

    def service_address(self, namespace: str, name: str) -> str:
        """Return the cluster IP of a Service. This machine reaches it if the cluster has a real node."""
        return self.run("-n", namespace, "get", "service", name, "-o", "jsonpath={.spec.clusterIP}")

    def kubeconfig_of(self, token: str, file: Path) -> Path:
        """Write a kubeconfig with this cluster's context for whoever has a bearer token, to a file; the file."""
        config = yaml.safe_load(self.kubeconfig.read_text())
        config["users"] = [{"name": self.context, "user": {"token": token}}]
        file.write_text(yaml.safe_dump(config))
        return file

    def processes(self) -> dict[str, int]:
        """The process ID of each running component of this cluster, by component name."""
        return {name: number for name, number in node.processes(self._workdir).items() if name in COMPONENTS}

    def ready(self) -> bool:
        """Whether all components and the real node, if it has one, run, and the API server says that it is ready."""
        return self._complete() and self._get("/readyz") == "ok"

    def _complete(self) -> bool:
        return set(self.processes()) == set(COMPONENTS) and (not self.real or node.process(self.home) is not None)

    def _becomes_ready(self) -> bool:
        """Whether it is ready, or gets so as long as it runs: on a busy machine an API server may answer late."""
        with contextlib.suppress(ClusterError):
            until(f"cluster {self.name} to be ready", lambda: not self._complete() or self.ready(), 30)
        return self.ready()

    def _get(self, path: str) -> str | None:
        """An API server's answer to an anonymous GET, or None. Much quicker than a kubectl process."""
        try:
            authority = base64.b64decode(self._settings()["clusters"][0]["cluster"]["certificate-authority-data"])
            trust = ssl.create_default_context(cadata=authority.decode())
            handlers = urllib.request.HTTPSHandler(context=trust), urllib.request.ProxyHandler({})
            with urllib.request.build_opener(*handlers).open(f"{self.endpoint}{path}", timeout=patient(3)) as answer:
                return str(answer.read().decode())
        except (ClusterError, OSError, http.client.HTTPException, KeyError, ValueError):
            return None

    def version(self) -> str | None:
        """The API server's version (``v1.36.4``), or None when it doesn't answer."""
        answer = self._get("/version")
        return str(json.loads(answer)["gitVersion"]) if answer else None

    def pause(self) -> None:
        """Stop the API server in its tracks: connections open and nothing answers, until ``resume``."""
        self._signal("kube-apiserver", signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused API server go on where it was."""
        self._signal("kube-apiserver", signal.SIGCONT)

    def stop_api(self) -> None:
        """Kill the API server: connections are refused, until ``start_api``."""
        self._signal("kube-apiserver", signal.SIGKILL)
        until("the API server to be gone", lambda: "kube-apiserver" not in self.processes(), 10)
        # A process that ends has no program any more before it gives its port back.
        port = int(self.endpoint.rpartition(":")[2])
        until(f"port {port} to be free", lambda: _is_free(port), 10)
        # As long as nobody has collected the dead process, kwokctl would take it for a running one.
        (self._workdir / "pids" / "kube-apiserver.pid").unlink(missing_ok=True)

    def start_api(self) -> None:
        """Start what does not run of the cluster, and wait until it is ready."""
        self._await(f"cluster {self.name} to be ready", lambda: self._all_run() and self.ready())

    def _signal(self, component: str, number: signal.Signals) -> None:
        try:
            os.kill(self.processes()[component], number)
        except KeyError:
            raise ClusterError(f"{component} of cluster {self.name} does not run") from None

    def _kwokctl(self, *arguments: str) -> None:
        """Run kwokctl on this cluster, blind to any configuration but ours and with our kubectl first on PATH."""
        tools = build.binaries()
        environment = {name: value for name, value in node.environment().items() if not name.startswith("KWOK_")}
        environment |= {
            "KWOK_WORKDIR": str(self.home / "kwok"),
            "KUBECONFIG": str(self.kubeconfig),
            "PATH": f"{tools['kubectl'].parent}{os.pathsep}{os.environ['PATH']}",
        }
        command = [str(tools["kwokctl"]), "--name", self.name, *arguments]
        # In a file, not a pipe: a pipe would stay open as long as the components run.
        with (self.home / "kwokctl.log").open("a") as log:
            done = subprocess.run(command, env=environment, stdout=log, stderr=log, check=False)
        if done.returncode:
            raise ClusterError(f"kwokctl {' '.join(arguments[:2])} failed{self._log_tails()}")

    def _await(self, what: str, check: Callable[[], bool]) -> None:
        until(what, check, _READY_SECONDS, self._log_tails)

    def _log_tails(self) -> str:
        """The last lines of every log that has any, for an error message."""
        logs = [self.home / "kwokctl.log", *sorted((self._workdir / "logs").glob("*.log"))]
        return tails(logs) + (node.logs(self.home) if self.real else "")

    def never_ready(self, namespace: str, *, on: bool = True) -> None:
        """Keep new pods of a namespace Pending, so that no Deployment gets available and no Job completes; or stop.

        Pods that are ready already stay so. When switched off, the pods that were kept get ready within seconds.
        """
        stage = json.loads(self.run("get", "stage", "pod-ready", "-o", "json"))
        expressions = stage["spec"]["selector"]["matchExpressions"]
        rule = next(rule for rule in expressions if rule["key"] == ".metadata.namespace")
        rule["values"] = sorted(set(rule["values"]) - {namespace} | ({namespace} if on else set()))
        patch = [{"op": "replace", "path": "/spec/selector/matchExpressions", "value": expressions}]
        self.run("patch", "stage", "pod-ready", "--type=json", "-p", json.dumps(patch))
        time.sleep(0.5)  # kwok sees the change by its watch
        if not on:
            until(f"the pods of {namespace} to get ready", lambda: self._nudge(namespace), 20)

    def _nudge(self, namespace: str) -> bool:
        """Touch the pending pods of a namespace, as kwok looks at a pod only when it changes; True if none is left."""
        scheduled = "--field-selector=status.phase=Pending,spec.nodeName!="
        pods = self.run("-n", namespace, "get", "pods", scheduled, "-o", "name").split()
        if pods:
            stamp = f"testbed/nudged={time.monotonic_ns()}"
            self.run("-n", namespace, "annotate", "--overwrite", *pods, stamp)
        return not pods

    def offer_volumes(self, storage_class: str = "local-path", size: str = "200Gi", count: int = NODES) -> None:
        """Offer ``count`` PersistentVolumes of a class (``<class>-1`` ...), each of a ``size`` like ``200Gi``.

        The class need not exist. Volumes whose claim is gone are offered anew; those in use stay as they are.
        """
        existing = json.loads(self.run("get", "pv", "-l", "testbed/offered=true", "-o", "json"))["items"]
        phases = {item["metadata"]["name"]: item.get("status", {}).get("phase") for item in existing}
        used_up = [name for name, phase in phases.items() if phase in {"Released", "Failed"}]
        if used_up:
            self.run("delete", "pv", "--wait=true", *used_up)
        volumes = _volumes(storage_class, size, count)
        wanted = [volume for volume in volumes if phases.get(volume["metadata"]["name"]) != "Bound"]
        if wanted:
            self.apply(*wanted)

    def load(self, *wanted: images.Image) -> None:
        """Offer images to the real node, which pulls them by their full names; ``images.saved()`` go before ours."""
        content = _content(wanted)
        with self._locked():  # after a `down` its node's address may be another's
            node.push(self.home, content)

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        """Hold the cluster: other processes' ``up``, ``down`` and ``load`` of it wait."""
        return cache.locked(self.home.parent / ".locks" / self.name)

    def _configuration(self, network: node.Network | None) -> dict[str, Any]:
        """What kwokctl is told, with ports that are free at this moment."""
        tools = build.binaries()
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
                "bindAddress": "127.0.0.1",  # etcd asks nobody who he is
                "enableCRDs": ["Stage"],
                "disableQPSLimits": True,
                **dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True)),
                "etcdBinary": str(tools["etcd"]),
                "kubeApiserverBinary": str(tools["kube-apiserver"]),
                "kubeControllerManagerBinary": str(tools["kube-controller-manager"]),
                "kubeSchedulerBinary": str(tools["kube-scheduler"]),
                "kwokControllerBinary": str(tools["kwok"]),
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
        # Until its components listen: a port that is free may be picked by two clusters that start at the same time.
        with cache.locked(cache.root() / ".ports"):
            (self.home / "kwok" / "kwok.yaml").write_text(yaml.safe_dump(self._configuration(network)))
            self._kwokctl("create", "cluster", "--kubeconfig=", f"--timeout={patient(_READY_SECONDS)}s")
        self._write_kubeconfig(pki)
        stages = list(yaml.safe_load_all(_STAGES.read_text()))
        fakes = [*stages, *(_node(index, tainted=real) for index in range(nodes))]
        if not real:
            fakes += _volumes("local-path", "200Gi", NODES)

        def furnished() -> bool:
            self.apply(*fakes)  # fails for a moment while the kind Stage is new
            return True

        self._await("all components to run", lambda: self._all_run() and self._get("/readyz") == "ok")
        cache.say(f"[2/{steps}] adding fake nodes: {nodes} (some seconds)")
        self._await("its nodes to be accepted", furnished)
        self._await(f"{nodes} nodes to be ready", lambda: self._nodes().count("True") >= nodes)
        self._await("the ServiceAccount default in namespace default", self._has_service_account)
        if network:
            cache.say("[3/3] adding a real node (about half a minute)")
            self._add_node(network, (pki / "ca.crt").read_bytes())

    def _all_run(self) -> bool:
        """Whether all components run; those that don't are started.

        Those that give up on an API server which takes long to start may end again: so this belongs into a wait.
        """
        missing = set(COMPONENTS) - set(self.processes())
        for name in missing:
            (self._workdir / "pids" / f"{name}.pid").unlink(missing_ok=True)
        if missing:
            self._kwokctl("start", "cluster")
        return not missing

    def _add_node(self, network: node.Network, authority: bytes) -> None:
        """Start the real node, and what makes names and volumes there; wait until all of it is ready."""
        settings = self._settings()
        port = self.endpoint.rpartition(":")[2]
        settings["clusters"][0]["cluster"]["server"] = f"https://{network.machine}:{port}"
        node.start(self.home, network, settings, authority)
        node.push(self.home, _content(images.catalogue()) | images.saved())
        self.apply(*node.addons(network))
        self._await(f"node {node.NAME} to be ready", lambda: self._is_ready(f"node/{node.NAME}", "Ready"))
        for namespace, name in (("kube-system", "coredns"), ("local-path-storage", "local-path-provisioner")):
            ready = f"deployment/{name}", "Available", "-n", namespace
            self._await(f"Deployment {name} to be available", lambda ready=ready: self._is_ready(*ready))  # type: ignore[misc]

    def _is_ready(self, thing: str, condition: str, *arguments: str) -> bool:
        path = f'jsonpath={{.status.conditions[?(@.type=="{condition}")].status}}'
        return self.run("get", thing, *arguments, "-o", path) == "True"

    def _nodes(self) -> list[str]:
        """The status of each node's Ready condition: ``["True", ...]``."""
        path = '{range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{"\\n"}{end}'
        return self.run("get", "nodes", "-o", f"jsonpath={path}").split()

    def _has_service_account(self) -> bool:
        return bool(self.run("get", "serviceaccount", "default", "-n", "default", "--ignore-not-found", "-o", "name"))

    def _write_kubeconfig(self, pki: Path) -> None:
        """A kubeconfig of our own with the certificates in it, made of the one that kwokctl keeps for itself."""
        kwokctl = yaml.safe_load((self._workdir / "kubeconfig.yaml").read_text())

        def data(name: str) -> str:
            return base64.b64encode((pki / name).read_bytes()).decode()

        name = self.context
        server = kwokctl["clusters"][0]["cluster"]["server"]
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority-data": data("ca.crt")}}],
            "users": [
                {
                    "name": name,
                    "user": {
                        "client-certificate-data": data("admin.crt"),
                        "client-key-data": data("admin.key"),
                    },
                }
            ],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
            "current-context": name,
        }
        draft = self.kubeconfig.with_suffix(".draft")  # nobody is to read half of it
        draft.touch(mode=0o600)
        draft.write_text(yaml.safe_dump(config, sort_keys=False))
        draft.rename(self.kubeconfig)

    def _destroy(self) -> None:
        """Kill this cluster's processes, wait until they are gone, and remove its state. Fine if there are none."""
        until("all processes to be gone", self._killed, 15)
        node.stop(self.home)
        until(f"{self.home} to be gone", self._removed, 15)

    def _killed(self) -> bool:
        """Kill what runs; whether nothing did. A component that is just being started may show up later than others."""
        running = self.processes()
        for process in running.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)  # nothing of it is kept, so nothing need be closed well
        return not running

    def _removed(self) -> bool:
        """Remove the state; ClusterError while something is left, as what is about to end may still write into it."""
        try:
            shutil.rmtree(self.home)
        except OSError as error:
            if self.home.exists():
                raise ClusterError(str(error)) from None
        return True


def _content(wanted: Iterable[images.Image]) -> dict[str, Path]:
    """What ``node.push`` takes of images by their full names: the saved one, or the one that we make."""
    saved = {images.mirrored(name): path for name, path in images.saved().items()}
    return {image.reference: saved.get(images.mirrored(image.reference)) or images.layout(image) for image in wanted}


def _free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody listens on, picked at random."""
    free: list[int] = []
    for port in random.sample(_PORT_RANGE, len(_PORT_RANGE)):
        if _is_free(port):
            free.append(port)
        if len(free) == count:
            return free
    raise ClusterError(f"no {count} free ports between {_PORT_RANGE.start} and {_PORT_RANGE.stop}")


def _is_free(port: int) -> bool:
    """Whether nobody listens on a port of the loopback address; connections that have ended do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return True
    return False


def _node(index: int, *, tainted: bool) -> dict[str, Any]:
    """The fake node number ``index`` (from 0). Its size is in the Stage that makes it ready."""
    name = f"node-{index + 1}"
    labels = {
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/os": "linux",
        "kubernetes.io/hostname": name,
        "topology.kubernetes.io/zone": ZONES[index % len(ZONES)],
        "topology.kubernetes.io/region": "region-a",
        node.LABEL: "fake",
    }
    # Beside a real node only pods that ask for it are faked.
    taints = [{"key": node.LABEL, "value": "fake", "effect": "NoSchedule"}] if tainted else []
    metadata = {"name": name, "labels": labels}
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"taints": taints}}


def _volumes(storage_class: str, size: str, count: int) -> list[dict[str, Any]]:
    """Static volumes that any node can use, so that a claim of a class without a provisioner here binds."""
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"{storage_class}-{number}", "labels": {"testbed/offered": "true"}},
            "spec": {
                "storageClassName": storage_class,
                "capacity": {"storage": size},
                "accessModes": ["ReadWriteOnce"],
                "volumeMode": "Filesystem",
                # Delete would need a provisioner to delete it.
                "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": {"path": f"/fake/{storage_class}-{number}"},
            },
        }
        for number in range(1, count + 1)
    ]


def cluster(name: str = DEFAULT_NAME) -> Cluster:
    """The cluster of a name (a DNS label of at most 30 characters, else ValueError), whether it runs or not."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,28}[a-z0-9])?", name):
        raise ValueError(f"{name!r} is no cluster name: use lower-case letters, digits and dashes, at most 30")
    return Cluster(name, state_root() / name)


def clusters() -> list[Cluster]:
    """All clusters that have state, by name."""
    return [Cluster(path.parent.name, path.parent) for path in sorted(state_root().glob("[!.]*/kwok"))]


def up(name: str = DEFAULT_NAME, nodes: int = NODES, *, real: bool = False) -> Cluster:
    """Start a cluster, or reuse the one that runs, and return it ready to use.

    What a crash or a reboot left behind is removed first. ``nodes`` counts the fake ones, and only when it is started;
    with ``real`` there is a real node besides, which takes root. ClusterError or ``build.BuildError`` if it can't be
    had; then nothing of it is left running.
    """
    wanted = cluster(name)
    if real and (missing := node.missing()):
        raise ClusterError(f"a real node needs {', '.join(missing)}; fake ones do not")
    with wanted._locked():
        if wanted._becomes_ready():
            if wanted.real != real:
                raise ClusterError(
                    f"cluster {name} runs {'with' if wanted.real else 'without'} a real node: `down` first"
                )
            return wanted
        build.binaries()
        if real:
            images.catalogue()
        wanted._destroy()
        try:
            wanted._create(nodes, real)
        except BaseException:
            try:
                wanted._destroy()
            except ClusterError as left:
                cache.say(f"testbed: {left}")  # and raise what failed first
            raise
    return wanted


@contextlib.contextmanager
def fresh(name: str, nodes: int = NODES, *, real: bool = False) -> Iterator[Cluster]:
    """A new cluster, as ``up`` starts it, in the place of whatever has its name; it is gone afterwards."""
    down(name)
    try:
        yield up(name, nodes, real=real)
    finally:
        down(name)


def down(name: str = DEFAULT_NAME) -> None:
    """Stop a cluster's processes and remove its state. Fine if it doesn't exist."""
    unwanted = cluster(name)
    with unwanted._locked():
        unwanted._destroy()
