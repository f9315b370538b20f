"""Records of changes on a cluster.

Times are this machine's ``time.monotonic()``, because the timestamps in objects only have whole seconds.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from testbed.cluster import Cluster

Object = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """A change of an object from a watch: the time of its arrival, ADDED, MODIFIED or DELETED, and the object."""

    at: float
    kind: str
    object: Object


@dataclass
class Record:
    """All changes of a resource since the start of the record: ``Record(where, "/api/v1/namespaces/a/pods")``."""

    where: Cluster
    path: str
    changes: list[Change] = field(default_factory=list)

    def __enter__(self) -> Record:
        self._lock, self._ended = threading.Lock(), False
        self._watch = self._begin()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._ended = True
            self._watch.terminate()
        self._reader.join()

    def _begin(self, after: str = "") -> subprocess.Popen[bytes]:
        path = f"{self.path}?watch=true&timeoutSeconds=7200&resourceVersion={after}"
        return subprocess.Popen(self.where.command("get", "--raw", path), stdout=subprocess.PIPE)

    def _read(self) -> None:
        after = ""
        while True:
            with self._watch as watch:
                for line in watch.stdout or ():
                    at = time.monotonic()
                    told = json.loads(line)
                    assert told["type"] != "ERROR", told
                    self.changes.append(Change(at, told["type"], told["object"]))
                    after = told["object"]["metadata"]["resourceVersion"]
            # The API server closes a watch that reads too slowly. Bursts of 200 pods are enough for that.
            with self._lock:
                if self._ended:
                    return
                self._watch = self._begin(after)

    def steps(self, name: str, since: float = 0) -> list[tuple[float, int]]:
        """Return the times and values of a Deployment's ``replicas``: the first value, then each change."""
        found: list[tuple[float, int]] = []
        for change in list(self.changes):
            if change.object["metadata"]["name"] == name and change.kind != "DELETED":
                replicas = change.object["spec"].get("replicas", 1)
                if not found or found[-1][1] != replicas:
                    found.append((change.at, replicas))
        before = [step for step in found if step[0] < since][-1:]
        return before + [step for step in found if step[0] >= since]

    def replicas(self, name: str) -> int:
        """Return the last known ``replicas`` of a Deployment, or -1 before the first."""
        steps = self.steps(name)
        return steps[-1][1] if steps else -1
