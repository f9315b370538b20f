"""One real node of a cluster: kubelet, kube-proxy and containerd, so that pods really run.

The node lives in its own namespaces, like a container. Its mounts, interfaces, routes and nftables rules are separate
from the machine's, and vanish when its first process is killed. Outside of the namespaces it has one network interface,
which connects the machine with the node, its pods and its Services, and one cgroup in each hierarchy. It cannot reach
other networks.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from testbed import build, cache, components, debian, images, manifests
from testbed.waiting import ClusterError, tails, until

NAME = "real-1"
# The label that tells real nodes from fake ones. In a cluster with a real node, fake nodes also have it as a taint.
LABEL = "testbed/node"
_PACKAGES = (
    "bash",
    "containerd",
    "containernetworking-plugins",
    "coreutils",
    "iproute2",
    "ipset",
    "iptables",
    "mount",
    "nftables",
    "runc",
)
_BINARIES = ("crane", "kubelet", "kube-proxy", "kube-router")
_SCRIPT = Path(__file__).with_name("node.sh")
_ADDONS = Path(__file__).with_name("addons.yaml")
_CGROUPS = Path("/sys/fs/cgroup")
_CONTROLLERS = _CGROUPS / "cgroup.controllers"  # on cgroup v2 only
_REGISTRY_PORT = 5000
_MOST = 16  # real nodes on one machine


def environment() -> dict[str, str]:
    """Return this process' environment without proxies, which do not know the addresses of clusters."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"{' '.join(map(str, command))}: {done.stderr.strip()[-1000:]}")
    return done.stdout


@dataclass(frozen=True)
class Network:
    """The addresses of a real node and its cluster. ``number`` (0 to 15) tells several on one machine apart."""

    number: int

    @property
    def link(self) -> str:
        """The name of the machine's interface to the node."""
        return f"testbed{self.number}"

    @property
    def machine(self) -> str:
        """The machine's address on that interface. The node and its pods reach the API server there."""
        return f"10.200.{self.number}.1"

    @property
    def node(self) -> str:
        """The node's address."""
        return f"10.200.{self.number}.2"

    @property
    def pods(self) -> str:
        """The network of the pods: ``10.244.0.0/20``."""
        return f"10.244.{self.number * 16}.0/20"

    @property
    def services(self) -> str:
        """The network of the Services: ``10.96.0.0/16``."""
        return f"10.{96 + self.number}.0.0/16"

    def service(self, last: int) -> str:
        """Return the address of a Service with a fixed number: 1 is the API server, 10 the name server."""
        return f"10.{96 + self.number}.0.{last}"


def _home(cluster_home: Path) -> Path:
    return cluster_home / "node"


def network(cluster_home: Path) -> Network | None:
    """Return the network that a cluster has claimed, according to the interface's alias, or None."""
    for link in json.loads(_run("ip", "-json", "link", "show")):
        if link.get("ifalias") == str(cluster_home) and str(link["ifname"]).startswith("testbed"):
            return Network(int(link["ifname"].removeprefix("testbed")))
    return None


def missing() -> list[str]:
    """Return what a real node needs and this machine lacks: ``root``, or programs."""
    programs = [program for program in ("ip", "unshare", "apt-get", "dpkg-deb") if not shutil.which(program)]
    return programs if os.geteuid() == 0 else ["root", *programs]


def claim(cluster_home: Path) -> Network:
    """Take a free network for a cluster, and make the machine's end of it. ClusterError if there is none."""
    _home(cluster_home).mkdir(parents=True, exist_ok=True)  # so that `stop` knows that there is something to stop
    for wanted in map(Network, range(_MOST)):
        try:  # The kernel lets one of two clusters succeed. The other end of the link moves into the node later.
            _run("ip", "link", "add", wanted.link, "type", "veth", "peer", "name", f"{wanted.link}-node")
        except ClusterError as error:
            if "File exists" not in str(error):
                raise
            continue
        _run("ip", "link", "set", wanted.link, "alias", str(cluster_home))
        _run("ip", "address", "add", f"{wanted.machine}/30", "dev", wanted.link)
        _run("ip", "link", "set", wanted.link, "up")
        return wanted
    raise ClusterError(f"this machine already runs {_MOST} real nodes, which is the maximum")


