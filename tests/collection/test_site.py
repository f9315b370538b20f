"""A site's own repository: made by the installed collection, checked by its own CI, and bootstrapped."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed import cluster
from testkit import inventories
from testkit.repository import git

from .conftest import Collection, install, run

STORAGE = [{"name": "local-path", "preset": "local-path"}]


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return the modification time and the content of each file outside of `.ansible` and `.git`."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {
        str(path): ((folder / path).stat().st_mtime_ns, (folder / path).read_bytes())
        for path in found
        if path.parts[0] not in (".ansible", ".git")
    }


@pytest.fixture(scope="module")
def site(collection: Collection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a site whose requirements name the built tarball, and install the tarball into it."""
    folder = tmp_path_factory.mktemp("somewhere") / "my-farm"
    variables = ("-e", f"site_dir={folder.name}", "-e", f"site_collection_source={collection.tarball}")
    path = {"ANSIBLE_COLLECTIONS_PATH": str(collection.path)}
    run("ansible-playbook", "nativelink.gitops.site", *variables, cwd=folder.parent, **path)
    install(collection.tarball, folder / ".ansible/collections")
    return folder


def test_a_site_contains_only_its_own_files(site: Path) -> None:
    assert sorted(contents(site)) == [
        ".github/workflows/clusters.yml",
        ".gitignore",
        ".gitlab-ci.yml",
        "README.md",
        "ansible.cfg",
        "clusters/.gitkeep",
        "inventories/farm/hosts.yml",
        "renovate.json",
        "requirements.txt",
        "requirements.yml",
    ]


SOURCES = {
    "kept": ("nativelink.gitops", "1.2.3", ("galaxy", "galaxy-collection", "nativelink.gitops")),
    "git": ("https://git.example.com/a/b.git", "v1.2.3", ("git", "git-tags", "https://git.example.com/a/b.git")),
    "git-plus": ("git+https://git.example.com/a/b", "v1.2.3", ("git", "git-tags", "https://git.example.com/a/b")),
}
LEFT = "These files existed and were left as they are: "


