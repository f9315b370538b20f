"""With mutual TLS workers show certificates at the two ports that are only for them. facts.yml has the ports."""

from typing import Any

import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render
from ansible_collections.nativelink.gitops.plugins.plugin_utils.derived import wanted_secrets
from ansible_collections.nativelink.gitops.plugins.plugin_utils.versions import VERSIONS

from testkit.inventories import NO_ADD_ONS
from testkit.trees import values_of
from tests.render.test_tree import configurations

MUTUAL_TLS = {"nativelink_mutual_tls_secret": "mutual-tls-1", "nativelink_mutual_tls_expires": "2027-01-31"}
WRITERS = {"nativelink_writer_peers": [{"namespaceSelector": {}}]}
CLIENT = {"cert_file": "/tls/tls.crt", "key_file": "/tls/tls.key", "ca_file": "/tls/ca.crt"}
SHARD = "nativelink-cas-{}.nativelink-cas-headless.nativelink.svc"


def clients(value: Any) -> dict[str, Any]:
    """Return the `tls_config` of all endpoints by address."""
    if isinstance(value, list):
        return {address: tls for each in value for address, tls in clients(each).items()}
    if not isinstance(value, dict):
        return {}
    own = {value[key]: value.get("tls_config") for key in ("address", "uri") if key in value}
    return own | clients(list(value.values()))


@pytest.mark.parametrize("version", VERSIONS)
def test_only_clients_of_the_ports_of_workers_show_certificates(version: str) -> None:
    found = configurations(render.tree(values_of(nativelink_version=version, **MUTUAL_TLS, **WRITERS)))
    plain = {f"grpc://{SHARD.format(number)}:50052": None for number in range(3)}
    writers = {f"grpcs://{SHARD.format(number)}:50053": CLIENT for number in range(3)}
    # CAS pods write to each other for the clients of port 50054.
    assert clients(found["cas/cas.json5"]) == plain | writers
    assert clients(found["scheduler/scheduler.json5"]) == plain
    api = {"grpcs://nativelink-scheduler-workers.nativelink.svc:50061": CLIENT}
    assert clients(found["worker/default/worker.json5"]) == plain | writers | api


def test_without_a_secret_nothing_is_encrypted() -> None:
    files = render.tree(values_of(**WRITERS, **NO_ADD_ONS))
    found = [path for path, text in files.items() if "tls" in text or "grpcs" in text]
    assert found == ["clients/buck2/buck2.buckconfig"], "which says that there is no TLS"


def test_without_an_issuer_the_user_makes_the_secrets() -> None:
    made = {"nativelink_mutual_tls_issuer": "our-ca"}
    ours, theirs = (wanted_secrets(values_of(**MUTUAL_TLS, **NO_ADD_ONS, **variables)) for variables in (made, {}))
    assert ours == []
    assert [f"{each['namespace']}/{each['name']}: {each['what']}" for each in theirs] == [
        "nativelink/mutual-tls-1: the certificate of CAS and scheduler for mutual TLS",
        "nativelink-workers/mutual-tls-1: the certificate of the workers for mutual TLS",
    ]
