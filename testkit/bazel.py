"""Real Bazels as clients of a cluster: 2.1.0, and Debian's 4.2.3."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from testbed import debian, npm
from testkit.client import Client

EXAMPLE = Path(__file__).parents[1] / "examples/bazel/BUILD.bazel"
JVM = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")  # a server that ends soon and uses few cores

REMOTE = ("--color=no", "--noshow_progress", "--spawn_strategy=remote", "--remote_instance_name=main")


def of_debian() -> list[str]:
    """Return the command of Bazel 4.2.3, which finds its files in a root file system of Debian's, and has no TLS."""
    root = debian.root("bazel-bootstrap", "bash", "coreutils", "dash", "findutils", "grep", "sed")
    enter = 'mount --bind "$0/etc" /etc && mount --bind "$0/usr" /usr && USER=any exec "$@"'
    bazel = ("bazel", "--install_base=/usr/share/bazel", "--trust_install_base")
    return ["unshare", "--mount", "sh", "-c", enter, str(root), *bazel, "--server_javabase=/usr/lib/jvm/default-java"]


class Bazel:
    """A Bazel with its own workspace, whose rules take a given time."""

    def __init__(self, folder: Path, program: Sequence[str] = ()) -> None:
        self.program = [*program] or [str(npm.program("bazel"))]
        self.workspace, self.home = folder / "workspace", folder / "home"
        self.workspace.mkdir()
        (self.workspace / "WORKSPACE").touch()
        self.endpoints: list[str] = []

    @classmethod
    @contextlib.contextmanager
    def started(cls, folder: Path, program: Sequence[str] = ()) -> Iterator[Bazel]:
        """Yield a Bazel whose server starts while other things do, and ends with the context."""
        made = cls(folder, program)
        with ThreadPoolExecutor(1) as background:
            background.submit(made.run, "info", "release")
            try:
                yield made
            finally:
                made.run("shutdown")

    def at(self, client: Client, *options: str) -> Bazel:
        """Build at the addresses of another client from now on, with more options."""
        self.endpoints = [f"--remote_executor={client.execute}", f"--remote_cache={client.cas}", *options]
        return self

    def run(self, name: str, *arguments: str, timeout: float | None = None) -> str:
        """Run Bazel, and return its output. Raise AssertionError with the output if Bazel fails or takes too long."""
        code, said = self._ran(name, *arguments, timeout=timeout)
        assert code == 0, said
        return said

    def _ran(
        self, name: str, *arguments: str, timeout: float | None = None, startup: Sequence[str] = ()
    ) -> tuple[int, str]:
        startup = ["--nosystem_rc", "--nohome_rc", "--noworkspace_rc", *startup, f"--output_user_root={self.home}"]
        startup += ["--max_idle_secs=600", *(f"--host_jvm_args={each}" for each in JVM)]
        command = [*self.program, *startup, name, *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with subprocess.Popen(command, cwd=self.workspace, text=True, **pipes) as client:  # type: ignore[call-overload]
            try:
                said, _ = client.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                client.send_signal(signal.SIGINT)  # the client then makes the server end the build
                said, _ = client.communicate()
                raise AssertionError(f"not done in {timeout:.0f} s: {said}") from None
        return client.returncode, said

    def build(
        self,
        word: str,
        rules: int = 20,
        seconds: float = 1,
        *,
        properties: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> dict[str, int]:
        """Build rules that sleep and write a word, and return the number of processes by kind: ``{"remote": 20}``.

        Each rule leaves its own file ``/begun/WORD-…`` when it begins, if there is such a folder. The outputs of
        earlier builds are removed. Another word, number or time makes other actions. ``properties`` are additional
        properties of the actions. Raise AssertionError if the build takes longer than ``timeout`` seconds.
        """
        command = "[ ! -d /begun ] || mktemp /begun/{2}-XXXXXX > /dev/null; sleep {1}; echo {2} {0} > $@"
        rule = f'genrule(name = "rule{{0}}", outs = ["{{0}}.txt"], cmd = "{command}")\n'
        text = "".join(rule.format(each, seconds, word) for each in range(rules))
        said = self._built(text, f"--jobs={rules}", properties=properties or {}, timeout=timeout)
        for each in range(rules):
            assert (self.workspace / "bazel-bin" / f"{each}.txt").read_text() == f"{word} {each}\n"
        (kinds,) = re.findall(r"^INFO: \d+ process(?:es)?: (.+)\.$", said, re.MULTILINE)
        return {kind: int(number) for number, kind in re.findall(r"(\d+) ([a-z -]+)", kinds)}

    def build_of_input(self, size: int) -> None:
        """Build a rule with a random input of so many bytes, which Bazel uploads. AssertionError if it fails."""
        content = random.randbytes(size)
        (self.workspace / "large.bin").write_bytes(content)
        self._built(
            'genrule(name = "sum", srcs = ["large.bin"], outs = ["sum.txt"], cmd = "sha256sum < $< > $@")',
            properties={},
            timeout=None,
        )
        assert (self.workspace / "bazel-bin/sum.txt").read_text().split()[0] == hashlib.sha256(content).hexdigest()

    def example(self, target: str, config: str, timeout: float | None = None) -> tuple[int, str]:
        """Build a target of examples/bazel, or ``all``, with an empty output folder. Return the exit code and output.

        The workspace has the rendered files for clients, and ``config`` is a configuration of theirs. Raise
        AssertionError with the output if the build takes longer than ``timeout`` seconds.
        """
        package = self.workspace / "example"
        package.mkdir()
        try:
            shutil.copy(EXAMPLE, package)
            self.run("clean")
            options = ("--color=no", "--spawn_strategy=remote", f"--config={config}", *self.endpoints)
            file = f"--bazelrc={self.workspace}/nativelink/bazel.bazelrc"
            return self._ran("build", *options, f"//example:{target}", timeout=timeout, startup=(file,))
        finally:
            shutil.rmtree(package)

    def timed(self, text: str, jobs: int) -> tuple[float, list[float]]:
        """Build the text of a BUILD file with an empty output folder and this many actions at a time.

        Return the seconds of the build, and the milliseconds of each action in Bazel's profile.
        """
        profile = self.workspace.parent / "profile.json"
        options = ("--experimental_generate_json_trace_profile", f"--profile={profile}", f"--jobs={jobs}")
        said = self._built(text, *options, properties={}, timeout=None)
        (seconds,) = re.findall(r"^INFO: Elapsed time: ([\d.]+)s", said, re.MULTILINE)
        events = (each for each in json.loads(profile.read_text())["traceEvents"] if "dur" in each)
        return float(seconds), [each["dur"] / 1000 for each in events if each["cat"] == "action processing"]

    def _built(self, text: str, *options: str, properties: Mapping[str, str], timeout: float | None) -> str:
        """Build the text of a BUILD file remotely with an empty output folder, and return Bazel's output."""
        (self.workspace / "BUILD").write_text(text)
        self.run("clean")
        asked = {"pool": "default", "OSFamily": "Linux", **properties}
        platform = " ".join(f'properties: {{name: "{name}" value: "{value}"}}' for name, value in asked.items())
        asking = f"--remote_default_platform_properties={platform}"
        return self.run("build", *REMOTE, asking, *options, *self.endpoints, "//...", timeout=timeout)
