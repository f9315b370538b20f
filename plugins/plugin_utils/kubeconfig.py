"""Reads the contexts and servers of a kubeconfig."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import yaml


class KubeconfigError(ValueError):
    """A kubeconfig cannot be read; the message gives the reason."""


def servers(path: str) -> Mapping[str, str]:
    """The address of the API server behind each context of the kubeconfig at `path` ("" where a context has none)."""
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
        raise KubeconfigError("is not a valid kubeconfig") from None


def _normal(server: str) -> str:
    """A server's address in one form: scheme and host in lower case, with its port and without a slash at the end."""
    try:
        url = urlsplit(server)
        port = url.port or {"http": 80, "https": 443}.get(url.scheme)
    except ValueError:
        return server
    return f"{url.scheme}://{url.hostname}:{port}{url.path.rstrip('/')}" if url.hostname else server
