"""A Redis with the search module in a pod's network."""

from __future__ import annotations

import subprocess
from pathlib import Path

from testbed.waiting import until


class Redis:
    """A Redis that listens on a port of a network namespace, as a context manager."""

    def __init__(self, namespace: str, programs: Path, port: int, password: str, folder: Path) -> None:
        """Prepare a Redis. The programs are laid out as in ``Tools.redis``. The log goes into ``folder``."""
        self._enter = ["nsenter", f"--net=/run/netns/{namespace}"]
        self._environment = {"LD_LIBRARY_PATH": str(programs / "libraries"), "REDISCLI_AUTH": password}
        self._programs, self._port, self._password = programs, port, password
        self._log = folder / "redis.log"

    def __enter__(self) -> Redis:
        """Start Redis. ClusterError if it does not answer."""
        options = ["--port", str(self._port), "--bind", "*", "-::*", "--save", "", "--protected-mode", "no"]
        options += ["--requirepass", self._password] if self._password else []
        options += ["--loadmodule", str(self._programs / "lib/redisearch.so")]
        with self._log.open("wb") as log:
            command = [*self._enter, str(self._programs / "bin/redis-server"), *options]
            self._server = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)
        until("Redis to answer", lambda: self.says("ping") == "PONG", 20, lambda: f": {self._log.read_text()[-500:]}")
        return self

    def __exit__(self, *_: object) -> None:
        """Kill Redis."""
        self._server.kill()
        self._server.wait()

    def says(self, *words: str) -> str:
        """Run a command with redis-cli, and return its output."""
        command = [*self._enter, str(self._programs / "bin/redis-cli"), "-p", str(self._port), *words]
        return subprocess.run(
            command, env=self._environment, capture_output=True, text=True, check=False
        ).stdout.strip()
