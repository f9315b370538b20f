"""Traffic through the edge on a real node: Envoy Gateway and a real Envoy, one host name, TLS.

Clients run on this machine, outside of the cluster's pods, and NetworkPolicies let them reach only Envoy. The tests run
in the order of the file.
"""

import json
import ssl
import time
from collections.abc import Iterator
from typing import Any

import pytest

from testbed.waiting import patient, until
from testkit.bazel import Bazel
from testkit.client import Client, Process, reported
from testkit.edge import CAS, PROXIES, Edge
from testkit.farm import drain, repeated, this_machine

# The component that answers a client's calls, by service.
SERVICES = {
    "build.bazel.remote.execution.v2.Execution": "scheduler",
    "build.bazel.remote.execution.v2.Capabilities": "scheduler",
    "build.bazel.remote.execution.v2.ContentAddressableStorage": "cas",
    "build.bazel.remote.execution.v2.ActionCache": "cas",
    "google.bytestream.ByteStream": "cas",
}
# The worker API of NativeLink and of its stand-in, and other paths of a scheduler.
HIDDEN = {
    "/com.github.trace_machina.nativelink.remote_execution.WorkerApi/ConnectWorker",
    "/standin.Workers/Work",
    "/admin/scheduler/main/set_drain_worker/worker/1",
    "/status",
}
RETRIES = "--retries=5"  # as many as Bazel makes, but a second apart
MANY = ("--actions=150", "--streams=150", "--hold=1")
UNIMPLEMENTED = "12"  # gRPC's code for a method that is not implemented


def ends(report: dict[str, Any]) -> list[tuple[str, int, int]]:
    """Return each action's outcome, how often it began, and how often its client retried."""
    return [(each["outcome"], each["executions"], each["retries"]) for each in report["actions"]]


@pytest.fixture(scope="module")
def long(edge: Edge) -> Iterator[Process]:
    """Start an action that is silent for longer than Envoy waits by default. It runs beside the first tests."""
    with edge.outside.start("--seconds=30-30", pool="default") as client:
        yield client


def test_bazel_builds_through_one_host_name(edge: Edge, long: Process, bazel: Bazel) -> None:
    assert bazel.build("first", 10) == {"remote": 10}
    assert bazel.build("first", 10) == {"remote cache hit": 10}


def test_blobs_go_up_and_come_down_and_actions_run(edge: Edge, long: Process) -> None:
    report = edge.outside.report("--actions=20", "--seconds=0.1-0.5", pool="default")
    assert ends(report) == [("ok", 1, 0)] * 20


def test_each_service_is_served_by_its_own_backend(edge: Edge) -> None:
    until("Envoy to log the calls of all services", lambda: edge.backends().keys() == SERVICES.keys(), 20)
    found = edge.backends()
    pods = edge.pods_of_cas()
    scheduler = edge.where.service_address(CAS, "nativelink-scheduler")
    backends = {"cas": {f"{pod}:50051" for pod in pods}, "scheduler": {f"{scheduler}:50052"}}
    # The ActionCache's results go to a port of their own. Clients of the tests before may have written some.
    results = {f"{pod}:50054" for pod in pods}
    for service, component in SERVICES.items():
        more = results if service.endswith(".ActionCache") else set()
        assert found[service] <= backends[component] | more, service
    assert len(pods) == 2
    assert found["build.bazel.remote.execution.v2.ContentAddressableStorage"] == backends["cas"], (
        "each CAS pod should get calls"
    )


def test_paths_that_clients_do_not_need_are_not_routed(edge: Edge) -> None:
    """Envoy answers these calls itself. The counter-run is the test of the services above."""
    for path in HIDDEN:
        answer = edge.ask(path)
        assert (answer.status, answer.headers["grpc-status"]) == (200, UNIMPLEMENTED), path

    def said() -> dict[str, tuple[str, str | None]]:
        log = {each["path"]: each for each in edge.log()}
        return {
            path: (log[path]["response_code_details"], log[path]["upstream_host"]) for path in HIDDEN if path in log
        }

    until("Envoy to log the calls", lambda: said().keys() == HIDDEN, 20)
    assert set(said().values()) == {("route_not_found", None)}


