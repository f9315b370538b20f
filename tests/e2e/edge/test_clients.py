"""Other real clients than Bazel, with roles at the edge: moon with a certificate and with a token, and remotetool.

The tests run in the order of the file.
"""

import re
from pathlib import Path
from typing import Any

import pytest

from testbed.waiting import until
from testkit import remotetool
from testkit.client import reported
from testkit.edge import CI, DEVELOPER, Edge
from testkit.moon import Moon

HIT = "cached from remote"
DENIED = "RBAC: access denied"
TIMES = 100_000  # that a file of moon has a word, of which zstd makes a few hundred bytes


@pytest.fixture(scope="module")
def moon(edge: Edge, tmp_path_factory: pytest.TempPathFactory) -> Moon:
    ci = edge.caller(authorization=edge.token(**CI))
    until("Envoy to have the keys of tokens", lambda: reported(ci.start("may"))["FindMissingBlobs"] == "OK", 30)
    return Moon(edge, tmp_path_factory.mktemp("moon"))


def carried(edge: Edge, way: str) -> float:
    """Return how many bytes Envoy has sent to the CAS (``tx``), or has got from it (``rx``)."""
    return edge.metric(f"envoy_cluster_upstream_cx_{way}_bytes_total{{.*nativelink-(?:cache|results).*}}")


def identity(edge: Edge, kind: str, certificate: str, claims: dict[str, Any]) -> dict[str, str]:
    return {"certificate": certificate} if kind == "certificate" else {"token": edge.token(**claims)}


@pytest.mark.parametrize("kind", ["certificate", "token"])
def test_moon_of_a_developer_reads_the_results_of_ci_as_zstd_and_writes_none(edge: Edge, moon: Moon, kind: str) -> None:
    developer, ci = identity(edge, kind, "client", DEVELOPER), identity(edge, kind, "ci", CI)
    sent = carried(edge, "tx")
    said = moon.build(kind * TIMES, **developer)
    assert "Failed to store cache manifest" in said, said
    assert DENIED in said
    said = moon.build(kind * TIMES, **ci)
    assert HIT not in said
    assert DENIED not in said
    assert 0 < carried(edge, "tx") - sent < TIMES
    got = carried(edge, "rx")
    assert HIT in moon.build(kind * TIMES, **developer)
    assert 0 < carried(edge, "rx") - got < TIMES


def test_moon_of_a_reader_reads_them_too_and_uploads_nothing(moon: Moon) -> None:
    said = moon.build("reader", certificate="reader")
    assert "Failed to store blobs, will skip caching the manifest" in said, said
    assert DENIED in said
    assert HIT in moon.build("certificate" * TIMES, certificate="reader")


def test_remotetool_of_a_developer_executes_and_that_of_a_reader_only_reads(edge: Edge, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_text(str(tmp_path))
    refused, said = remotetool.run(edge, "reader", "upload_blob", path=blob, digest="0/0")
    assert (refused, "code = PermissionDenied" in said) == (1, True), said
    code, said = remotetool.run(edge, "client", "upload_blob", path=blob)
    assert code == 0, said

    folder, out = remotetool.action(tmp_path / "action", f"echo {tmp_path} > out.txt"), tmp_path / "out"
    code, said = remotetool.run(edge, "client", "execute_action", action_root=folder, path=out)
    assert (code, (out / "out.txt").read_text()) == (0, f"{tmp_path}\n"), said
    # All blobs are there now, so nothing but the execution can be refused.
    refused, said = remotetool.run(edge, "reader", "execute_action", action_root=folder, path=tmp_path / "none")
    assert (refused, "Remote execution error: rpc error: code = PermissionDenied" in said) == (1, True), said
    (digest,) = re.findall(r"^Action digest: (\S+)$", said, re.MULTILINE)
    code, said = remotetool.run(edge, "reader", "download_action_result", digest=digest, path=tmp_path / "read")
    assert (code, (tmp_path / "read" / "out.txt").read_text()) == (0, f"{tmp_path}\n"), said
