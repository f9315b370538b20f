"""The role worker_certificates on a real API server, in this order: what it makes, keeps and reports."""

import base64
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from testbed.cluster import Cluster

from .conftest import Live, Object, Play, step

SERVERS, WORKERS = "nativelink", "nativelink-workers"
HOSTS = ("nativelink-cas-0.nativelink-cas-headless.nativelink.svc", "nativelink-scheduler-workers.nativelink.svc")
DAY = "2031-02-03"
NAMED: Object = {
    "nativelink_namespace": SERVERS,
    "nativelink_workers_namespace": WORKERS,
    "nativelink_mutual_tls_secret": "tls-1",
    "nativelink_mutual_tls_expires": DAY,
}
MADE: Object = NAMED | {"worker_certificates_create": True}
APPLIED = "worker_certificates : Apply the Secret"
SECRETS = ("nativelink/nativelink-ca", "nativelink/tls-1", "nativelink-workers/tls-1")


def content(live: Live, name: str, namespace: str = SERVERS) -> dict[str, bytes]:
    """Return the decoded content of a Secret, and check its type."""
    secret = live("secret", name, namespace)
    assert secret["type"] == "kubernetes.io/tls"
    return {key: base64.b64decode(value) for key, value in secret["data"].items()}


def secrets(live: Live, namespace: str) -> list[Object]:
    return live("secret", namespace=namespace).get("items", [])


def certificate(live: Live, name: str, namespace: str = SERVERS) -> x509.Certificate:
    (found,) = x509.load_pem_x509_certificates(content(live, name, namespace)["tls.crt"])
    return found


def trusts(live: Live, name: str, other: str) -> bool:
    """Return whether pods with the Secrets `name` accept the certificates of those with `other`."""

    def verifier(namespace: str) -> PolicyBuilder:
        bundle = x509.load_pem_x509_certificates(content(live, name, namespace)["ca.crt"])
        return PolicyBuilder().store(Store(bundle)).time(datetime.now(UTC))

    try:
        for host in HOSTS:
            verifier(WORKERS).build_server_verifier(x509.DNSName(host)).verify(certificate(live, other), [])
        verifier(SERVERS).build_client_verifier().verify(certificate(live, other, WORKERS), [])
    except VerificationError:
        return False
    return True


@pytest.fixture(scope="module", autouse=True)
def made(play: Play) -> None:
    """Make the certificates, after runs that make none."""
    everything = ["nativelink/provision", "worker_certificates"]
    fresh = play(everything, "--check", "--diff", **MADE)
    assert [name for name in fresh.changed if "worker_certificates" in name] == [APPLIED] * 3
    assert fresh.summary["provisioned"][-3:] == [f"Secret {each}: would be made" for each in SECRETS]
    _, off, checked, run = play.steps(
        step("nativelink/provision"),
        step("worker_certificates", **NAMED),
        step("worker_certificates", check_mode=True, **MADE),
        step("worker_certificates", **MADE),
    )
    assert (off.failed, off.changed, off.summary) == (False, [], {}), "it is off by default"
    assert checked.changed == [APPLIED] * 3
    # The runs before have made none: such a Secret would stay.
    assert run.message == ""
    assert run.summary["provisioned"] == [f"Secret {each}: made" for each in SECRETS]


def test_the_ca_signs_certificates_and_nothing_else(live: Live) -> None:
    assert set(content(live, "nativelink-ca")) == {"tls.crt", "tls.key"}
    made = certificate(live, "nativelink-ca")
    made.verify_directly_issued_by(made)
    constraints = made.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value) == (True, x509.BasicConstraints(ca=True, path_length=0))
    usage = made.extensions.get_extension_for_class(x509.KeyUsage)
    assert (usage.critical, usage.value.key_cert_sign, usage.value.digital_signature) == (True, True, False)
    assert 3640 < (made.not_valid_after_utc - datetime.now(UTC)).days < 3651