def test_each_cas_pod_serves_the_blobs_of_all_cas_pods(edge: Edge) -> None:
    allowed = this_machine(edge.where, CAS)  # past Envoy
    edge.where.apply(allowed)
    try:
        scheduler = f"grpc://{edge.where.service_address(CAS, 'nativelink-scheduler')}:50052"
        addresses = edge.pods_of_cas()
        for address in addresses:
            client = Client(scheduler, f"grpc://{address}:50051")
            report = client.report("--actions=25", "--seconds=0.1-0.5", pool="default")
            assert ends(report) == [("ok", 1, 0)] * 25, address
    finally:
        edge.where.run("-n", CAS, "delete", "networkpolicy", allowed["metadata"]["name"])
    assert len(addresses) == 2


def test_other_host_names_are_refused(edge: Edge) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        edge.connect(edge.trust("h2"), "another.example.com")


def test_a_long_action_is_not_cut_off(long: Process) -> None:
    assert ends(reported(long)) == [("ok", 1, 0)]


def test_counter_run_without_our_policy_a_long_action_is_cut_off(edge: Edge) -> None:
    updates = "envoy_http_rds_config_reload{.*}"
    before = edge.metric(updates)
    edge.where.run("-n", CAS, "delete", "backendtrafficpolicy", "nativelink")
    try:
        until("Envoy to get routes without the policy", lambda: edge.metric(updates) > before, 30)
        ((outcome, begun, _),) = ends(edge.outside.report("--seconds=20-20", "--retries=0", pool="default"))
    finally:
        edge.apply_folder()
    assert begun == 1
    assert outcome.startswith("failed: rpc error: code = Internal"), outcome


def test_a_terminating_proxy_finishes_its_calls(edge: Edge) -> None:
    """The counter-run is at the same time: with Envoy Gateway's default of a minute the call is cut off."""
    edge.proxies_renewed("600s")
    shutdown = {"op": "add", "path": "/spec/shutdown", "value": {"drainTimeout": "600s"}}
    patch = ("-n", PROXIES, "patch", "envoyproxy", "nativelink", "--type=json", "-p")
    with edge.carried(75) as ours:
        edge.proxies_renewed("600s")
        edge.where.run(*patch, json.dumps([{"op": "remove", "path": "/spec/shutdown"}]))
        try:
            edge.proxies_renewed("")
            with edge.carried(200) as theirs:
                ((outcome, begun, _),) = ends(reported(theirs))
            # The client reads the action's output through the other proxies, so they must not change before that.
            assert ends(reported(ours)) == [("ok", 1, 0)]
        finally:
            edge.where.run(*patch, json.dumps([shutdown]))
    assert begun == 1
    assert outcome.startswith("failed: rpc error: code = Unavailable"), outcome
    edge.proxies_renewed("600s")


def test_a_call_waits_for_a_scheduler_that_is_away(edge: Edge) -> None:
    with edge.without("deployment/nativelink-scheduler"):
        client = edge.outside.start("--hold=1", RETRIES, f"--timeout={patient(60)}", pool="unknown")
        assert client.stdout
        assert client.stdout.readline() == '{"uploaded": 1}\n'
        time.sleep(8)  # longer than the client's own retries take
    assert client.communicate()[0] == '{"queued": 1}\n'


def test_counter_run_without_the_policy_for_single_pods_the_call_fails(edge: Edge) -> None:
    edge.where.run("-n", CAS, "delete", "backendtrafficpolicy", "nativelink-execution")
    try:
        with edge.without("deployment/nativelink-scheduler"):
            ((outcome, begun, _),) = ends(edge.outside.report(RETRIES, pool="default"))
    finally:
        edge.apply_folder()
    assert begun == 0
    assert outcome.startswith("failed: rpc error: code = Unavailable"), outcome


def test_a_connection_carries_more_than_a_hundred_calls(edge: Edge) -> None:
    assert edge.streams() == 1024
    client = edge.outside.start(*MANY, f"--timeout={patient(60)}", pool="unknown")
    assert [json.loads(line) for line in client.communicate()[0].splitlines()] == [{"uploaded": 150}, {"queued": 150}]


