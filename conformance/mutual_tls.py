"""The checks of a farm with mutual TLS: who is let in, and how its certificates change while it works."""

from __future__ import annotations

import re
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conformance.attacks import AGAINST_USERS, Attack, Request
from conformance.certificates import FIRST, Trust
from conformance.farm import CPUS, Farm, succeeded
from conformance.pods import Pod
from testbed.waiting import ClusterError, until
from testkit.authority import Authority

_POOL = {"pool": "default"}
_SECOND, _THIRD = Authority("second"), Authority("third")
# The CA of the shown certificate, and those that are accepted.
ROTATION = (Trust(FIRST, (FIRST, _SECOND)), Trust(_SECOND, (FIRST, _SECOND)), Trust(_SECOND, (_SECOND,)))
# What a client of HTTP/2 says first: the preface, and settings that change nothing.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
_NAMESPACE = "nativelink"


def _recorded(farm: Farm, salt: str, actions: int = 1, seconds: str = "0", timeout: int = 120) -> dict[str, Any]:
    """Run actions that note their start, and return the client's report."""
    command = farm.recorded(seconds, salt)
    return farm.load(*command, f"--actions={actions}", f"--timeout={timeout}", platform=_POOL)


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
            connection.sendall(_PREFACE)
            # The fourth byte is the kind of a frame: 4 for settings. TLS answers plain text with an alert.
            return "answers" if connection.recv(9)[3:4] == b"\x04" else "closed"
    except ssl.SSLError as error:
        return str(error.reason)
    except ConnectionError:
        return "closed"


def admits(farm: Farm) -> str:
    """Connect to both ports with and without certificates."""
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
        if not all(re.search(pattern, each) for each in seen):
            raise ClusterError(f"with {title} expected {pattern}, but seen: {', '.join(seen)}")
        told.append(f"{title}: {', '.join(sorted(seen))}")
    return "; ".join(told)


@contextmanager
def _busy(farm: Farm, salt: str) -> Iterator[list[str]]:
    """Run actions without a pause meanwhile. Yield the salts of what has run. ClusterError if an action failed.

    While a CAS pod is away, a client cannot upload, and tries again.
    """
    done, salts, failed = threading.Event(), list[str](), list[ClusterError]()

    def work() -> None:
        while not done.is_set() and not failed:
            salts.append(f"{salt}-{len(salts)}")
            for left in reversed(range(10)):
                try:
                    succeeded(_recorded(farm, salts[-1], 2 * CPUS, "1"))
                    break
                except ClusterError as error:
                    if not left or "upload of the inputs" not in str(error):
                        failed.append(error)
                        break

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield salts
    finally:
        done.set()
        worker.join()
        if failed:
            raise failed[0]


def _more(salts: list[str]) -> None:
    """Wait until actions have begun and ended."""
    enough = len(salts) + 2
    until("more actions to run", lambda: len(salts) >= enough, 120)


def _misses(farm: Farm, salts: list[str]) -> int:
    """Run all actions again, and return how many of them really ran."""
    before = {salt: farm.begun(salt) for salt in salts}
    for salt in salts:
        succeeded(_recorded(farm, salt, 2 * CPUS, "1"))
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


def rotates(farm: Farm) -> str:
    """Rotate the CA in three steps under load. No action fails, and each result is a hit afterwards."""
    with _busy(farm, "rotation") as salts:
        for farm.trust in ROTATION:
            _roll(farm)
            _more(salts)
    if misses := _misses(farm, salts):
        raise ClusterError(f"{misses} of {2 * CPUS * len(salts)} results are no hits")
    return f"{2 * CPUS * len(salts)} actions, all of them hits afterwards"


def _plain(settings: str) -> str:
    """Return a configuration without mutual TLS."""
    without = re.sub(r',\s*"?tls(_config)?"?: \{[^}]*\}', "", settings)
    return without.replace("grpcs://", "grpc://")


def turns_on(farm: Farm) -> str:
    """Turn mutual TLS off, and on again under load, in the order in which workers wait for the CAS. No action fails."""
    farm.change = _plain
    _roll(farm)
    if "answers" not in _answer(farm.scheduler, 50061, "", None, None):
        raise ClusterError("the scheduler still asks for certificates, so the check shows nothing")
    farm.change = str
    with _busy(farm, "on") as salts:
        _roll(farm, cas_first=False)
        _more(salts)
    return f"{2 * CPUS * len(salts)} actions, {_misses(farm, salts)} of them no hits afterwards"


def fails_in_one_step(farm: Farm) -> str:
    """Change certificate and CA at once, as the counter-run: old and new pods do not work together."""
    farm.trust = Trust(_THIRD, (_THIRD,))
    old, farm.workers["default"] = farm.workers["default"], []
    for worker in old:
        worker.kill()
    farm.add_workers("default", len(old))
    seen = []

    def ends() -> bool:
        return bool(_recorded(farm, "one-step", timeout=10)["ok"])

    for title, pods in (("scheduler", [farm.scheduler]), ("CAS", farm.cas)):
        if ends():
            raise ClusterError(f"an action of a new worker ends before the {title} restarts")
        seen.append(f"before the {title} restarts {len(farm.begun('one-step'))} has begun")
        for pod in pods:
            farm.restart(pod)
    if not ends():
        raise ClusterError("an action does not end although everything has restarted")
    return f"no action ends: {', '.join(seen)}"


_WRITES = "a client of the writers' port writes a result"
BY_CLIENT: dict[str, Callable[[Farm], str]] = {
    "only a worker's certificate opens ports 50053 and 50061": admits,
    _WRITES: AGAINST_USERS[_WRITES],  # as without certificates
} | {
    title: lambda farm, attack=attack: attack.check(farm, attack.users)  # type: ignore[misc]
    for title, attack in {
        "an action cannot read the worker's key": Attack(Request("cat /tls/tls.key"), "exit 1 .*Permission denied"),
        "crafted: an output path with .. reads the worker's key": Attack(
            Request("true", outputs=("../../../../tls/..data/tls.key",)),
            "tls.key: '-----BEGIN PRIVATE KEY",
            crafted=True,
        ),
    }.items()
}
BY_CLIENT |= {
    "the CA is rotated in three steps under load": rotates,
    "mutual TLS is turned off, and on again under load": turns_on,
    "counter-run: certificate and CA change in one step": fails_in_one_step,
}
