"""Real clients through the edge, with roles: Bazel, moon with a certificate and with a token, remotetool, rexec.

`make clients` adds those that are large to install: Bazel 4.2.3, bgd of BuildGrid, and Pants. The tests run in the
order of the file.
"""

import re
from pathlib import Path
from typing import Any

import pytest

from testbed.waiting import patient, until
from testkit import bgd, remotetool
from testkit.bazel import Bazel, of_debian
from testkit.client import Client
from testkit.edge import CAS, CI, DEVELOPER, Edge
from testkit.moon import Moon
from testkit.pants import PYTHON, Pants, python
from testkit.prometheus import forwarded

HIT = "cached from remote"
DENIED = "RBAC: access denied"
RANDOM = "cat /proc/sys/kernel/random/uuid > out.txt"  # what is the same twice was executed once
TIMES = 100_000  # that a file of moon has a word, of which zstd makes a few hundred bytes


@pytest.fixture(scope="module")
def moon(edge: Edge, tmp_path_factory: pytest.TempPathFactory) -> Moon:
    ci = edge.caller(authorization=edge.token(**CI))
    until("Envoy to have the keys of tokens", lambda: ci.codes()["FindMissingBlobs"] == "OK", 30)
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


def test_rexec_executes_once_and_shows_how_an_action_fails(edge: Edge, tmp_path: Path) -> None:
    script, out = f"{RANDOM}; echo {tmp_path}", tmp_path / "out.txt"
    code, said = remotetool.execute(edge, "client", tmp_path, script)
    assert (code, f"{tmp_path}\n" in said) == (0, True), said
    first = out.read_text()
    out.unlink()
    code, said = remotetool.execute(edge, "client", tmp_path, script)
    assert (code, out.read_text()) == (0, first), said
    code, said = remotetool.execute(edge, "client", tmp_path, "exit 9")
    assert (code, "Remote action FAILED with exit code 9" in said) == (0, True), said


def tries_the_example(edge: Edge, bazel: Bazel, config: str) -> str:
    """Build examples/bazel twice, and its faults. Return what Bazel said about the action that never starts."""
    edge.client_files(bazel.workspace)
    code, said = bazel.example("all", config)
    assert (code, re.findall(r"\b3 remote[^.,]*", said)) == (0, ["3 remote"]), said
    code, said = bazel.example("all", config)
    assert (code, re.findall(r"\b3 remote[^.,]*", said)) == (0, ["3 remote cache hit"]), said
    code, said = bazel.example("failing", config)
    assert (code, "(Exit 7)" in said, "\nthis goes wrong\n" in said) == (1, True, True), said
    code, said = bazel.example("missing_output", config)
    assert (code, "declared output 'example/missing_output.txt' was not created by genrule" in said) == (1, True), said
    with pytest.raises(AssertionError, match=r"^not done in ") as waited:
        bazel.example("no_such_pool", config, timeout=patient(10))
    return str(waited.value)


def test_bazel_builds_the_example_and_says_what_is_wrong_with_its_faults(edge: Edge, bazel: Bazel) -> None:
    said = tries_the_example(edge, bazel, "farm")
    assert re.search(r"Executing genrule //example:no_such_pool; \d+s remote", said), said


@pytest.mark.clients
def test_bazel_4_builds_it_at_the_services_without_tls(edge: Edge, tmp_path: Path) -> None:
    with (
        forwarded(edge.where, CAS, "service/nativelink-cas", 50051) as cas,
        forwarded(edge.where, CAS, "service/nativelink-scheduler", 50052) as scheduler,
        Bazel.started(tmp_path, of_debian()) as bazel,
    ):
        said = tries_the_example(edge, bazel.at(Client(f"grpc://{scheduler}", f"grpc://{cas}")), "farm4")
        assert "[Sched] Executing genrule //example:no_such_pool" in said, said


@pytest.mark.clients
def test_bgd_executes_once_and_hides_how_an_action_fails(edge: Edge, tmp_path: Path) -> None:
    script = f"{RANDOM} # {tmp_path}"
    code, said, out = bgd.execute(edge, "client", tmp_path / "first", script)
    assert (code, out.exists()) == (0, True), said
    code, said, again = bgd.execute(edge, "client", tmp_path / "second", script)
    assert (code, again.read_text()) == (0, out.read_text()), said
    code, said, none = bgd.execute(edge, "client", tmp_path / "failing", "exit 9")
    assert (code, "Response status code: \n" in said, none.exists()) == (0, True, False), said


@pytest.mark.clients
@pytest.mark.skipif(not python(), reason=f"Pants needs {PYTHON}")
def test_pants_executes_once_and_shows_how_an_action_fails(edge: Edge, tmp_path: Path) -> None:
    build = 'shell_command(name="{}", command="{}", output_files=["out.txt"])\n'.format
    token = edge.token(**DEVELOPER)
    pants = Pants(edge, tmp_path, token, build("hello", RANDOM.replace("cat", "/bin/cat")) + build("failing", "exit 9"))
    out = pants.workspace / "dist/codegen/out.txt"
    code, said = pants.run("//:hello")
    assert (code, out.exists()) == (0, True), said
    first = out.read_text()
    code, said = pants.run("//:hello")
    assert (code, out.read_text()) == (0, first), said
    code, said = pants.run("//:failing")
    assert (code, "failed with exit code 9" in said) == (1, True), said
