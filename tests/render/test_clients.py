"""What clients copy fits what scheduler and workers are told, and each of its formats can be read."""

import ast
import configparser
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import json5
import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render

from testkit.facts import at
from testkit.inventories import ACCESS
from testkit.trees import committed, values_of

Files = Mapping[str, str]
Properties = dict[str, str]
NONE = {"nativelink_edge": "none", "nativelink_edge_tls_secret": "", "nativelink_edge_client_ca_secret": ""}


def calls(text: str, function: str) -> dict[str, Properties]:
    """Return the properties in the calls of a function of Starlark, whose syntax here is Python's too, by the names."""
    found = [each for each in ast.walk(ast.parse(text)) if isinstance(each, ast.Call)]
    keywords = [
        {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        for call in found
        if isinstance(call.func, ast.Name) and call.func.id == function
    ]
    return {each["name"]: each["exec_properties"] for each in keywords}


def pairs(texts: list[str]) -> Properties:
    return dict(text.split("=", 1) for text in texts)


def told(files: Files) -> Iterator[tuple[str, Properties]]:
    """Yield each pool that clients can select, and the properties by which they do so, from each file."""
    platforms = calls(files["clients/platforms/BUILD.bazel"], "platform")
    yield from platforms.items()
    yield from calls(files["clients/buck2/BUCK"], "pool").items()
    (siso,) = [each for each in ast.walk(ast.parse(files["clients/siso/backend.star"])) if isinstance(each, ast.Return)]
    assert siso.value
    kinds = ast.literal_eval(siso.value)
    assert {"default", "large"} <= kinds.keys()
    yield from ((name, asked) for name, asked in kinds.items() if name in platforms)
    first = next(iter(platforms))
    flag = "build:farm --remote_default_exec_properties="
    lines = files["clients/bazel.bazelrc"].splitlines()
    yield first, pairs([json5.loads(line.removeprefix(flag)) for line in lines if line.startswith(flag)])
    pants = tomllib.loads(files["clients/pants.toml"])["GLOBAL"]
    yield first, pairs(pants["remote_execution_extra_platform_properties"])


def runs(asked: Properties, offered: Mapping[str, list[str]], kinds: Properties) -> bool:
    """Return whether v1.6.6 runs an action on a worker. KeyError if the scheduler does not declare a property."""
    for name, value in asked.items():
        kind, values = kinds[name], offered.get(name, [])
        fits = {"exact": values[-1:] == [value], "priority": bool(values), "ignore": True, "minimum": False}
        if not fits[kind]:
            return False
    return True


def selected(files: Files) -> list[tuple[str, list[str]]]:
    """Return each pool that a file for clients names, and the pools that its properties select."""
    kinds = at(json5.loads(files["scheduler/scheduler.json5"]), "simple.supported_platform_properties")
    offered = {
        path.split("/")[1]: {
            name: [value.replace("$$", "$") for value in each["values"]]  # NativeLink expands variables
            for name, each in at(json5.loads(text), "local.platform_properties").items()
        }
        for path, text in files.items()
        if path.endswith("worker.json5")
    }
    found = [(pool, [name for name in offered if runs(asked, offered[name], kinds)]) for pool, asked in told(files)]
    assert {pool for pool, _ in found} == offered.keys()
    return found


@pytest.mark.parametrize(
    ("cluster", "pools"),
    [("local", ["default"]), ("dev", ["default"]), ("staging", ["default", "large"]), ("prod", ["default"])],
)
def test_what_clients_ask_for_selects_exactly_the_pool(cluster: str, pools: list[str]) -> None:
    # For Bazel, Buck2 and Siso, and the first one as the default of Bazel and of Pants.
    expected = [(pool, [pool]) for pool in [*pools, *pools, *pools, pools[0], pools[0]]]
    assert selected(committed(cluster)) == expected


@pytest.mark.parametrize("file", ["clients/platforms/BUILD.bazel", "worker/large/worker.json5"])
def test_a_difference_is_seen(file: str) -> None:
    files = committed("staging")
    assert '"large"' in files[file]
    changed = files[file].replace('"pool": "large"', '"pool": "huge"').replace('["large"]', '["huge"]')
    assert ("large", []) in selected({**files, file: changed})


@pytest.mark.parametrize("variables", [{}, ACCESS, NONE], ids=["certificates", "identities", "none"])
def test_each_format_can_be_read(variables: dict[str, Any]) -> None:
    files = render.tree(values_of(**variables))
    for name in ("remotetool.sh", "siso/siso.env"):
        subprocess.run(["sh", "-n"], input=files[f"clients/{name}"], text=True, check=True)
    for name in ("platforms/BUILD.bazel", "buck2/BUCK", "buck2/platforms.bzl", "siso/backend.star"):
        ast.parse(files[f"clients/{name}"])
    assert yaml.safe_load(files["clients/moon/workspace.yml"])["remote"]["cache"]["instanceName"] == "main"
    buck = configparser.ConfigParser(interpolation=None, inline_comment_prefixes=None)
    buck.read_string(files["clients/buck2/buck2.buckconfig"])
    assert buck["buck2_re_client"]["tls"] == ("false" if variables is NONE else "true")
    assert "remote_store_address" in tomllib.loads(files["clients/pants.toml"])["GLOBAL"]


def test_remotetool_shows_who_it_is(tmp_path: Any) -> None:
    script, certificate = tmp_path / "remotetool.sh", tmp_path / "client.crt"
    script.write_text(render.tree(values_of(nativelink_hostname="farm.example.com", **ACCESS))["clients/remotetool.sh"])

    def run(**environment: str) -> list[str]:
        done = subprocess.run(
            ["sh", script, "--operation=a b"],
            env={"CLIENT": "echo", "PATH": "/bin:/usr/bin", **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split()

    here = ["--instance=main", "--service=farm.example.com:443", "--cas_service=farm.example.com:443"]
    assert run() == [*here, "--service_no_auth", f"--tls_ca_cert={tmp_path}/ca.crt", "--operation=a", "b"]
    assert "--remote_headers=authorization=Bearer" in run(NATIVELINK_TOKEN="t")
    assert "--remote_headers=x-nativelink-api-key=k" in run(NATIVELINK_KEY="k")
    certificate.touch()
    assert {f"--tls_client_auth_cert={certificate}", f"--tls_client_auth_key={tmp_path}/client.key"} <= {*run()}
