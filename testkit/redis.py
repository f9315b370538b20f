"""A Redis with its search module as a process of this machine."""

import os
import subprocess
from pathlib import Path

from testbed import components
from testbed.ports import free_port
from testbed.waiting import until


class Redis:
    """A Redis with an append-only file in `folder`, so that a restart loses nothing.

    Clients use `cli` and `environment`. `enter` are the words that run a command in another network, on all of whose
    addresses Redis then listens.
    """

    def __init__(self, folder: Path, enter: tuple[str, ...] = (), port: int = 0, password: str = "") -> None:
        self.folder, self.enter, self.port, self.password = folder, enter, port or free_port(), password
        image = components.redis_stack()
        files = {Path(path).name: source for path, source in image.files.items()}
        self.server, self.cli, self.module = (files[name] for name in ("redis-server", "redis-cli", "redisearch.so"))
        for name in (name for name in files if name.endswith(".so.1.1")):
            (folder / name).symlink_to(files[name])
        for link, target in image.links.items():
            (folder / Path(link).name).symlink_to(target)
        self.environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
        if password:
            self.environment["REDISCLI_AUTH"] = password
        self.start()

    def start(self) -> None:
        settings = {"port": self.port, "dir": self.folder, "appendonly": "yes", "save": "", "loadmodule": self.module}
        options = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        options += ["--bind", "*", "-::*", "--protected-mode", "no"] if self.enter else ["--bind", "127.0.0.1"]
        options += ["--requirepass", self.password] if self.password else []
        with (self.folder / "redis.log").open("ab") as log:
            command = [*self.enter, self.server, *options]
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        until("Redis to answer", lambda: self.run("ping", check=False) == "PONG", 20)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def run(self, *command: str, stdin: bytes | None = None, check: bool = True) -> str:
        """Return the output of redis-cli, errors too. AssertionError if the command fails, unless `check` is false."""
        called = [*self.enter, self.cli, "-e", "-p", str(self.port), *command]
        done = subprocess.run(called, env=self.environment, input=stdin, capture_output=True, check=False)
        assert done.returncode == 0 or not check, (command, done.stdout, done.stderr)
        return (done.stdout + done.stderr).decode().rstrip("\n")

    def send(self, commands: list[tuple[str, ...]]) -> None:
        """Send many commands at once."""
        texts = [[part.encode() for part in command] for command in commands]
        packed = b"".join(
            b"*%d\r\n%b" % (len(parts), b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts))
            for parts in texts
        )
        assert "errors: 0" in self.run("--pipe", stdin=packed)

    def calls(self, command: str) -> int:
        """Return how often a command has run."""
        for line in self.run("info", "commandstats").splitlines():
            if line.startswith(f"cmdstat_{command}:calls="):
                return int(line.partition("=")[2].partition(",")[0])
        return 0