def test_counter_run_without_our_limit_the_next_call_waits(edge: Edge) -> None:
    change = [{"op": "remove", "path": "/spec/http2/maxConcurrentStreams"}]
    edge.where.run("-n", CAS, "patch", "clienttrafficpolicy", "nativelink", "--type=json", "-p", json.dumps(change))
    try:
        until("the edge to go back to Envoy Gateway's limit", lambda: edge.streams() == 100, 30)
        client = edge.outside.start(*MANY, "--timeout=20", pool="unknown")
        assert "only 100 of 150 actions were queued" in client.communicate()[1]
    finally:
        edge.apply_folder()
    until("the edge to have our limit again", lambda: edge.streams() == 1024, 30)


@pytest.mark.soak
def test_a_drain_of_one_cas_node_after_another_stops_no_build(edge: Edge, bazel: Bazel) -> None:
    """Both CAS pods are on the only node, and are evicted one by one, as in an upgrade of Kubernetes."""
    before = edge.pods_of_cas()
    with repeated(lambda number: bazel.build(f"drained-{number}", 8)) as builds:
        said = drain(edge.where, "app.kubernetes.io/component=cas")
    edge.ready()
    assert builds.result() == [{"remote": 8}] * len(builds.result())
    print(f"{len(builds.result())} builds succeeded")
    assert "violate the pod's disruption budget" in said
    assert not set(before) & set(edge.pods_of_cas())
    assert bazel.build("drained-0", 8) == {"remote cache hit": 8}


def test_only_clients_with_a_certificate_are_accepted_where_there_is_no_other_identity(edge: Edge) -> None:
    unknown = edge.trust("h2")
    assert edge.refusal(unknown) == ""
    assert edge.refused("stranger") == "TLSV1_ALERT_UNKNOWN_CA"
    edge.configure(nativelink_edge_access=[], nativelink_edge_token_issuers=[])
    until("the edge to require certificates", lambda: edge.refusal(unknown) != "", 30)
    assert edge.refusal(unknown) == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    assert edge.refused("stranger") == "TLSV1_ALERT_UNKNOWN_CA"
    assert edge.refused("client") == ""
    report = edge.outside.report("--actions=5", "--seconds=0.1-0.5", pool="default")
    assert ends(report) == [("ok", 1, 0)] * 5


def test_older_versions_of_tls_are_refused_unless_they_are_allowed(edge: Edge) -> None:
    def accepted(context: ssl.SSLContext) -> tuple[str | None, str | None]:
        try:
            with edge.connect(context) as connection:
                return connection.version(), connection.selected_alpn_protocol()
        except ssl.SSLError as error:
            return error.reason, None

    old, client = edge.trust("h2"), edge.trust("h2", "http/1.1")
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    for each in (old, client):
        each.load_cert_chain(edge.certificates / "client.pem")
    assert accepted(old) == ("TLSV1_ALERT_PROTOCOL_VERSION", None)
    assert accepted(client) == ("TLSv1.3", "h2")
    edge.configure(nativelink_edge_oldest_tls="1.2")
    until("the edge to accept TLS 1.2", lambda: accepted(old) == ("TLSv1.2", "h2"), 30)


def test_a_call_waits_for_a_cas_of_one_pod_that_is_away(edge: Edge) -> None:
    edge.configure(nativelink_cas_replicas=1)
    edge.where.run("-n", CAS, "delete", "backendtrafficpolicy", "nativelink-uploads")  # an engine prunes it
    edge.ready()
    with edge.without("statefulset/nativelink-cas"):
        client = edge.outside.start(pool="default")
        time.sleep(6)  # longer than the client's own retries take
        assert client.poll() is None, client.communicate()
    assert ends(reported(client)) == [("ok", 1, 0)]


def test_counter_run_without_the_policy_for_single_pods_the_upload_fails(edge: Edge) -> None:
    edge.where.run("-n", CAS, "delete", "backendtrafficpolicy", "nativelink-cache")
    with edge.without("statefulset/nativelink-cas"):
        said, errors = edge.outside.start(pool="default").communicate()
    assert (said, "code = Unavailable" in errors) == ("", True), errors