@pytest.mark.parametrize(
    ("namespace", "purposes", "names"),
    [
        (
            SERVERS,
            [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
            [
                "*.nativelink-cas-headless.nativelink.svc",
                "nativelink-cas-internal.nativelink.svc",
                "nativelink-scheduler-workers.nativelink.svc",
            ],
        ),
        (WORKERS, [ExtendedKeyUsageOID.CLIENT_AUTH], ["nativelink-worker"]),
    ],
)
def test_the_certificates(live: Live, namespace: str, purposes: list[x509.ObjectIdentifier], names: list[str]) -> None:
    found = content(live, "tls-1", namespace)
    assert set(found) == {"tls.crt", "tls.key", "ca.crt"}
    assert x509.load_pem_x509_certificates(found["ca.crt"]) == [certificate(live, "nativelink-ca")]
    key = load_pem_private_key(found["tls.key"], None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP256R1)

    made = certificate(live, "tls-1", namespace)
    assert namespace != WORKERS or made.subject.rfc4514_string() == "CN=nativelink-worker"
    assert made.version is x509.Version.v3
    assert made.public_key() == key.public_key()
    assert made.not_valid_after_utc == datetime(2031, 2, 3, 23, 59, 59, tzinfo=UTC)
    values = {type(each.value): each.value for each in made.extensions}
    assert values[x509.SubjectAlternativeName].get_values_for_type(x509.DNSName) == names
    assert list(values[x509.ExtendedKeyUsage]) == purposes
    assert values[x509.BasicConstraints] == x509.BasicConstraints(ca=False, path_length=None)
    assert (values[x509.KeyUsage].digital_signature, values[x509.KeyUsage].key_cert_sign) == (True, False)


def test_a_secret_stays_also_one_of_the_user_and_a_failure_is_reported(play: Play, live: Live, dev: Cluster) -> None:
    dev.run("create", "secret", "generic", "mine", "-n", WORKERS, "--from-literal=tls.crt=theirs")
    before = [secrets(live, space) for space in (SERVERS, WORKERS)]
    lost = {"nativelink_mutual_tls_secret": "lost", "nativelink_workers_namespace": "nowhere"}
    mine = {"nativelink_mutual_tls_secret": "mine"}
    runs = play.cases(["worker_certificates"], again=MADE, mine=MADE | mine, lost=MADE | lost)
    assert (runs["again"].failed, runs["again"].changed, runs["again"].summary) == (False, [], {})
    assert runs["mine"].summary == {"provisioned": ["Secret nativelink/mine: made"]}
    dev.run("delete", "secret", "mine", "lost", "-n", SERVERS)
    assert [secrets(live, space) for space in (SERVERS, WORKERS)] == before

    # A failure is reported, though results are hidden.
    message = (
        'worker_certificates_create: Apply the Secret: Secret nowhere/lost: namespaces "nowhere" not found; run '
        "provision without --tags first, or let the user of cluster_context make Secrets there"
    )
    assert (runs["lost"].failed, runs["lost"].message) == (True, f"lost: {message}")
    (summary,) = re.findall(r"^  failed .*(?:\n {3}.*)*", runs["lost"].output, re.MULTILINE)
    assert summary == f"  failed       {message}"


def test_an_interrupted_run_is_finished_and_no_key_is_printed_or_written_to_a_file(
    play: Play, live: Live, dev: Cluster
) -> None:
    kept = live("secret", "tls-1", SERVERS)

    def again(*arguments: str) -> str:
        dev.run("delete", "secret", "tls-1", "-n", WORKERS)
        run = play(["worker_certificates"], "-vvvv", "--diff", *arguments, **MADE)
        assert run.changed == [APPLIED]
        assert run.summary == {"provisioned": ["Secret nativelink-workers/tls-1: made"]}
        return run.output

    output = again()
    assert live("secret", "tls-1", SERVERS) == kept
    assert trusts(live, "tls-1", "tls-1")
    assert "PRIVATE KEY" not in output
    for name, namespace in (("tls-1", WORKERS), ("nativelink-ca", SERVERS)):
        key = content(live, name, namespace)["tls.key"]
        (_, *lines, _) = key.decode().splitlines()
        assert [line for line in (*lines, base64.b64encode(key).decode()) if line in output] == []
    # The name of the file with a module and its arguments.
    assert "AnsiballZ_x509_certificate_pipe.py" not in output
    assert "AnsiballZ_x509_certificate_pipe.py" in again("-e", "ansible_pipelining=false"), "the counter-run"


def test_another_run_at_the_same_time_does_not_overwrite(play: Play, live: Live) -> None:
    def apply(name: str, key: str, immutable: bool) -> Object:
        kind = {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "immutable": immutable}
        secret = {
            **kind,
            "metadata": {"name": name, "namespace": SERVERS},
            "stringData": {"tls.crt": "", "tls.key": key},
        }
        return step({"nativelink.gitops.apply_objects": {"objects": [secret], "variable": "a", "remedy": "b"}})

    refused, *counter_run = play.steps(
        apply("tls-1", "another", True), apply("mutable", "one", False), apply("mutable", "another", False)
    )
    assert "field is immutable when `immutable` is set" in refused.message
    assert [run.failed for run in counter_run] == [False, False]
    assert content(live, "mutable")["tls.key"] == b"another"


def test_the_ca_changes_in_three_steps_without_a_loss_of_trust(play: Play, live: Live) -> None:
    both = ["nativelink-ca", "nativelink-ca-2"]
    changes: list[Object] = [
        {"worker_certificates_trusted": both},
        {"worker_certificates_trusted": both, "worker_certificates_ca": "nativelink-ca-2"},
        {"worker_certificates_ca": "nativelink-ca-2"},
    ]
    new = [MADE | each | {"nativelink_mutual_tls_secret": f"tls-{number}"} for number, each in enumerate(changes, 2)]
    assert [run.message for run in play.steps(*(step("worker_certificates", **each) for each in new))] == [""] * 3
    names = ["tls-1", "tls-2", "tls-3", "tls-4"]
    assert {one: [other for other in names if trusts(live, one, other)] for one in names} == {
        "tls-1": ["tls-1", "tls-2"],
        "tls-2": ["tls-1", "tls-2", "tls-3", "tls-4"],
        "tls-3": ["tls-1", "tls-2", "tls-3", "tls-4"],
        "tls-4": ["tls-3", "tls-4"],
    }


# The live check: one run, in which each case is a host

OTHER = MADE | {"nativelink_mutual_tls_secret": "new"}
PAST = OTHER | {"nativelink_mutual_tls_expires": "2020-01-01"}
LATE = {"nativelink_mutual_tls_expires": "2099-01-01"}
FOREIGN = {"worker_certificates_create": False}


def test_the_live_check_of_the_certificates(play: Play, live: Live, dev: Cluster, tmp_path: Path) -> None:
    # A user who may read much, but no Secrets.
    dev.run("create", "clusterrolebinding", "viewer", "--clusterrole=view", "--serviceaccount=default:default")
    token = dev.run("create", "token", "default", "--namespace", "default").strip()
    viewer = {"cluster_kubeconfig": str(dev.kubeconfig_of(token, tmp_path / "viewer")), "node_agent_guard": False}
    end = certificate(live, "nativelink-ca").not_valid_after_utc.date()

    def ends(wanted: str, secret: str, end: object = DAY, name: str = "nativelink_mutual_tls_secret") -> str:
        return (
            f"nativelink_mutual_tls_expires: is {wanted}, but the certificate of the Secret {secret} ends on {end}; "
            f"write {end}, or name a new Secret in {name}"
        )

    def unread(secret: str) -> str:
        return (
            f"worker_certificates_create: this user cannot read the Secret {secret}; "
            "let the user of cluster_context read and make Secrets, or set this to false"
        )

    empty = (
        "nativelink_mutual_tls_secret: the Secret nativelink-workers/mine has no certificate or no key "
        "(tls.crt, tls.key); add it, or name another Secret"
    )
    passed = (
        "nativelink_mutual_tls_expires: is 2020-01-01, which has passed; "
        "write a later day, and name new Secrets in nativelink_mutual_tls_secret"
    )
    leaves = ("nativelink-workers/tls-1", "nativelink/tls-1")
    early = MADE | {"nativelink_mutual_tls_expires": "2031-02-04"}
    unreadable = ("nativelink-workers/tls-1", "nativelink/nativelink-ca", "nativelink/tls-1")
    expected = {
        "sound": (MADE, []),
        "early": (early, [ends("2031-02-04", leaf) for leaf in leaves]),
        "early-ca": (OTHER | LATE, [ends("2099-01-01", "nativelink/nativelink-ca", end, "worker_certificates_ca")]),
        "foreign-ca": (OTHER | LATE | FOREIGN, []),
        "no-certificate": (MADE | {"nativelink_mutual_tls_secret": "mine"}, [empty]),
        "past": (PAST, [passed]),
        "foreign-past": (PAST | FOREIGN, []),
        "reader": (NAMED | LATE, [ends("2099-01-01", leaf) for leaf in leaves]),
        "viewer": (NAMED | LATE | viewer, []),
        "maker": (MADE | viewer, [unread(secret) for secret in unreadable]),
    }
    runs = play.cases(["preflight/live"], **{name: variables for name, (variables, _) in expected.items()})
    for name, (_, lines) in expected.items():
        assert runs[name].failed == bool(lines), runs[name].message
        assert runs[name].message.splitlines() == [f"{name}: {line}" for line in lines]
