"""Attacks of actions and of crafted requests, on a farm whose actions have users of their own, and on one without.

Each attack is a real action. ``users`` is a pattern of what is seen where each action has its own user, and ``none`` of
what is seen in the counter-run. The patterns were written by hand from what the attack is to reach.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from conformance.farm import CPUS, Farm, running
from testbed.waiting import ClusterError, until
from testkit.bazel import Bazel

_POOL = {"pool": "default"}
_PATIENCE = 30  # seconds, for actions that take a few
_SLEEPING = "echo \"sleeping: $(cat /proc/[0-9]*/comm 2> /dev/null | grep -c '^sleep$')\""
# A pair of actions: one receives a descriptor from the other, through a socket that no file system has.
_RECEIVE = """
import os, socket, time
listener = socket.socket(socket.AF_UNIX)
listener.bind("\\0" + os.environ["SALT"])
listener.listen()
open(f"/ledger/{os.environ['SALT']}-victim", "w").close()
done = f"/ledger/{os.environ['SALT']}-done"
received = socket.recv_fds(listener.accept()[0], 1, 1)[1][0]
"""
_SEND = """
import os, socket
{}
sender = socket.socket(socket.AF_UNIX)
sender.connect("\\0" + os.environ["SALT"])
socket.send_fds(sender, [b"x"], [descriptor])
"""
# Makes files in a directory until that fails.
_PLANT = """
try:
    while not os.path.exists(done):
        os.close(os.open("planted", os.O_CREAT | os.O_WRONLY, dir_fd=received))
        os.unlink("planted", dir_fd=received)
except OSError as error:
    print(type(error).__name__)
