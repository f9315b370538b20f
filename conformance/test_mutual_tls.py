"""The checks of a farm with mutual TLS: who is let in, and how its certificates change while it works."""

import re
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from conformance.farm import CPUS, Farm, Tell, on, succeeded
from conformance.pods import FIRST, Pod, Trust
from testbed.waiting import until
from testkit.authority import Authority
from testkit.servers import PREFACE

_SECOND, _THIRD = Authority("second"), Authority("third")
# The CA of the shown certificate, and those that are accepted.
_ROTATION = (Trust(FIRST, (FIRST, _SECOND)), Trust(_SECOND, (FIRST, _SECOND)), Trust(_SECOND, (_SECOND,)))
_NAMESPACE = "nativelink"


def _answer(pod: Pod, port: int, name: str, shown: Authority | None, accepted: Authority | None) -> str:
    """Return what a client sees: `answers`, or why not. It accepts certificates of a CA, or else speaks plain text."""
    try:
        with socket.create_connection((pod.address, port), timeout=10) as plain:
            connection = plain
            if accepted:
                context = ssl.create_default_context(cadata=accepted.pem.decode())
                context.verify_flags &= ~ssl.VERIFY_X509_STRICT
                context.set_alpn_protocols(["h2"])
                if shown:
                    with tempfile.NamedTemporaryFile() as file:
                        Path(file.name).write_bytes(b"".join(shown.issue("worker")))
                        context.load_cert_chain(file.name)
                connection = context.wrap_socket(plain, server_hostname=name)
            connection.sendall(PREFACE)
            # The fourth byte is the kind of a frame: 4 for settings. TLS answers plain text with an alert.
            return "answers" if connection.recv(9)[3:4] == b"\x04" else "closed"
    except ssl.SSLError as error:
        return str(error.reason)
    except ConnectionError:
        return "closed"


@on("mutual-tls")
def test_admission(farm: Farm, tell: Tell) -> None:
    """only a worker's certificate opens ports 50053 and 50061"""
    # In the words of OpenSSL and of the alerts that the server sends.
    expected = (
        ("a worker's certificate", FIRST, FIRST, "answers"),
        ("no certificate", None, FIRST, "CERTIFICATE_REQUIRED"),
        ("another CA's certificate", _THIRD, FIRST, "UNKNOWN_CA|DECRYPT_ERROR|BAD_CERTIFICATE"),
        ("plain text", None, None, "closed"),
        ("another CA than the server's", FIRST, _THIRD, "CERTIFICATE_VERIFY_FAILED"),
    )
    ports = (
        (farm.cas[0], 50053, f"nativelink-cas-0.nativelink-cas-headless.{_NAMESPACE}.svc"),
        (farm.scheduler, 50061, f"nativelink-scheduler-workers.{_NAMESPACE}.svc"),
    )
    told = []
    for title, shown, accepted, pattern in expected:
        seen = {_answer(pod, port, name, shown, accepted) for pod, port, name in ports}
        assert all(re.search(pattern, each) for each in seen), f"with {title} expected {pattern}, but seen: {seen}"
        told.append(f"{title}: {', '.join(sorted(seen))}")
    tell("; ".join(told))


@contextmanager
def _busy(farm: Farm, salt: str) -> Iterator[list[str]]:
    """Run actions without a pause meanwhile. Yield the salts of what has run. AssertionError if an action failed.

    While a CAS pod is away, a client cannot upload, and tries again.
    """
    done, salts = threading.Event(), list[str]()

    def work() -> None:
        while not done.is_set():
            salts.append(f"{salt}-{len(salts)}")
            for left in reversed(range(10)):
                try:
                    succeeded(farm.load(*farm.recorded("1", salts[-1], 2 * CPUS, 120)))
                    break
                except AssertionError as error:
                    if not left or "upload of the inputs" not in str(error):
                        raise

    with ThreadPoolExecutor(1) as background:
        working = background.submit(work)
        try:
            yield salts
        finally:
            done.set()
            working.result()


def _more(salts: list[str]) -> None:
    """Wait until actions have begun and ended."""
    enough = len(salts) + 2
    until("more actions to run", lambda: len(salts) >= enough, 120)


def _misses(farm: Farm, salts: list[str]) -> int:
    """Run all actions again, and return how many of them really ran."""
    before = {salt: farm.begun(salt) for salt in salts}
    for salt in salts:
        succeeded(farm.load(*farm.recorded("1", salt, 2 * CPUS, 120)))
    return sum(sum(farm.begun(salt).values()) - sum(begun.values()) for salt, begun in before.items())


def _roll(farm: Farm, *, cas_first: bool = True) -> None:
    """Replace CAS pods, scheduler and workers one after another. A push does so at the same time.

    Workers do not drain, so what they run begins again. A drain would take long: a scheduler that restarts disconnects
    its workers, and NativeLink then ends (v1.3.2), or keeps the folder of an action (v1.6.6).
    """
    before, after = (farm.cas, []) if cas_first else ([], farm.cas)
    for pod in (*before, farm.scheduler):
        farm.restart(pod)
    for _ in range(len(farm.workers["default"])):
        farm.replace("default").kill()
    for pod in after:
        farm.restart(pod)


@on("mutual-tls")
def test_rotation(farm: Farm, tell: Tell) -> None:
    """the CA is rotated in three steps under load

    No action fails, and each result is a hit afterwards.
    """
    with _busy(farm, "rotation") as salts:
        for farm.trust in _ROTATION:
            _roll(farm)
            _more(salts)
    assert _misses(farm, salts) == 0
    tell(f"{2 * CPUS * len(salts)} actions, all of them hits afterwards")


def _plain(settings: str) -> str:
    """Return a configuration without mutual TLS."""
    without = re.sub(r',\s*"?tls(_config)?"?: \{[^}]*\}', "", settings)
    return without.replace("grpcs://", "grpc://")


@on("mutual-tls")
def test_turning_on(farm: Farm, tell: Tell) -> None:
    """mutual TLS is turned off, and on again under load

    No action fails in the order in which workers wait for the CAS.
    """
    farm.change = _plain
    _roll(farm)
    assert _answer(farm.scheduler, 50061, "", None, None) == "answers", "the scheduler still asks for certificates"
    farm.change = str
    with _busy(farm, "on") as salts:
        _roll(farm, cas_first=False)
        _more(salts)
    tell(f"{2 * CPUS * len(salts)} actions, {_misses(farm, salts)} of them no hits afterwards")


@on("mutual-tls")
def test_one_step(farm: Farm, tell: Tell) -> None:
    """counter-run: certificate and CA change in one step

    Old and new pods do not work together.
    """
    farm.trust = Trust(_THIRD, (_THIRD,))
    old, farm.workers["default"] = farm.workers["default"], []
    for worker in old:
        worker.kill()
    farm.add_workers("default", len(old))
    seen = []

    def ends() -> bool:
        return bool(farm.load(*farm.recorded("0", "one-step", timeout=10))["ok"])

    for title, pods in (("scheduler", [farm.scheduler]), ("CAS", farm.cas)):
        assert not ends(), f"an action of a new worker ends before the {title} restarts"
        seen.append(f"before the {title} restarts {len(farm.begun('one-step'))} has begun")
        for pod in pods:
            farm.restart(pod)
    assert ends(), "an action does not end although everything has restarted"
    tell(f"no action ends: {', '.join(seen)}")
