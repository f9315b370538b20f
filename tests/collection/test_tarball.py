"""The tarball holds what users need, and nothing else."""

import tarfile
from fnmatch import fnmatchcase

from .conftest import Collection

# `*` matches slashes, too.
WANTED = (
    *("CHANGELOG.md", "FILES.json", "LICENSE", "MANIFEST.json", "README.md", "SECURITY.md"),
    *("changelogs/*.yml", "changelogs/*.yaml"),
    *("docs/*.md", "docs/*.png", "docs/*.svg", "meta/*.yml", "meta/*.txt", "playbooks/*.yml", "plugins/*.py"),
    *("roles/*", "schemas/cluster.schema.json"),
)


def test_the_tarball_holds_only_what_users_need(collection: Collection) -> None:
    with tarfile.open(collection.tarball) as tarball:
        names = [member.name for member in tarball if not member.isdir()]
    assert [name for name in names if not any(fnmatchcase(name, pattern) for pattern in WANTED)] == []
    # The other tests would not notice that these are missing.
    assert {"docs/how-to.md", "roles/nativelink/files/dashboards/overview.json"} <= set(names)