"""


def _python(text: str) -> str:
    return f"SALT=$1 python3 - << 'END'\n{text.strip()}\nEND\n"


@dataclass(frozen=True)
class Request:
    """An action: the text of its shell script, in which $1 is the same for all actions of one attack, and the rest."""

    script: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    more: tuple[str, ...] = ()  # arguments of the client

    def command(self, farm: Farm, salt: str) -> list[str]:
        """Return the client that runs it."""
        return farm.client(
            f"--command={json.dumps(['/bin/sh', '-c', self.script, 'sh', salt])}",
            *(f"--input={name}={text}" for name, text in self.inputs.items()),
            *(f"--output={path}" for path in self.outputs),
            *(f"--environment={name}={value}" for name, value in self.environment.items()),
            *(f"--timeout={_PATIENCE}", "--retries=0", *self.more),
            platform=_POOL,
        )


@dataclass(frozen=True)
class Attack:
    """An attack, and the patterns of what is seen of it: outcome, what it wrote, outputs, and the same of the others.

    ``beside`` is an action that runs meanwhile, and ``then`` one that runs afterwards. ``before`` and ``look`` are
    commands that run before and afterwards in the worker's container, with its privileges. Without ``none`` there is no
    counter-run. A ``crafted`` request takes a client that leaves out Bazel's checks: its pattern says what NativeLink
    lets it do.
    """

    request: Request
    users: str
    none: str = ""
    beside: Request | None = None
    then: Request | tuple[Request, ...] = ()
    before: str = ""
    look: str = ""
    crafted: bool = False

    def seen(self, farm: Farm) -> str:
        """Run the attack. Return what is seen, in one line."""
        salt = f"attack-{time.monotonic_ns()}"
        told: list[str] = []
        if self.before:
            _inside(farm, self.before)
        with _beside(self.beside, farm, salt) as (folder, end):
            more = tuple(each.replace("{folder}", folder) for each in self.request.more)
            request = Request(**{**vars(self.request), "more": more})
            told.append(_run(request, farm, salt))
            told += [f"beside: {each}" for each in end()]
        for each in (self.then,) if isinstance(self.then, Request) else self.then:
            told.append(f"then: {_run(each, farm, salt)}")
        if self.look:
            told.append(f"look: {_inside(farm, f'{self.look} 2>&1 || true')}")
        return " ".join(" | ".join(told).split())

    def check(self, farm: Farm, pattern: str) -> str:
        """Run the attack, and compare what is seen. ClusterError if it is something else."""
        seen = self.seen(farm)
        if not re.search(pattern, seen):
            advice = " If NativeLink refuses it by now, say so in docs/security.md." if self.crafted else ""
            raise ClusterError(f"expected {pattern!r}, but seen: {seen}.{advice}")
        return seen


def _inside(farm: Farm, script: str) -> str:
    return farm.workers["default"][0].run("sh", "-c", script)


@contextmanager
def _beside(request: Request | None, farm: Farm, salt: str) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """Run an action meanwhile. Yield its directory's name from another one's, and what ends it and tells what was seen.

    The action leaves the ledger's file SALT-victim when it has begun, with its directory, and ends at SALT-done.
    """
    if request is None:
        yield "", list
        return
    begun, done = (farm.ledger / f"{salt}-{name}" for name in ("victim", "done"))
    with running(request.command(farm, salt)) as client:

        def end() -> list[str]:
            done.touch()
            done.chmod(0o666)
            said, _ = client.communicate(timeout=2 * _PATIENCE)
            return [_told(json.loads(said))]

        until("the other action to begin", begun.exists, 30)
        yield "../../" + "/".join(begun.read_text().strip().split("/")[-2:]), end


def _run(request: Request, farm: Farm, salt: str) -> str:
    with running(request.command(farm, salt)) as client:
        said, errors = client.communicate(timeout=2 * _PATIENCE)
    return _told(json.loads(said)) if said else f"the client failed: {errors}"


def _told(report: dict[str, Any]) -> str:
    (action,) = report["actions"]
    outputs = (f"{path}: {text!r}" for path, text in sorted(action.get("outputs", {}).items()))
    return " ".join([action["outcome"], action["line"], action["errors"], *outputs])


_BEGUN = "pwd > /ledger/$1-victim; while [ ! -e /ledger/$1-done ]; do sleep 0.2; done; "
_VICTIM = Request(f"{_BEGUN} cat secret", {"secret": "the victim's"}, environment={"SECRET": "the victim's"})
_LATER = Request("echo later")


def _result(address: str, instance: str) -> Request:
    return Request(f"/reapi-load result --cas-endpoint=grpc://{address} --instance={instance}")


_READ_ONLY = "refused: .*PermissionDenied.*read only"
_SECRET = "umask 077; rm -f /drain/secret; echo a secret > /drain/secret"
_LEADS_OUT = "refused: out is a link that leads out of the action's directory"
ATTACKS: dict[str, Attack] = {
    "an input of a later action is rewritten": Attack(
        Request("chmod u+w input; echo evil > input", {"input": "good"}),
        then=Request("cat input", {"input": "good"}),
        users="Operation not permitted.*then: ok good",
        none="then: ok evil",
    ),
    "a result is made up at the CAS": Attack(
        _result("nativelink-cas.nativelink:50051", "main"), _READ_ONLY, "ok taken"
    ),
    "a result is made up at a slice of the CAS": Attack(
        _result("nativelink-cas-1.nativelink-cas-headless.nativelink:50052", "slice"), _READ_ONLY, "ok taken"
    ),
    "a result is made up at the scheduler": Attack(
        _result("nativelink-scheduler.nativelink:50052", "main"), _READ_ONLY, "ok taken"
    ),
    "an output is a link to a file of root": Attack(
        Request("ln -s /drain/secret out", outputs=("out",)),
        before=_SECRET,
        users=_LEADS_OUT,
        none="ok out: 'a secret",
    ),
    "a link in an output is one to a file of root": Attack(
        Request("mkdir out; ln -s /drain/secret out/link", outputs=("out",)),
        before=_SECRET,
        users="refused: out/link is a link that leads out of the action's directory",
        none="ok out/link: ('a secret|'-> /drain/secret)",
    ),
    "an output is behind a link to a folder of root": Attack(
        Request("rm -rf out; ln -s ../../../../drain out", outputs=("out/secret",)),
        before=_SECRET,
        users=_LEADS_OUT,
        none="ok out/secret: 'a secret",
    ),
    "an output is a link to an input of another action": Attack(
        Request('ln -s "$(cat /ledger/$1-victim)/secret" out', outputs=("out",)),
        beside=_VICTIM,
        users=_LEADS_OUT,
        none='ok out: "the victim',
    ),
    "an output is a link to a file of the store": Attack(
        Request(
            "ln -s /scratch/store/content/d/$(printf shared | sha256sum | cut -c1-64)-6 out",
            {"shared": "shared"},
            outputs=("out",),
        ),
        then=Request("cat shared", {"shared": "shared"}),
        users=f"{_LEADS_OUT}.*then: ok shared",
        none="ok out: 'shared'.*then: ok shared",
    ),
    "inputs, environment and the store are read": Attack(
        Request(
            'echo "inputs: $(cat /scratch/actions/*/*/secret 2> /dev/null | grep -c victim),'
            " environments: $(cat /proc/[0-9]*/environ 2> /dev/null | tr '\\0' '\\n' | grep -c SECRET=),"
            ' stored: $(find /scratch/store -type f 2> /dev/null | head -1 | wc -l)"'
        ),
        beside=_VICTIM,
        users="ok inputs: 0, environments: 0, stored: 0 ",
        none="ok inputs: 1, environments: [1-9], stored: 1 ",
    ),
    "a command runs in the directory of another action": Attack(
        Request("cat secret", more=("--working-directory={folder}",)),
        beside=_VICTIM,
        users="exit 126 isolation: the command is not in the directory of an action",
        none="ok the victim's",
    ),
    "the marker of the drain is made": Attack(
        Request("echo > /drain/draining && echo made; rm -f /drain/draining"), "Permission denied", "ok made"
    ),
    "the folder of an action is made": Attack(
        Request(
            "cd /scratch/actions; name=11111111-1111-1111-1111-111111111111; mkdir $name && echo made; rmdir $name"
        ),
        users="Permission denied",
        none="ok made",
    ),
    "a directory takes the place of the drain's record": Attack(
        Request("rm -f /drain/begun; mkdir /drain/begun && echo made"),
        then=_LATER,
        users="exit 1 .*Permission denied.*then: ok later",
        none="ok made.*then: ok later",
    ),
    "a FIFO takes the place of the drain's record": Attack(
        Request("rm -rf /drain/begun; mkfifo /drain/begun && echo made"),
        then=_LATER,
        users="exit 1 .*Permission denied.*then: ok later",
        none="ok made.*then: ok later",
    ),
    "TMPDIR is left open for others": Attack(
        Request("chmod 777 $TMPDIR"), then=Request("stat -c %a $TMPDIR"), users="then: ok 700"
    ),
    "files of other actions are kept from being removed": Attack(
        Request(
            _python(
                _SEND.format(
                    "os.mkdir('/tmp/open'); os.chmod('/tmp/open', 0o777)\ndescriptor = os.open('/tmp/open', 0)"
                )
            )
        ),
        beside=Request(_python(_RECEIVE + _PLANT)),
        users="^ok .*beside: ok (PermissionError|FileNotFoundError)",
    ),
    "a process stays": Attack(
        Request("setsid sleep 4321 > /dev/null 2>&1 < /dev/null &"),
        then=Request(_SLEEPING),
        users="then: ok sleeping: 0",
        none="then: ok sleeping: 1",
    ),
    "all processes are killed": Attack(
        Request("kill -9 -1; echo sent"),
        beside=_VICTIM,
        users="ok sent.*beside: ok the victim's",
        none="beside: failed: exit 9",
    ),
    "an output is still open in another action": Attack(
        Request(_python(_SEND.format("descriptor = os.open('out', os.O_CREAT | os.O_WRONLY)")), outputs=("out",)),
        beside=Request(_python(f"{_RECEIVE}\nwhile not os.path.exists(done): time.sleep(0.1)")),
        users="exit 126 isolation: refused: out is still open for writing",
        none="^ok out: ''",
    ),
    "a directory is still open in another action": Attack(
        Request(
            _python(_SEND.format("os.mkdir('out'); os.chmod('out', 0o777); descriptor = os.open('out', os.O_RDONLY)")),
            outputs=("out",),
        ),
        beside=Request(_python(_RECEIVE + _PLANT)),
        users="beside: ok PermissionError",
        none="beside: ok FileNotFoundError",
    ),
}
_STORED = f"../../../store/content/d/{hashlib.sha256(b'target').hexdigest()}-6"
ATTACKS |= {
    f"crafted: {title}": Attack(**{**vars(attack), "crafted": True})
    for title, attack in {
        "an input with .. in its name is put elsewhere": Attack(
            Request("true", {"../../../planted": "planted"}), look="cat /scratch/planted", users="look: planted"
        ),
        "an input with an absolute name is put elsewhere": Attack(
            Request("true", {"/scratch/planted-2": "planted"}),
            look="cat /scratch/planted-2",
            users="look: .*No such file",
        ),
        "an output path with .. takes a file of root": Attack(
            Request("true", outputs=("../../../only-root",)),
            before="umask 077; echo a secret > /scratch/only-root",
            look="cat /scratch/only-root",
            users=r"only-root: 'a secret\\n'.*No such file",
        ),
        "an output path with .. reads a file of root in another volume": Attack(
            Request("true", outputs=("../../../../drain/only-root",)),
            before="umask 077; echo a secret > /drain/only-root",
            look="cat /drain/only-root",
            users=r"only-root: 'a secret\\n' \| look: a secret",
        ),
        "an output path with .. reads or removes a large file of root in another volume": Attack(
            Request("true", outputs=("../../../../drain/large",)),
            before="umask 077; yes | head -c 10000 > /drain/large",
            look="ls /drain/large",
            users=r"^ok .*(large: 'y\\n|No such file)",  # which of the two differs from run to run
        ),
        "an absolute output path takes a file of root": Attack(
            Request("true", outputs=("/scratch/absolute",)),
            before="umask 077; echo a secret > /scratch/absolute",
            look="cat /scratch/absolute",
            users=r"^ok \| look: a secret",
        ),
        "an input in the store is not replaced": Attack(
            Request("cat input", {"input": "target"}),
            then=(
                Request("true", outputs=(_STORED,)),
                Request("true", {_STORED: "forged"}),
            ),
            users="ok target.*: 'target' .*then: failed: .*AlreadyExists",
        ),
        "an output path with .. makes folders of root": Attack(
            Request("true", outputs=("../../../made/by/x",)), look="ls /scratch/made", users="look: by"
        ),
        "a working directory with .. runs a command elsewhere": Attack(
            Request("pwd", more=("--working-directory=../../../store",)),
            users="exit 126 isolation: the command is not in a directory",
            none="ok /scratch/store",
        ),
    }.items()
}
# The last one, because it ends the worker where nothing keeps it from that.
ATTACKS["the worker's first process gets SIGTERM"] = Attack(
    Request("kill -TERM 1; sleep 3; echo lives", more=("--timeout=20",)),
    users="Operation not permitted",
    none="^failed: .*Deadline",
)


# What an action may do


def _works(request: Request, pattern: str, then: Request | tuple[Request, ...] = ()) -> Callable[[Farm], str]:
    return lambda farm: Attack(request, pattern, then=then).check(farm, pattern)


def queues(farm: Farm) -> str:
    """Run three times as many actions as there are slots."""
    report = farm.load(f"--actions={3 * CPUS}", "--seconds=0.2-0.5", f"--timeout={_PATIENCE}", platform=_POOL)
    if report["ok"] != 3 * CPUS:
        raise ClusterError(f"{report['failed']} actions failed: {report['actions']}")
    return f"{3 * CPUS} actions on {CPUS} slots"


_BUILD = """
load("tree.bzl", "tree")
genrule(name = "program", outs = ["program.sh"], executable = True,
    cmd = "printf '#!/bin/sh\\\\necho it runs\\\\n' > $@; chmod +x $@")