def api_server_arguments(wanted: Network, pki: Path) -> dict[str, str]:
    """Return the API server's arguments that let pods reach it, and let it reach kubelet."""
    return {
        "bind-address": "0.0.0.0",
        "advertise-address": wanted.machine,
        "service-cluster-ip-range": wanted.services,
        "kubelet-preferred-address-types": "InternalIP",
        "kubelet-client-certificate": str(pki / "admin.crt"),
        "kubelet-client-key": str(pki / "admin.key"),
    }


def certificate_names(wanted: Network) -> list[str]:
    """Return the addresses and names with which pods call the API server."""
    return [wanted.machine, wanted.service(1), "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]


def processes(folder: Path) -> dict[str, int]:
    """Return the process ID of each program whose working directory is a folder, by the program's name.

    Unlike a PID file, this is never outdated.
    """
    found: dict[str, int] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile, is a zombie, or belongs to another user
            where, program = (str((process / link).readlink()).removesuffix(" (deleted)") for link in ("cwd", "exe"))
            if where == str(folder):
                found[Path(program).name] = int(process.name)
    return found


def process(cluster_home: Path) -> int | None:
    """Return the ID of the node's first process, or None. The node ends with it."""
    return processes(_home(cluster_home)).get("unshare")


def run_inside(cluster_home: Path, *command: str) -> None:
    """Run a program of the node in its mount namespace. ClusterError if it fails."""
    _run("nsenter", f"--target={process(cluster_home)}", "--mount", *command)


def _cgroup(cluster_home: Path) -> str:
    """Return the name of the node's cgroup, which differs for clusters of one name in two state folders.

    kubelet kills processes that it does not know in its cgroup.
    """
    return f"testbed-{cluster_home.name}-{cache.digest(str(cluster_home))}"


def _cgroups(cluster_home: Path) -> list[Path]:
    """Return the node's cgroup in each hierarchy that kubelet uses: one on cgroup v2, one for each controller on v1."""
    name = _cgroup(cluster_home)
    if _CONTROLLERS.exists():
        return [_CGROUPS / name]
    folders = [path for path in sorted(_CGROUPS.iterdir()) if path.is_dir() and not path.is_symlink()]
    return [path / name for path in folders if not (path / _CONTROLLERS.name).exists()]


def _kubelet(cluster_home: Path, wanted: Network) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"x509": {"clientCAFile": "/etc/testbed/ca.crt"}},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{_cgroup(cluster_home)}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDNS": [wanted.service(10)],
        "clusterDomain": "cluster.local",
        # The node shares the machine's disk and memory with other programs.
        "evictionHard": {"nodefs.available": "1%", "imagefs.available": "1%", "memory.available": "100Mi"},
        "enforceNodeAllocatable": [],
        "imageGCHighThresholdPercent": 100,
        "serializeImagePulls": False,
        "registryPullQPS": 0,
        "maxPods": 250,
        # Pods soon see changes of ConfigMaps and Secrets, and the API server soon sees statuses.
        "syncFrequency": "10s",
        "nodeStatusUpdateFrequency": "5s",
        # kubelet soon reports the disk of volumes, and soon evicts a pod whose emptyDir is over its limit.
        "volumeStatsAggPeriod": "20s",
    }


def _kube_proxy(wanted: Network) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": wanted.pods,
        "hostnameOverride": NAME,
        "clientConnection": {"kubeconfig": "/etc/testbed/kubeconfig"},
        # These settings belong to the whole machine.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def _cni(wanted: Network) -> dict[str, Any]:
    addresses = {"type": "host-local", "ranges": [[{"subnet": wanted.pods}]], "routes": [{"dst": "0.0.0.0/0"}]}
    # Each pod has its own link, so that all its traffic is routed and rules apply to it. The machine has a route to the
    # pods, so masquerading is not needed.
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp", "ipam": addresses}]}


_CONTAINERD = """
version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "PAUSE_IMAGE"
restrict_oom_score_adj = true  # else no pod starts where the machine itself may not lower its score
[plugins."io.containerd.grpc.v1.cri".containerd]
discard_unpacked_layers = true  # the registry has them
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "/etc/testbed/cni"
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "/etc/testbed/registries"
"""

