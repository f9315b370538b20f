"""Actions on each pool: that they run and are hits afterwards, and what they reach of the network."""

import re
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from ..context import Pool
from ..ports import PORTS
from ..reapi import CallError, digest, message
from ..release import condition_of, not_ready, pod_trouble
from . import Farm, Fault, Skipped, may_write

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_UUID = r"-?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
_NO_BASH = 99
# Prints the addresses at which a connection is accepted.
_PROBE = f"""
command -v bash > /dev/null && command -v timeout > /dev/null || exit {_NO_BASH}
for at in "$@"; do
  timeout 3 bash -c ': < "/dev/tcp/${{0%:*}}/${{0##*:}}"' "$at" 2> /dev/null && echo "$at" &
done
wait
"""
_METADATA = "169.254.169.254:80"


def pool(farm: Farm, one: Pool) -> str:
    """An action runs on the pool, which may have to start a worker, and the same action is a hit afterwards."""
    may_write(farm)
    command = ["/bin/sh", "-c", f"echo {uuid.uuid4()}"]
    began = time.monotonic()
    result, cached = _run(farm, one, command)
    seconds = time.monotonic() - began
    if cached or result.exit_code or result.stdout_raw.decode().split() != command[2].split()[1:]:
        problem = f"an action of pool {one.name} ended with exit code {result.exit_code} and other output than its own"
        raise Fault(problem, "look at the log of its worker")
    # v1.6.6 puts a number of its own behind the name of the pod.
    worker, prefix = re.sub(_UUID, "", result.execution_metadata.worker), f"nativelink-worker-{one.name}-"
    if worker.startswith("nativelink-worker-") and not worker.startswith(prefix):
        raise Fault(f"an action for pool {one.name} ran on {worker}", "let each pool have properties of its own")
    if not _run(farm, one, command)[1]:
        raise Fault(f"an action of pool {one.name} runs again instead of a hit", "look at the logs of the CAS pods")
    return f"ran within {seconds:.1f} s on {worker or 'a worker'}; a hit afterwards"


def network(farm: Farm, one: Pool) -> str:
    """An action reaches neither the node's metadata nor the API server, nor ports that are not for it."""
    may_write(farm)
    return reached(farm, one, *addresses(farm))


def addresses(farm: Farm) -> tuple[dict[str, str], dict[str, str]]:
    """What actions must not reach, and what they may, so that it shows that the probe works: names by address."""
    values, api = farm.values, farm.api
    ours = values["nativelink_namespace"]
    closed, may = {_METADATA: "the node's metadata"}, {}

    def service(name: str, namespace: str, port: int, text: str) -> None:
        closed.update({f"{ip}:{port}": text for ip in _addresses_of(farm, name, namespace)})

    if not values["nativelink_worker_egress"]:
        service("kubernetes", "default", 443, "the API server")
        slices = (api and api.read("discovery.k8s.io/v1", "EndpointSlice", "kubernetes", "default")) or {}
        for each in slices.get("endpoints", ()):
            closed |= {f"{ip}:{port['port']}": "the API server" for ip in each["addresses"] for port in slices["ports"]}
    service("nativelink-cas", ours, PORTS["cas"], "the clients' port of the CAS")
    service("nativelink-scheduler", ours, PORTS["scheduler"], "the clients' port of the scheduler")
    if api:
        pods = api.items(api.path("v1", "Pod", namespace=ours), labelSelector="app.kubernetes.io/component=cas")
        cas = [each["status"]["podIP"] for each in pods if each["status"].get("podIP")]
    else:
        cas = _addresses_of(farm, "nativelink-cas-headless", ours)
    may |= {f"{ip}:{PORTS['slice']}": "a shard of the CAS" for ip in cas}
    if values["nativelink_worker_access"] == "node":
        closed |= {f"{ip}:{PORTS['writers']}": "the port for action results" for ip in cas}
        service("nativelink-scheduler-workers", ours, PORTS["worker_api"], "the worker API")
    return closed, may


def _addresses_of(farm: Farm, service: str, namespace: str) -> list[str]:
    """The address of a Service, if it exists. Inside the cluster DNS tells it, and all those of a headless one."""
    if not farm.api:
        found = socket.getaddrinfo(f"{service}.{namespace}.svc", None, proto=socket.IPPROTO_TCP)
        return sorted({str(each[4][0]) for each in found})
    address = (farm.api.read("v1", "Service", service, namespace) or {}).get("spec", {}).get("clusterIP")
    return [address] if address and address != "None" else []


