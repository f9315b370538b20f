"""The tarball holds what users need, and nothing else."""

from __future__ import annotations

import json
import re
import tarfile
from fnmatch import fnmatchcase

import yaml

from .conftest import ROOT, Collection

# `*` matches slashes, too.
WANTED = (
    *("CHANGELOG.md", "FILES.json", "LICENSE", "MANIFEST.json", "README.md", "SECURITY.md"),
    *("changelogs/*.yml", "changelogs/*.yaml", "tests/sanity/ignore-*.txt"),
    *("docs/*.md", "docs/*.png", "docs/*.svg", "meta/*.yml", "meta/*.txt", "playbooks/*.yml", "plugins/*.py"),
    *("roles/*", "schemas/cluster.schema.json"),
)


def test_the_tarball_holds_only_what_users_need(collection: Collection) -> None:
    with tarfile.open(collection.tarball) as tarball:
        names = [member.name for member in tarball if not member.isdir()]
    assert [name for name in names if not any(fnmatchcase(name, pattern) for pattern in WANTED)] == []
    # The collection does not work without these.
    assert {
        "docs/how-to.md",
        "meta/runtime.yml",
        "playbooks/bootstrap.yml",
        "playbooks/tasks/render.yml",
        "plugins/action/report.py",
        "plugins/modules/report.py",
        "roles/nativelink/files/dashboards/overview.json",
        "roles/nativelink/files/isolation/amd64",
        "roles/nativelink/files/isolation/arm64",
        "roles/node_agent/files/guard.o",
        "roles/nativelink/files/patches/README.md",
        "roles/nativelink/templates/cas/statefulset.yaml.j2",
        "tests/sanity/ignore-2.19.txt",
    } <= set(names)


def test_the_rest_of_the_repository_stays_out(collection: Collection) -> None:
    present = {path.name for path in collection.folder.iterdir()}
    assert {"testbed", "tests"} <= {path.name for path in ROOT.iterdir()}
    assert present.isdisjoint({"testbed", "clusters", "inventories", "molecule", "ansible.cfg", ".git", ".ansible"})
    assert [path.name for path in (collection.folder / "tests").iterdir()] == ["sanity"]


def test_the_version_is_that_of_the_repository(collection: Collection) -> None:
    version = json.loads((collection.folder / "MANIFEST.json").read_text())["collection_info"]["version"]
    assert version == yaml.safe_load((ROOT / "galaxy.yml").read_text())["version"]
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text()
    assert collection.tarball.name == f"nativelink-gitops-{version}.tar.gz"
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