# The node's own registry replaces every other registry.
_MIRROR = f"""
server = "http://127.0.0.1:{_REGISTRY_PORT}"
[host."http://127.0.0.1:{_REGISTRY_PORT}"]
capabilities = ["pull", "resolve"]
"""


def _configure(cluster_home: Path, wanted: Network, kubeconfig: dict[str, Any], authority: bytes) -> None:
    settings = {
        "node_name": NAME,
        "node_address": f"{wanted.node}/30",
        "machine_address": wanted.machine,
        "services": wanted.services,
        "node_labels": f"{LABEL}=real,topology.kubernetes.io/zone=zone-a,topology.kubernetes.io/region=region-a",
    }
    files = {
        "testbed/network": "".join(f"{name}={value}\n" for name, value in settings.items()),
        "testbed/kubelet.yaml": yaml.safe_dump(_kubelet(cluster_home, wanted)),
        "testbed/kube-proxy.yaml": yaml.safe_dump(_kube_proxy(wanted)),
        "testbed/kubeconfig": yaml.safe_dump(kubeconfig),
        "testbed/ca.crt": authority.decode(),
        "testbed/containerd.toml": _CONTAINERD.replace("PAUSE_IMAGE", components.reference("pause")),
        "testbed/cni/pods.conflist": json.dumps(_cni(wanted)),
        "testbed/registries/_default/hosts.toml": _MIRROR,
        # Maintainer scripts would make these, but they do not run.
        "passwd": "root:x:0:0:root:/root:/bin/bash\n",
        "group": "root:x:0:\n",
        "hosts": f"127.0.0.1 localhost\n{wanted.node} {NAME}\n",
        "resolv.conf": "",
    }
    for name, content in files.items():
        path = _home(cluster_home) / "changes" / "etc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def start(cluster_home: Path, wanted: Network, kubeconfig: dict[str, Any], authority: bytes) -> None:
    """Start the node of a cluster whose API server answers. The node registers itself.

    ``kubeconfig`` is an administrator's with the address that the node sees. ``authority`` is the PEM certificate of
    the CA of kubelet's clients. ClusterError if a process of the node does not start.
    """
    home = _home(cluster_home)
    for folder in ("changes", "work", "root", "data"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    _configure(cluster_home, wanted, kubeconfig, authority)
    if _CONTROLLERS.exists():  # kubelet needs all of them; they stay because they are harmless
        switch = _CGROUPS / "cgroup.subtree_control"
        missing = set(_CONTROLLERS.read_text().split()) - set(switch.read_text().split())
        switch.write_text(" ".join(f"+{controller}" for controller in sorted(missing)))
    for cgroup in _cgroups(cluster_home):
        cgroup.mkdir(exist_ok=True)
    command: list[str | Path] = ["unshare", "--pid", "--mount", "--net", "--uts", "--ipc", "--fork", "--kill-child"]
    command += ["bash", _SCRIPT, home, debian.root(*_PACKAGES), _cgroup(cluster_home)]
    command += [build.program(name) for name in _BINARIES]
    with (home / "node.log").open("w") as log:
        holder = subprocess.Popen(
            command,
            cwd=home,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # a Ctrl-C that ends the command must not end the node
        )

    def awaited(what: str, check: Callable[[], bool], seconds: float) -> None:
        until(what, lambda: holder.poll() is not None or check(), seconds, lambda: logs(cluster_home))
        if holder.poll() is not None:
            raise ClusterError(f"the node ended while the testbed waited for {what}{logs(cluster_home)}")

    def linked() -> bool:
        with contextlib.suppress(OSError):  # the node is just ending
            if not Path(f"/proc/{holder.pid}/ns/net").samefile("/proc/self/ns/net"):
                _run("ip", "link", "set", f"{wanted.link}-node", "netns", str(holder.pid), "name", "eth0")
                return True
        return False

    awaited("the node's network namespace", linked, 5)
    for destination in (wanted.pods, wanted.services):
        _run("ip", "route", "replace", destination, "via", wanted.node)
    catalog = build.program("crane"), "catalog", "--insecure", f"{wanted.node}:{_REGISTRY_PORT}"
    awaited("the node's registry", lambda: _run(*catalog) is not None, 20)


def push(cluster_home: Path, wanted: Mapping[str, Path]) -> None:
    """Put images into the node's registry, under their full names.

    ``wanted`` maps full names to a folder in OCI layout or to a tarball as ``docker save`` writes it.
    """
    where = network(cluster_home)
    if not where:
        raise ClusterError(f"cluster {cluster_home.name} has no real node, or the node has ended{logs(cluster_home)}")
    crane = build.program("crane")
    registry = _home(cluster_home) / "data" / "var" / "lib" / "containerd" / "registry"
    for reference, content in wanted.items():
        _lend(content, registry)
        target = f"{where.node}:{_REGISTRY_PORT}/{images.mirrored(reference)}"
        try:
            _run(crane, "push", "--insecure", content, target)
        except ClusterError as error:
            raise ClusterError(f"{error}{logs(cluster_home)}") from None


def _lend(content: Path, registry: Path) -> None:
    """Link the blobs of an OCI layout into a registry's folder, so that ``crane push`` need not copy them.

    A tarball has no blobs to link, and a link cannot lead to another file system. ``crane push`` then copies them.
    """
    (registry / "sha256").mkdir(parents=True, exist_ok=True)
    for blob in content.glob("blobs/sha256/*"):
        with contextlib.suppress(OSError):  # among others FileExistsError, if another image has it too
            (registry / "sha256" / blob.name).hardlink_to(blob)


def addons(wanted: Network) -> list[dict[str, Any]]:
    """Return the objects of the name server and of the provisioner of class local-path."""
    text = _ADDONS.read_text() + manifests.path("local-path").read_text()
    for name, value in {
        "DNS_ADDRESS": wanted.service(10),
        "COREDNS_IMAGE": components.reference("coredns"),
        "image: busybox": f"image: {components.reference('busybox')}",
    }.items():
        text = text.replace(name, value)
    return list(yaml.safe_load_all(text))


def logs(cluster_home: Path) -> str:
    """Return the ends of the node's logs, for an error message."""
    home = _home(cluster_home)
    return tails([home / "node.log", *sorted((home / "data" / "var" / "log").glob("*.log"))])


def stop(cluster_home: Path) -> None:
    """Kill the node, and remove what it has outside of its namespaces. There may be no node."""
    if not _home(cluster_home).exists():
        return
    holder = process(cluster_home)
    if holder:
        os.kill(holder, signal.SIGKILL)  # the kernel then ends every process of the node
        until("the node's processes to end", lambda: process(cluster_home) is None, 15)
    until("the node's interface to go", lambda: _unlinked(cluster_home), 15)
    for cgroup in _cgroups(cluster_home):
        if cgroup.exists():
            until(f"the processes in {cgroup} to end", lambda cgroup=cgroup: _removed(cgroup), 15)  # type: ignore[misc]
    if not _CONTROLLERS.exists():
        until("the node's cgroup of version 2 to be empty", lambda: _removed_version_2(cluster_home), 15)


def _removed_version_2(cluster_home: Path) -> bool:
    """Remove the cgroup of version 2 that the node made on a machine with cgroup v1.

    It uses its own mount, because the machine may have none. ClusterError while the cgroup still has a process.
    """
    script = 'mount -t cgroup2 cgroup2 "$0" && { [ ! -d "$0/$1" ] || find "$0/$1" -depth -type d -delete; }'
    _run("unshare", "--mount", "sh", "-c", script, _home(cluster_home), _cgroup(cluster_home))
    return True


def _unlinked(cluster_home: Path) -> bool:
    """Delete the machine's interface. ClusterError if the kernel deleted it at the same time, with the node's end."""
    if claimed := network(cluster_home):
        _run("ip", "link", "delete", claimed.link)
    return claimed is None


def _removed(cgroup: Path) -> bool:
    """Remove a cgroup and all below it. Return False while one of them still has a process."""
    for folder, _, _ in os.walk(cgroup, topdown=False):
        try:
            Path(folder).rmdir()
        except OSError:
            return False
    return True
