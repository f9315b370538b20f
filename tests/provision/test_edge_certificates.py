"""The playbook that makes certificates for the edge and its clients, without a cluster."""

from pathlib import Path

from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from testkit.inventories import minimal, write_inventory
from testkit.playbooks import Run, run_playbook


def made(folder: Path, client: str, name: str) -> Run:
    """Run the playbook for a cluster and a client with a subject alternative name."""
    cluster = {**minimal("dev", folder / "clusters"), "nativelink_hostname": "builds.example.com"}
    stated = {"dir": folder / "made", "client": client, "client_name": name}
    variables = [each for key, value in stated.items() for each in ("-e", f"certificates_{key}={value}")]
    done = run_playbook("certificates", write_inventory(folder, {"dev": cluster}), *variables)
    assert done.status == 0, done.output
    return done


def test_the_ca_signs_the_edge_and_each_client_and_nothing_is_replaced(tmp_path: Path) -> None:
    first = made(tmp_path, "ann", "DNS:ann.example.com")
    assert "kubectl --context dev -n nativelink create secret tls edge-tls " in " ".join(first.output.split())
    before = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    assert made(tmp_path, "ci", "URI:spiffe://example.com/ci").changed == 2
    after = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    assert before.items() <= after.items()
    assert after.keys() - before.keys() == {"ci.crt", "ci.key"}
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "made").glob("*.key")} == {0o600}

    loaded = {name: x509.load_pem_x509_certificate(after[f"{name}.crt"]) for name in ("ca", "edge", "ann", "ci")}
    verifier = PolicyBuilder().store(Store([loaded["ca"]]))
    verifier.build_server_verifier(x509.DNSName("builds.example.com")).verify(loaded["edge"], [])
    names = [verifier.build_client_verifier().verify(loaded[name], []).subjects for name in ("ann", "ci")]
    assert names == [[x509.DNSName("ann.example.com")], [x509.UniformResourceIdentifier("spiffe://example.com/ci")]]
