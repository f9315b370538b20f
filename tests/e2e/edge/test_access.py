"""Who may do what at the edge: certificates, tokens of an identity provider, and API keys, each with its role.

The identity provider is a stand-in on this machine, which signs tokens and serves its keys. All else is real: Envoy
Gateway, Envoy, and Bazel with a token. The tests run in the order of the file.
"""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator

import pytest
from ansible_collections.nativelink.gitops.plugins.plugin_utils.reapi import REFUSALS

from testbed.waiting import until
from testkit import nativelink
from testkit.bazel import Bazel
from testkit.client import Client, repeated, reported
from testkit.edge import ACCESS, CAS, CI, DEVELOPER, HOST, SANS, Edge
from testkit.farm import secret
from testkit.tokens import Key

READS = {"GetCapabilities", "FindMissingBlobs", "BatchReadBlobs", "Read", "GetActionResult"}
EXECUTES = READS | {"BatchUpdateBlobs", "Write", "Execute"}
WRITES = EXECUTES | {"UpdateActionResult"}
KEYS = {"reader": "key-of-bob", "ci": "key-of-ci"}


def may(client: Client) -> set[str]:
    """Return the methods that a client may call."""
    return {method for method, code in client.codes().items() if code not in REFUSALS}


def someone(edge: Edge, identity: str) -> Client:
    """Return a client with an identity, such as ``token ci``."""
    kind, _, name = identity.partition(" ")
    if kind == "certificate":
        return edge.caller(name)
    if kind == "key":
        return edge.caller(x_nativelink_api_key=KEYS[name])
    return edge.caller(authorization=edge.token(**{"developer": DEVELOPER, "ci": CI}[name]))


@pytest.mark.parametrize(
    ("identity", "methods"),
    [
        ("certificate reader", READS),
        ("certificate client", EXECUTES),
        ("certificate ci", WRITES),
        ("token developer", EXECUTES),
        ("token ci", WRITES),
        ("key reader", READS),
        ("key ci", WRITES),
    ],
)
def test_an_identity_may_call_the_methods_of_its_role(edge: Edge, identity: str, methods: set[str]) -> None:
    until("Envoy to have the keys of the identity provider", lambda: may(someone(edge, "token ci")) == WRITES, 30)
    assert may(someone(edge, identity)) == methods


STRANGERS: dict[str, Callable[[Edge], Client]] = {
    "no identity": lambda edge: edge.caller(),
    "a common name like that of CI": lambda edge: edge.caller("impostor"),
    "an expired token": lambda edge: edge.caller(authorization=edge.token(minutes=-5, **CI)),
    "a token for another audience": lambda edge: edge.caller(authorization=edge.token(**CI, aud="elsewhere")),
    "a token of another issuer": lambda edge: edge.caller(authorization=edge.token(**CI, iss="https://example.org")),
    "an unsigned token": lambda edge: edge.caller(authorization=edge.token(**CI, algorithm="none")),
    "a token that another key signed": lambda edge: edge.caller(authorization=edge.token(Key("first"), **CI)),
    "a token with other claims": lambda edge: edge.caller(authorization=edge.token(sub="eve", groups=["guests"])),
    "a claim that only begins like the right one": lambda edge: edge.caller(
        authorization=edge.token(sub="eve", repository="example/monorepo-fork")
    ),
    "another API key": lambda edge: edge.caller(x_nativelink_api_key="key-of-eve"),
    "headers like those that Envoy sets": lambda edge: edge.caller(
        x_forwarded_client_cert="By=x;Hash=00;URI=spiffe://example.com/ci",
        x_nativelink_client="ci",
        x_nativelink_subject=CI["sub"],
    ),
}


@pytest.mark.parametrize("who", STRANGERS)
def test_all_others_may_only_ask_what_the_farm_offers(edge: Edge, who: str) -> None:
    """Bazel 2.1.0 asks that without its token."""
    assert may(STRANGERS[who](edge)) <= {"GetCapabilities"}


def test_a_wrong_token_is_not_excused_by_a_certificate(edge: Edge) -> None:
    client = edge.caller("client", authorization=edge.token(minutes=-5, **CI))
    assert (may(client), client.codes()["Execute"]) == (set(), "UNAUTHENTICATED")


