"""Errors in the inventory's files, which the lookup `clusters` finds before Ansible reads any variable."""

import subprocess
from pathlib import Path

import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils.validation.files import file_findings

from testkit.inventories import minimal, write_inventory
from testkit.playbooks import BIN, run_playbook

UNDER = "write clusters under hosts, groups under children and variables under vars"
QUOTES = 'put the template in quotes: "{{ name }}"'


def lines(folder: Path, *sources: str) -> list[str]:
    """Return the findings in the form that users read, without the folder."""
    return [str(found).replace(f"{folder}/", "") for found in file_findings([str(folder / name) for name in sources])]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all:\n  hosts: {a: {x: 1}}\n", []),
        ("all:\n  hosts: {a: {x: 1, x: 2}}\n", ["hosts.yml:2: x: is already set in line 2; remove one of the two"]),
        (
            "all:\n  vars:\n    x: 1\n  vars:\n    x: 2\n",
            ["hosts.yml:4: vars: is already set in line 2; remove one of the two"],
        ),
        # Two mappings may have the same key, and a key may override one of a merge.
        ("all:\n  hosts:\n    a: {x: 1}\n    b: {x: 1}\n", []),
        ("all:\n  vars: {base: &base {x: 1}}\n  hosts:\n    a: {mine: {<<: *base, x: 2}}\n", []),
        ("all:\n  hosts: {a: {}}\n  prod: {x: 1}\n", [f"hosts.yml:3: prod: unknown key in the group all; {UNDER}"]),
        ("all:\n  children:\n    eu:\n      a: {}\n", [f"hosts.yml:4: a: unknown key in the group eu; {UNDER}"]),
        ("all: {hosts: {a: {}}}\nregion: eu\n", [f"hosts.yml:2: region: is not a group of clusters; {UNDER}"]),
        ("plugin: amazon.aws.aws_ec2\nregions: [eu]\n", []),
        ("[all]\na x=1\n", []),
    ],
)
def test_an_inventory_file(tmp_path: Path, text: str, expected: list[str]) -> None:
    (tmp_path / "hosts.yml").write_text(text)

    assert lines(tmp_path, "hosts.yml") == expected
    # A source may also be a folder.
    assert lines(tmp_path, "") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x: 1\nplugin: 2\n", []),
        ("x: 1\ny: 2\nx: 3\n", ["group_vars/all.yml:3: x: is already set in line 1; remove one of the two"]),
        ("x:\n  - {{ name }}\n", [f"group_vars/all.yml:2: x: is a template without quotes; {QUOTES}"]),
        (
            "x: 1\ny: {{ name }}/path\n",
            [f"group_vars/all.yml:2: y: invalid YAML (did not find expected key); {QUOTES}"],
        ),
        (
            "x: [1\ny: 2\n",
            [
                "group_vars/all.yml:2: y: invalid YAML (did not find expected ',' or ']'); "
                "correct this line or the one above it"
            ],
        ),
    ],
)
def test_a_file_of_variables(tmp_path: Path, text: str, expected: list[str]) -> None:
    (tmp_path / "hosts.yml").write_text("all: {hosts: {a: {}}}\n")
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "group_vars/all.yml").write_text(text)

    assert lines(tmp_path, "hosts.yml") == expected


def test_a_file_of_variables_beside_a_folder_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text("all: {hosts: {a: {}, b: {}}}\n")
    for name in ("host_vars/a.yml", "host_vars/a/digests.yml", "host_vars/b.yml"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("x: 1\n")

    unread = f"Ansible does not read it next to the folder {tmp_path}/host_vars/a; move it into that folder"
    assert lines(tmp_path, "hosts.yml") == [f"host_vars/a.yml:1: content: {unread}".replace(f"{tmp_path}/", "")]


def test_hidden_files_and_scripts_are_not_checked(tmp_path: Path) -> None:
    for name in (".hosts.yml", "hosts.yml.bak", "script"):
        (tmp_path / name).write_text("all: {x: 1, x: 2}\n")
    (tmp_path / "script").chmod(0o755)

    assert lines(tmp_path, "") == []
    (tmp_path / "script").chmod(0o644)
    assert len(lines(tmp_path, "")) == 3


def test_an_inventory_without_clusters_fails(tmp_path: Path) -> None:
    file = tmp_path / "hosts.yml"
    file.write_text("all:\n  prod:\n    cluster_context: prod\n")

    run = run_playbook("bootstrap", file, "--limit", "prod")

    assert run.status != 0
    assert run.findings == [
        f"{file}:2: prod: unknown key in the group all; {UNDER}",
        f"{file}: hosts: no clusters; write each under hosts of a group",
    ]


def test_limits_vaults_and_values_of_the_command_line(tmp_path: Path) -> None:
    used = {"cas_replicas": 4, "nativelink_cas_replicas": "{{ cas_replicas }}"}  # the one without a prefix is valid
    bad = {**minimal("bad", tmp_path), "nativelink_cas_replicas": 0}  # outside of the limits
    file = write_inventory(tmp_path, {"good": {**minimal("good", tmp_path), **used}, "bad": bad})
    variables, password = tmp_path / "group_vars/all.yml", tmp_path / "password"
    variables.parent.mkdir()
    password.write_text("secret")

    def vault(*arguments: str | Path) -> str:
        command = [BIN / "ansible-vault", *arguments, "--vault-password-file", password]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def findings(limit: str, replicas: str, *arguments: str) -> list[str]:
        run = run_playbook("check_inventory", file, "--limit", limit, "-e", replicas, *arguments)
        assert (run.status == 0) == (run.findings == [])
        return run.findings

    remedy = "give Ansible the vault password, with --ask-vault-pass or --vault-password-file"
    opened = ("--vault-password-file", str(password))
    text, number = "ingress_envoy_replicas=3", '{"ingress_envoy_replicas": 3}'

    variables.write_text(f"# The password.\ngitops_password: {vault('encrypt_string', 'token')}\n")
    assert findings("good", text) == [
        f"good: gitops_password: cannot be decrypted ({variables}:2: "
        f"Attempting to decrypt but no vault secrets found); {remedy}",
        "good: ingress_envoy_replicas: is the text '3', not a whole number; write 3 without quotes; "
        f"on the command line, write -e '{number}'",
    ]
    assert findings("g*,!none*", number, *opened) == []

    # The errors of a file that is encrypted as a whole are found when it is decrypted.
    variables.write_text(yaml.safe_dump({"gitops_password": "token"}) * 2)
    vault("encrypt", variables)
    assert findings("good,other", number) == [
        f"{variables}:1: content: cannot be decrypted; {remedy}",
        "--limit: other: unknown cluster or group; write a name from the inventory",
    ]
    again = "is already set in line 1; remove one of the two"
    assert findings("all", number, *opened) == [f"{variables}:2: gitops_password: {again}"]
