"""Reads a kubeconfig without connecting to the cluster."""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import yaml


class KubeconfigError(ValueError):
    """A kubeconfig that cannot be read. The message gives the reason."""


def servers(path: str) -> Mapping[str, str]:
    """The address of each context's API server in the kubeconfig at `path`, or "" if the context has none."""
    file = Path(path).expanduser()
    try:
        config = yaml.load(file.read_text(), yaml.CSafeLoader) or {}
        clusters = {entry["name"]: entry["cluster"].get("server", "") for entry in config.get("clusters") or ()}
        return {
            entry["name"]: _normal(clusters.get(entry["context"].get("cluster"), ""))
            for entry in config.get("contexts") or ()
        }
    except FileNotFoundError:
        raise KubeconfigError("does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise KubeconfigError(f"cannot be read ({getattr(error, 'strerror', None) or error})") from None
    except (yaml.YAMLError, AttributeError, KeyError, TypeError):
        raise KubeconfigError("is not a kubeconfig") from None


def _normal(server: str) -> str:
    """A normal form, so that equal servers compare equal: lower case, an explicit port, no slash at the end."""
    try:
        url = urlsplit(server)
        port = url.port or {"http": 80, "https": 443}.get(url.scheme)
    except ValueError:
        return server
    return f"{url.scheme}://{url.hostname}:{port}{url.path.rstrip('/')}" if url.hostname else server