def test_bazel_builds_and_fails_no_build_when_it_may_not_write(edge: Edge, bazel: Bazel) -> None:
    assert bazel.build("token", 4) == {"remote": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bazel, "endpoints", [])  # and back afterwards
        # A developer's Bazel runs these itself. Its results are refused, so the second build runs them again.
        with edge.bazel(bazel, execute=False):
            for _ in range(2):
                assert bazel.build("private", 4).keys().isdisjoint({"remote", "remote cache hit"})
        # The results of CI are for all.
        with edge.bazel(bazel, "ci", execute=False):
            bazel.build("shared", 4)
        with edge.bazel(bazel, "reader", execute=False):
            assert bazel.build("shared", 4) == {"remote cache hit": 4}
        # Bazel 2.1.0 sends no token with uploads.
        token = f"--remote_cache_header=authorization={edge.token(**DEVELOPER)}"
        with edge.bazel(bazel, "", token, "--noremote_upload_local_results", execute=False):
            assert bazel.build("shared", 4) == {"remote cache hit": 4}


def test_the_log_says_who_called_and_shows_no_secret(edge: Edge) -> None:
    who = {
        "certificate": ("spiffe://example.com/ci", ("certificate ci", "UpdateActionResult")),
        "certificate_dns": ("client", ("certificate client", "Execute")),
        "token": (CI["sub"], ("token ci", "UpdateActionResult")),
        "api_key": ("bob", ("key reader", "Read")),
    }

    def known() -> set[str]:
        log = edge.log()
        return {
            field
            for field, (name, (_, method)) in who.items()
            if any(each[field] == name and each["path"].endswith(f"/{method}") for each in log)
        }

    until("Envoy to log an identity of each kind", lambda: known() == who.keys(), 20, lambda: f": {known()}")
    refused = [
        each for each in edge.log() if each["response_code_details"] == "rbac_access_denied_matched_policy[DENY]"
    ]
    assert refused
    text = json.dumps(edge.log())
    token = edge.token(**CI).split(".")
    for secret_text in (*KEYS.values(), token[0].removeprefix("Bearer "), "Bearer"):
        assert secret_text not in text


def test_a_rotation_of_certificates_keys_and_tokens_fails_no_call(edge: Edge) -> None:
    """Old and new are accepted together until no client has the old ones."""
    new = Key("second")
    who = [someone(edge, identity) for identity in ("certificate client", "token ci", "key ci")]
    load = ("--actions=30", "--seconds=1-1", "--concurrency=2", "--retries=0")
    builds = [each.start(*load, pool="default") for each in who]
    certificate, key = edge.servers.issue(HOST, days=60)
    clients = edge.newer_clients
    edge.where.apply(
        secret("edge-tls", "kubernetes.io/tls", {"tls.crt": certificate, "tls.key": key}),
        secret("clients-ca", "Opaque", {"ca.crt": edge.clients.pem + clients.pem}),
        secret("edge-ci", "Opaque", {"ci": b"key-of-ci", "ci-2": b"new-key-of-ci"}),
    )
    edge.publish(edge.issuer, new)
    (edge.certificates / "renewed.pem").write_bytes(b"".join(clients.issue("renewed", SANS["client"])))
    renewed = {
        "certificate": edge.caller("renewed"),
        "token": edge.caller(authorization=edge.token(new, **CI)),
        "key": edge.caller(x_nativelink_api_key="new-key-of-ci"),
    }
    wanted = {"certificate": EXECUTES, "token": WRITES, "key": WRITES}

    def accepted() -> set[str]:
        there = edge.refused("renewed") == ""  # a client whose certificate is refused tries for half a minute
        return {kind for kind in wanted if (there or kind != "certificate") and may(renewed[kind]) == wanted[kind]}

    # Envoy reads the keys of an issuer again after a minute.
    until("new identities to be accepted", lambda: accepted() == wanted.keys(), 100, lambda: f": {accepted()}")
    for build in builds:
        report = reported(build)
        assert (report["ok"], report["failed"]) == (30, 0), report
    assert may(someone(edge, "certificate client")) == EXECUTES


