"""What asks a cluster in process leaves none of its keys behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import yaml
from nativelink_gitops.api import Api, ApiError

from testbed.cluster import Cluster


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, in which whatever is temporary is made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_keys_are_in_no_file(dev: Cluster, temporary: Path) -> None:
    api = Api(str(dev.kubeconfig), dev.context)
    assert list(temporary.iterdir()) == []
    assert (api.get("/api/v1/namespaces/default") or {})["kind"] == "Namespace"
    assert list(temporary.iterdir()) == []
    # The files of one are not those of the next.
    assert Api(str(dev.kubeconfig), dev.context).get("/api/v1/namespaces/default")


def test_a_kubeconfig_without_trust(dev: Cluster, temporary: Path, tmp_path: Path) -> None:
    config = yaml.safe_load(dev.kubeconfig.read_text())
    del config["clusters"][0]["cluster"]["certificate-authority-data"]
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ApiError, match="certificate verify failed"):
        Api(str(path), dev.context).get("/version")
    config["clusters"][0]["cluster"]["insecure-skip-tls-verify"] = True
    path.write_text(yaml.safe_dump(config))
    assert Api(str(path), dev.context).get("/version")
    assert list(temporary.iterdir()) == []