genrule(name = "runs", outs = ["runs.txt"], tools = [":program"], cmd = "$(location :program) > $@")
tree(name = "folder")
genrule(name = "reads", srcs = [":folder"], outs = ["reads.txt"], cmd = "cat $(location :folder)/below/file > $@")
"""
_TREE = """
def _tree(ctx):
    folder = ctx.actions.declare_directory(ctx.label.name)
    ctx.actions.run_shell(
        outputs = [folder],
        command = "mkdir -p $1/below; echo in a tree > $1/below/file; ln -s file $1/below/link; chmod -R a-w $1",
        arguments = [folder.path],
    )
    return DefaultInfo(files = depset([folder]))
tree = rule(implementation = _tree)
"""


def builds_trees(farm: Farm, bazel: Bazel) -> str:
    """Build programs, folders and links, and actions that use them."""
    (bazel.workspace / "tree.bzl").write_text(_TREE)
    bazel.timed(_BUILD, 4)
    names = ("runs.txt", "reads.txt", "folder/below/link")
    read = [(bazel.workspace / "bazel-bin" / name).read_text() for name in names]
    if read != ["it runs\n", "in a tree\n", "in a tree\n"]:
        raise ClusterError(f"the outputs are {read}")
    return "a program, a folder without write permission and a link, as outputs and as inputs"


_LIBRARY = "object '/nowhere.so' from LD_PRELOAD cannot be preloaded"
_WORKS: dict[str, Callable[[Farm], str]] = {
    "an output is a folder without write permission": _works(
        Request("mkdir -p out/below out/none; echo text > out/below/file; chmod -R a-w out", outputs=("out",)),
        r"ok out/below/file: 'text\\n' out/none: ''",
    ),
    "links in outputs": _works(
        Request("mkdir out; echo text > out/file; ln -s file out/link; ln -s $PWD/out/file out/own", outputs=("out",)),
        r"ok out/file: 'text\\n' out/link: '-> file'",
    ),
    "an output is a link to a file of the image": _works(
        Request("ln -s /etc/nsswitch.conf out", outputs=("out",)), "^ok out: 'passwd: files"
    ),
    "an action has 2,000 inputs": _works(
        Request("ls | wc -l", {f"input-{number}": str(number) for number in range(2000)}, more=("--timeout=300",)),
        "ok 2000",
    ),
    "a client of the writers' port writes a result": _works(
        _result("nativelink-cas.nativelink:50054", "main"), "ok taken"
    ),
    "an action removes its directory": _works(Request('rm -rf "$PWD" 2> /dev/null; echo removed'), "ok removed"),
    "nothing of an action outlives its timeout": _works(
        Request(
            "echo early > out; setsid sleep 4322 > /dev/null 2>&1 & sleep 4322",
            outputs=("out",),
            more=("--action-timeout=1",),
        ),
        r"^failed: (?!.*out:).*then: ok sleeping: 0",
        Request(f"sleep 2; {_SLEEPING}"),
    ),
    "actions wait for a slot": queues,
    "an action fails with its own status": _works(Request("exit 7"), "^failed: exit 7"),
    "a signal ends an action": _works(Request("kill -SEGV $$"), "^failed: exit 9"),
    "TMPDIR is private, and HOME is not needed": _works(
        Request("stat -c '%a %u' $TMPDIR; mktemp; echo ${HOME-without}"), r"ok 700 200\d\d /scratch/users/\S+ without"
    ),
    "LD_PRELOAD is not loaded into the program that starts actions": _works(
        Request("echo runs", environment={"LD_PRELOAD": "/nowhere.so"}),
        f"^ok runs (?!.*{_LIBRARY}.*{_LIBRARY}).*{_LIBRARY}",
    ),
    "BASH_ENV does not run as root": _works(
        Request("bash -c true", {"script": "echo as $(id -u) >&2"}, environment={"BASH_ENV": "script"}),
        r"^ok as 200\d\d$",
    ),
}

BY_BAZEL: dict[str, Callable[[Farm, Bazel], str]] = {"Bazel builds programs, folders and links": builds_trees}
AGAINST_USERS: dict[str, Callable[[Farm], str]] = _WORKS | {
    title: lambda farm, attack=attack: attack.check(farm, attack.users)  # type: ignore[misc]
    for title, attack in ATTACKS.items()
}
AGAINST_NONE: dict[str, Callable[[Farm], str]] = {
    f"counter-run: isolation none: {title}": lambda farm, attack=attack: attack.check(farm, attack.none)  # type: ignore[misc]
    for title, attack in ATTACKS.items()
    if attack.none
}


def writable_results(settings: str) -> str:
    """Return a configuration in which everybody may write action results, for the counter-run."""
    return re.sub(r",\s*\"?read_only\"?: true", "", settings)
