"""With mutual TLS the two ports that only workers may use ask for certificates, and workers show theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render
from ansible_collections.nativelink.gitops.plugins.plugin_utils.derived import wanted_secrets
from ansible_collections.nativelink.gitops.plugins.plugin_utils.versions import VERSIONS

from testkit.facts import at
from testkit.trees import Object, objects_of, values_of
from tests.render.test_tree import configurations

MUTUAL_TLS = {"nativelink_mutual_tls_secret": "mutual-tls-1", "nativelink_mutual_tls_expires": "2027-01-31"}
WRITERS = {"nativelink_writer_peers": [{"namespaceSelector": {}}]}
SERVER = {"cert_file": "/tls/tls.crt", "key_file": "/tls/tls.key", "client_ca_file": "/tls/ca.crt"}
CLIENT = {"cert_file": "/tls/tls.crt", "key_file": "/tls/tls.key", "ca_file": "/tls/ca.crt"}
SHARD = "nativelink-cas-{}.nativelink-cas-headless.nativelink.svc"


def tree(**variables: Any) -> dict[str, str]:
    pools = [{"name": "a"}, {"name": "b", "isolation": "none"}]
    return render.tree(values_of(**{"nativelink_worker_pools": pools, **variables}))


def servers(configuration: Any) -> dict[str, Any]:
    """Return the `tls` of the listeners by port."""
    listeners = [server["listener"]["http"] for server in configuration["servers"]]
    return {each["socket_address"].partition(":")[2]: each.get("tls") for each in listeners}


def clients(value: Any) -> dict[str, Any]:
    """Return the `tls_config` of all endpoints by address."""
    if isinstance(value, list):
        return {address: tls for each in value for address, tls in clients(each).items()}
    if not isinstance(value, dict):
        return {}
    own = {value[key]: value.get("tls_config") for key in ("address", "uri") if key in value}
    return own | clients(list(value.values()))


@pytest.mark.parametrize("version", VERSIONS)
def test_only_the_ports_of_workers_ask_for_certificates(version: str, accepts: Callable[[str, str], list[str]]) -> None:
    files = tree(nativelink_version=version, **MUTUAL_TLS, **WRITERS)
    found = configurations(files)
    assert {path: accepts(version, files[path]) for path in found} == {path: [] for path in found}
    assert servers(found["cas/cas.json5"]) == dict.fromkeys(["50051", "50052", "50054", "50080"]) | {"50053": SERVER}
    assert servers(found["scheduler/scheduler.json5"]) == {"50052": None, "50061": SERVER, "50080": None}
    plain = {f"grpc://{SHARD.format(number)}:50052": None for number in range(3)}
    writers = {f"grpcs://{SHARD.format(number)}:50053": CLIENT for number in range(3)}
    # CAS pods write to each other for the clients of port 50054.
    assert clients(found["cas/cas.json5"]) == plain | writers
    assert clients(found["scheduler/scheduler.json5"]) == plain
    api = {"grpcs://nativelink-scheduler-workers.nativelink.svc:50061": CLIENT}
    for pool in "ab":
        assert clients(found[f"worker/{pool}/worker.json5"]) == plain | writers | api


def mounted(workload: Object) -> tuple[str, int] | None:
    """Return the Secret at /tls and the mode of its files, if a pod has one."""
    for volume in at(workload, "pod.volumes") or ():
        if secret := volume.get("secret"):
            mount = at(workload, f"container.volumeMounts.{volume['name']}")
            assert (mount["mountPath"], mount["readOnly"]) == ("/tls", True)
            return secret["secretName"], secret["defaultMode"]
    return None


def test_only_those_who_need_the_keys_have_them() -> None:
    found = {
        item["metadata"]["name"]: mounted(item)
        for item in objects_of(tree(**MUTUAL_TLS, nativelink_scheduler_backend="redis"))
        if item["kind"] in ("StatefulSet", "Deployment")
    }
    assert {name: secret for name, secret in found.items() if secret} == {
        "nativelink-cas": ("mutual-tls-1", 0o440),
        "nativelink-scheduler": ("mutual-tls-1", 0o440),
        "nativelink-worker-a": ("mutual-tls-1", 0o400),  # NativeLink is root there, and actions are not
        "nativelink-worker-b": ("mutual-tls-1", 0o440),
    }
    assert {"nativelink-redis", "nativelink-collector", "nativelink-demand"} & set(found)


def test_without_a_secret_nothing_is_encrypted() -> None:
    files = tree(**WRITERS)
    assert not [path for path, text in files.items() if "tls" in text or "grpcs" in text]


def test_without_an_issuer_the_user_makes_the_secrets() -> None:
    def asked(**variables: Any) -> list[str]:
        found = wanted_secrets(values_of(**variables))
        return [f"{each['namespace']}/{each['name']}: {each['what']}" for each in found]

    assert asked(**MUTUAL_TLS) == [
        "nativelink/mutual-tls-1: the certificate of CAS and scheduler for mutual TLS",
        "nativelink-workers/mutual-tls-1: the certificate of the workers for mutual TLS",
    ]
    assert asked(**MUTUAL_TLS, nativelink_mutual_tls_issuer="our-ca") == []