@pytest.fixture(scope="module")
def others(collection: Collection, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Make other sites, all in one run; return their folder and the output."""
    folder = tmp_path_factory.mktemp("others")
    (folder / "kept").mkdir()
    (folder / "kept/README.md").write_text("mine\n")
    (folder / "blocked/requirements.yml").mkdir(parents=True)
    (folder / "blocking").mkdir()
    (folder / "blocking/inventories").write_text("")
    sites = [
        {"site_dir": name, "site_collection_source": source, "site_collection_version": version}
        for name, (source, version, _) in SOURCES.items()
    ]
    sites += [{"site_dir": name} for name in ("kept", "blocked", "blocking", "", f"{collection.folder}/farm")]
    tasks = [
        {
            "block": [{"ansible.builtin.include_role": {"name": "nativelink.gitops.site"}, "vars": variables}],
            "rescue": [{"ansible.builtin.debug": {"msg": "refused: {{ ansible_failed_result.msg }}"}}],
        }
        for variables in sites
    ]
    (folder / "play.yml").write_text(yaml.safe_dump([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]))
    path = {"ANSIBLE_COLLECTIONS_PATH": str(collection.path)}
    return folder, run("ansible-playbook", "play.yml", cwd=folder, **path).stdout


def test_what_exists_is_kept_and_what_is_in_the_way_is_named(collection: Collection, others: tuple[Path, str]) -> None:
    folder, said = others
    assert f'"{LEFT}README.md"' in said
    assert f'"{LEFT}{", ".join(sorted(contents(folder / "kept")))}"' in said, "the second time all of them"
    assert (folder / "kept/README.md").read_text() == "mine\n"
    for name in ("blocked/requirements.yml", "blocking/inventories"):
        wrong = f"{folder}/{name}: a folder is where a file belongs, or a file where a folder belongs; remove it"
        assert f"refused: site_dir: {wrong}" in said
        assert list((folder / name).parent.rglob("*")) == [folder / name]
    assert "refused: site_dir: it is not set; name the folder of a repository of your own" in said
    assert f"refused: site_dir: {collection.folder}/farm is in the collection itself; name the folder of a" in said
    assert not (collection.folder / "farm").exists()


@pytest.mark.parametrize("name", SOURCES)
def test_the_collection_is_pinned_where_renovate_finds_it(others: tuple[Path, str], name: str) -> None:
    site, (source, version, wanted) = others[0] / name, SOURCES[name]
    text = (site / "requirements.yml").read_text()
    first, second, third = yaml.safe_load(text)["collections"]
    assert first == {"name": source, "type": wanted[0], "version": version}
    assert [second["name"], third["name"]] == ["community.crypto", "kubernetes.core"]
    manager, _ = json.loads((site / "renovate.json").read_text())["customManagers"]
    (pattern,) = manager["matchStrings"]
    pattern = pattern.replace("(?<", "(?P<")
    found = [each.group("datasource", "depName", "currentValue") for each in re.finditer(pattern, text)]
    assert found == [
        (wanted[1], wanted[2], version),
        ("galaxy-collection", "community.crypto", second["version"]),
        ("galaxy-collection", "kubernetes.core", third["version"]),
    ]
    variable = "# renovate: datasource=github-releases depName=kedacore/keda\n      keda_version: 2.21.0\n"
    assert re.search(pattern, variable).group("currentValue") == "2.21.0"
    files = ("requirements.yml", "inventories/farm/hosts.yml")
    for each, path in zip(manager["managerFilePatterns"], files, strict=True):
        assert re.match(each.strip("/"), path)


# --- its CI


def scripts(site: Path) -> dict[str, str]:
    """Return the commands of each CI example as one shell script, taken from its YAML."""
    workflow = yaml.safe_load((site / ".github/workflows/clusters.yml").read_text())
    steps = workflow["jobs"]["check"]["steps"]
    pipeline = yaml.safe_load((site / ".gitlab-ci.yml").read_text())
    return {
        "github": "".join(step["run"] for step in steps if "run" in step),
        "gitlab": "".join(f"{line}\n" for line in pipeline["check"]["script"]),
    }


@pytest.fixture
def committed(site: Path) -> Iterator[Path]:
    """Put the site into Git, with its rendered tree. Changes of a test are undone afterwards."""
    git(site, "init", "--quiet")
    run("ansible-playbook", "nativelink.gitops.render", cwd=site)
    git(site, "add", "--all")
    git(site, "commit", "--quiet", "--allow-empty", "--message", "Render")
    head = git(site, "rev-parse", "HEAD").strip()
    yield site
    git(site, "reset", "--quiet", "--hard", head)
    git(site, "clean", "--quiet", "--force", "-d")


def test_the_ci_examples_fail_on_a_difference_and_on_a_faulty_inventory(committed: Path) -> None:
    script, gitlab = scripts(committed).values()
    assert script == gitlab
    # All requirements are installed already, so that pip and ansible-galaxy do not need the network.
    script = script.replace("collection install", "collection install --offline")
    assert run("bash", "-ec", script, cwd=committed).returncode == 0

    edited = committed / "clusters/dev/rendered/cas/service.yaml"
    rendered = edited.read_text()
    edited.write_text(rendered.replace("nativelink", "other", 1))
    git(committed, "commit", "--quiet", "--all", "--message", "Edit by hand")
    assert run("bash", "-ec", script, cwd=committed, check=False).returncode == 1
    assert edited.read_text() == rendered

    hosts = committed / "inventories/farm/hosts.yml"
    hosts.write_text(hosts.read_text().replace("gitops_provider: none", "gitops_provider: fluxx"))
    done = run("bash", "-ec", script, cwd=committed, check=False)
    assert done.returncode != 0
    assert "dev: gitops_provider: " in done.stdout


# --- the main job


def test_the_site_is_bootstrapped(site: Path, tmp_path: Path) -> None:
    offline = tmp_path / "offline.yml"
    offline.write_text(yaml.safe_dump(inventories.offline()))
    hosts = site / "inventories/farm/hosts.yml"
    inventory: dict[str, Any] = yaml.safe_load(hosts.read_text())
    with cluster.fresh("site") as embedded:
        inventory["all"]["hosts"] = {
            "embedded": {
                **inventory["all"]["hosts"]["dev"],
                "cluster_kubeconfig": str(embedded.kubeconfig),
                "cluster_context": embedded.context,
                "storage_classes_list": STORAGE,
            }
        }
        hosts.write_text(yaml.safe_dump(inventory, explicit_start=True))
        first = run("ansible-playbook", "nativelink.gitops.bootstrap", "-e", f"@{offline}", cwd=site).stdout
        assert "CLUSTERS" in first  # the site's own ansible.cfg
        assert f"{site}/.ansible/collections" in run("ansible-galaxy", "collection", "list", cwd=site).stdout
        assert (site / "clusters/embedded/rendered/cas/statefulset.yaml").is_file()
        assert "namespace/nativelink\n" in embedded.run("get", "namespaces", "-o", "name")

        before = contents(site)
        elsewhere = {"ANSIBLE_CONFIG": str(site / "ansible.cfg")}
        for playbook in ("validate", "render"):
            run("ansible-playbook", f"nativelink.gitops.{playbook}", cwd=tmp_path, **elsewhere)
        assert contents(site) == before
        assert [path.name for path in tmp_path.iterdir()] == ["offline.yml"]


def test_the_trees_of_a_cluster_are_beside_its_own_inventory(collection: Collection, tmp_path: Path) -> None:
    hosts = {"cluster_kubeconfig": "/nowhere", "storage_classes_list": STORAGE, "nativelink_edge": "none"}
    inventories = {
        "folder": "a/inventories/farm",
        "file": "b/inventories/hosts.yml",
        "nested": "inventories/c/inventories/farm/hosts.yml",
        "outside": "d/farm",
    }
    sources: list[str | Path] = []
    for name, inventory in inventories.items():
        path = tmp_path / inventory
        file = path if path.suffix else path / "hosts.yml"
        file.parent.mkdir(parents=True)
        file.write_text(yaml.safe_dump({"all": {"hosts": {name: {**hosts, "cluster_context": name}}}}))
        sources += ["-i", path]
    path = {"ANSIBLE_COLLECTIONS_PATH": str(collection.path)}
    run("ansible-playbook", *sources, "nativelink.gitops.render", cwd=collection.path, **path)
    assert {str(each.relative_to(tmp_path).parent) for each in tmp_path.rglob("rendered")} == {
        "a/clusters/folder",
        "b/clusters/file",
        "inventories/c/clusters/nested",
        "d/farm/clusters/outside",
    }