def test_revocation(edge: Edge) -> None:
    """An entry that is taken out, an API key that is deleted, and a certificate on a list of revoked ones."""
    began = time.monotonic()
    took = {}

    def gone(what: str, refused: Callable[[], bool]) -> None:
        until(f"{what} to be refused", refused, 60)
        took[what] = time.monotonic() - began

    edge.where.apply(secret("edge-readers", "Opaque", {"carol": b"key-of-carol"}))
    gone("an API key", lambda: may(someone(edge, "key reader")) == set())

    began = time.monotonic()
    access = [
        each for each in ACCESS["nativelink_edge_access"] if each.get("issuer") is None or each["role"] == "write"
    ]
    reader = edge.certificates / "reader.pem"
    edge.where.apply(
        secret(
            "revoked", "Opaque", {"ca.crl": edge.clients.revoked(reader.read_bytes()) + edge.newer_clients.revoked()}
        )
    )
    edge.configure(nativelink_edge_access=access, nativelink_edge_client_crl_secret="revoked")
    gone("an entry", lambda: may(someone(edge, "token developer")) == {"GetCapabilities"})
    gone("a certificate", lambda: edge.refused("reader") == "SSLV3_ALERT_CERTIFICATE_REVOKED")
    assert may(someone(edge, "certificate client")) == EXECUTES, "others of the same CA"
    print(f"refused after {', '.join(f'{what} {seconds:.0f} s' for what, seconds in took.items())}")
    edge.configure(**ACCESS, nativelink_edge_client_crl_secret="")
    until("the developers to be back", lambda: may(someone(edge, "token developer")) == EXECUTES, 30)


def test_who_calls_too_often_slows_down_only_themselves(edge: Edge) -> None:
    def fails() -> bool:
        client = greedy.start("--actions=60", "--retries=0", pool="default")
        _, errors = client.communicate()
        return client.returncode != 0 and "Unavailable" in errors

    greedy, other = someone(edge, "token ci"), someone(edge, "token developer")
    edge.configure(nativelink_edge_calls_per_second=3)
    try:
        until("calls beyond the limit to fail", fails, 30)
        with repeated(greedy.command("--actions=60", "--retries=0", pool="default")):
            found = other.codes()  # one call of each method
    finally:
        edge.configure(nativelink_edge_calls_per_second=5000)
    assert "UNAVAILABLE" not in found.values(), found
    until("the limit to be gone", lambda: not fails(), 30)


def test_an_upload_that_was_cut_begins_again(edge: Edge, bazel: Bazel) -> None:
    assert edge.outside.resumed(30) == {"from the beginning": 30}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bazel, "endpoints", [])
        with edge.bazel(bazel, cut=4_000_000):
            bazel.build_of_input(20_000_000)


def codes_of_uploads(edge: Edge) -> list[str]:
    """Return the codes of two uploads of 3 MB, without those that succeed."""
    return re.findall(r"refused: .* code = (\w+)", "\n".join(edge.outside.put("--right", "--size=3000000").values()))


@contextlib.contextmanager
def refusing(edge: Edge) -> Iterator[None]:
    """Let the pods of the CAS refuse the connections of the edge."""
    change = [{"op": "replace", "path": "/spec/ports/0/targetPort", "value": 1}]
    edge.where.run("-n", CAS, "patch", "service", "nativelink-cas", "--type=json", "-p", json.dumps(change))
    try:
        until("uploads to fail", lambda: codes_of_uploads(edge) != [], 60)
        yield
    finally:
        edge.apply_folder()
        until("uploads to succeed again", lambda: codes_of_uploads(edge) == [], 60)


def test_a_client_may_repeat_an_upload_that_finds_no_pod(edge: Edge) -> None:
    with refusing(edge):
        assert [code for _ in range(5) for code in codes_of_uploads(edge)] == ["Unavailable"] * 10


def test_counter_run_without_the_policy_of_uploads_a_client_may_not_repeat_them(edge: Edge) -> None:
    edge.where.run("-n", CAS, "delete", "backendtrafficpolicy", "nativelink-uploads")
    with refusing(edge):
        until("an upload to end with another code", lambda: "Unknown" in codes_of_uploads(edge), 60)


@nativelink.only_original("how it takes up an upload that was cut")
def test_counter_run_with_a_route_for_its_status_the_upload_fails(edge: Edge) -> None:
    stream = {"method": {"service": "google.bytestream.ByteStream"}}
    change = [{"op": "add", "path": "/spec/rules/0/matches/-", "value": stream}]
    edge.where.run("-n", CAS, "patch", "grpcroute", "nativelink-cache", "--type=json", "-p", json.dumps(change))
    try:
        until("the route", lambda: edge.outside.codes()["QueryWriteStatus"] == "OK", 30)
        done = edge.outside.resumed(5)
    finally:
        edge.apply_folder()
    assert done == {"INVALID_ARGUMENT": 5}