def reached(farm: Farm, one: Pool, closed: Mapping[str, str], may: Mapping[str, str]) -> str:
    """Ask an action of a pool which addresses it reaches, of those that it must not and those that it may."""
    asked = [*closed, *may]
    # A number of its own, because a result that is in the cache says nothing about now.
    result, _unused = _run(farm, one, ["/bin/sh", "-c", _PROBE, str(uuid.uuid4()), *asked])
    if result.exit_code == _NO_BASH:
        raise Skipped(f"the image of pool {one.name} has no bash or no timeout")
    opened = [each for each in result.stdout_raw.decode().split() if each in asked]
    if wrong := [f"{closed[each]} ({each})" for each in opened if each in closed]:
        fix = "use a network plugin that enforces NetworkPolicies, and see that the tree's are there (docs/security.md)"
        raise Fault(f"an action of pool {one.name} reaches {', '.join(wrong)}", fix)
    if may and not any(each in may for each in opened):
        raise Fault(f"an action of pool {one.name} reaches nothing, not even the CAS", "look at the network plugin")
    return f"an action reaches none of {len(closed)} closed addresses"


def _run(farm: Farm, one: Pool, arguments: Sequence[str]) -> tuple[Any, bool]:
    """Run a command on a pool: the ActionResult with its standard output, and whether it was a hit."""
    platform = {"properties": [{"name": name, "value": text} for name, text in sorted(one.exec_properties.items())]}
    environment = [{"name": "PATH", "value": _PATH}]
    made = message("Command")(arguments=arguments, platform=platform, environment_variables=environment)
    command, root = made.SerializeToString(), b""
    made = message("Action")(command_digest=digest(command), input_root_digest=digest(root), platform=platform)
    action = made.SerializeToString()
    farm.cas.upload(command, root, action)
    answer = _executed(farm, one, digest(action))
    if answer.status.code:
        raise Fault(f"pool {one.name}: {answer.status.message}", "look at the logs of the scheduler and the worker")
    result = answer.result
    if not result.stdout_raw and result.stdout_digest.size_bytes:
        name = f"{farm.cas.instance}/blobs/{result.stdout_digest.hash}/{result.stdout_digest.size_bytes}"
        result.stdout_raw = b"".join(each.data for each in farm.cas.call("ByteStream.Read", resource_name=name))
    return result, answer.cached_result


def _executed(farm: Farm, one: Pool, action: Mapping[str, Any]) -> Any:
    """The ExecuteResponse of an action, which may wait for a worker as long as `verify_timeout` says."""
    deadline = time.monotonic() + farm.timeout
    asked: dict[str, Any] = {"instance_name": farm.scheduler.instance, "action_digest": action}
    method = "Execution.Execute"
    while (left := deadline - time.monotonic()) > 0:
        try:
            for operation in farm.scheduler.call(method, timeout=left, **asked):
                if operation.done:
                    return message("ExecuteResponse").FromString(operation.response.value)
                method, asked = "Execution.WaitExecution", {"name": operation.name}
        except CallError as error:
            # A connection may end before the action does, where a proxy or a scheduler is replaced.
            if error.code != "DEADLINE_EXCEEDED" and (error.code != "UNAVAILABLE" or method == "Execution.Execute"):
                raise
            time.sleep(1)
    problem = f"no worker of pool {one.name} ran an action within {farm.timeout} s: {_trouble(farm, one)}"
    raise Fault(problem, f"kubectl describe its pods and its ScaledObject nativelink-worker-{one.name}")


def _trouble(farm: Farm, one: Pool) -> str:
    """Why a pool has no worker, as far as the cluster says."""
    if not farm.api:
        return "it has none, or they are busy or not ready"
    name, namespace = f"nativelink-worker-{one.name}", farm.values["nativelink_workers_namespace"]
    deployment = farm.api.read("apps/v1", "Deployment", name, namespace)
    if not deployment:
        return f"there is no Deployment {name}"
    scaled = farm.api.read("keda.sh/v1alpha1", "ScaledObject", name, namespace) or {}
    unready = condition_of(scaled, "Ready")
    if unready.get("status") == "False":
        return f"ScaledObject {name}: {unready.get('message')}"
    if not deployment["spec"].get("replicas"):
        return f"Deployment {name} has 0 replicas"
    trouble = pod_trouble(farm.api.pods_of(deployment)) or not_ready(deployment)
    return trouble or "its workers are ready, but get no action"
