"""Trees for the tests: rendered in process from variables that a test states, or the committed ones."""

import re
import subprocess
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils import specs

from testbed import build

ROOT = Path(__file__).resolve().parents[1]
CLUSTERS = ROOT / "clusters"
VERSION = str(yaml.safe_load((ROOT / "roles/nativelink/defaults/main.yml").read_text())["nativelink_version"])
"""The default version of NativeLink, which the committed trees have."""
Values = dict[str, Any]
Object = dict[str, Any]


def values_of(cluster: str = "test", **variables: Any) -> Values:
    """Return the renderer's input for a cluster with these variables. Templates are plain texts here."""
    # The last four have a default that is a template.
    stated = {
        "storage_classes_list": [{"name": "local-path", "preset": "local-path"}],
        "nativelink_edge_tls_secret": "edge-tls",
        "nativelink_edge_client_ca_secret": "clients-ca",
        "ingress_class_name": "nativelink",
        "ingress_namespace": "edge",
        "gitops_namespace": "gitops",
        "gitops_path": f"clusters/{cluster}",
        **variables,
    }
    return specs.effective({"inventory_hostname": cluster, **stated}, lambda text: text)


def objects_of(files: dict[str, str]) -> list[Object]:
    """Return the objects of a rendered tree, without the kustomization and the generated ConfigMaps."""
    paths = yaml.load(files["kustomization.yaml"], yaml.CSafeLoader)["resources"]
    return [yaml.load(files[path], yaml.CSafeLoader) for path in paths]


def find(objects: list[Object], kind: str, name: str) -> Object:
    """Return the one object of this kind and name."""
    (found,) = [item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name]
    return found


def resource(kind: str, name: str, namespace: str = "", **fields: Any) -> Object:
    """Return an object of a kind such as ``apps/v1/Deployment`` or ``v1/Secret``. ``metadata`` may have more."""
    version, _, kind = kind.rpartition("/")
    metadata = {"name": name, **({"namespace": namespace} if namespace else {}), **fields.pop("metadata", {})}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **fields}


def committed(cluster: str) -> dict[str, str]:
    """Return the files of a committed cluster's tree, by path below rendered/."""
    return files_of(CLUSTERS / cluster / "rendered")


def files_of(folder: Path) -> dict[str, str]:
    """Return the files of a rendered tree, by path below its folder."""
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def documents(text: str) -> list[Object]:
    """Return the objects that kustomize or Helm prints."""
    # Neither quotes a "=", which is a type of its own in YAML 1.1.
    found = yaml.load_all(re.sub(r": =$", ': "="', text, flags=re.MULTILINE), yaml.CSafeLoader)
    return [item for item in found if item]


def kustomized(folder: Path) -> list[Object]:
    """Return the objects that kustomize builds of a folder, as both engines do."""
    command = [build.program("kubectl"), "kustomize", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return documents(done.stdout)
