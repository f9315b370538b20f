"""Looks up the digest of an image's tag: the OCI distribution API of its registry, as far as that needs no login."""

import http.client
import json
import re
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlencode

from ansible.module_utils.urls import open_url

from .validation.formats import DIGEST

_SECONDS = 20
# An index, which has a manifest for each architecture, or the manifest of an image that has only one.
_ACCEPTED = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_OFFLINE = "or list its digest in digests_file"
_REMEDIES = {
    401: f"the repository is private or does not exist: correct the image, {_OFFLINE}",
    404: "correct the image or its tag",
    429: f"wait until the registry's limit is over, {_OFFLINE}",
}
_REMEDIES[403] = _REMEDIES[401]


class UnknownDigestError(Exception):
    """An image whose digest cannot be told. The arguments are the problem and the remedy."""


def digest_of(image: str) -> str:
    """The digest (`sha256:…`) of what `image`, a name with a tag, names: an index, or else a manifest.

    Proxies and certificates are those of the environment (HTTPS_PROXY, SSL_CERT_FILE). Raises UnknownDigestError.
    """
    host, repository, tag = place_of(image)
    url, headers = f"https://{host}/v2/{repository}/manifests/{tag}", {"Accept": ", ".join(_ACCEPTED)}
    try:
        try:
            answer = _open(url, method="HEAD", headers=headers)
        except urllib.error.HTTPError as error:
            challenge = error.headers.get("WWW-Authenticate", "")
            if error.code != 401 or not challenge.lower().startswith("bearer "):
                raise
            headers["Authorization"] = f"Bearer {_token(challenge)}"
            answer = _open(url, method="HEAD", headers=headers)
        digest = answer.headers.get("Docker-Content-Digest", "")
    except urllib.error.HTTPError as error:
        remedy = _REMEDIES.get(error.code, f"try again later, {_OFFLINE}")
        raise UnknownDigestError(f"{host} answers {error.code} {error.reason}", remedy) from None
    # open_url raises OSError and ValueError; an answer that ends too early raises HTTPException.
    except (OSError, ValueError, http.client.HTTPException) as error:
        remedy = f"check the network, HTTPS_PROXY and SSL_CERT_FILE, {_OFFLINE}"
        raise UnknownDigestError(f"{host} cannot be asked ({' '.join(str(error).split())})", remedy) from None
    if not re.fullmatch(DIGEST, digest):
        raise UnknownDigestError(f"{host} does not tell its digest", _OFFLINE.removeprefix("or "))
    return digest


def place_of(image: str) -> tuple[str, str, str]:
    """The host, the repository and the tag of an image's name, which Docker's rules complete."""
    name, _unused, tag = image.rpartition(":")
    if not name or "/" in tag:  # that colon is the one of a port
        name, tag = image, "latest"
    host, _unused, repository = name.partition("/")
    if not repository or not ("." in host or ":" in host or host == "localhost"):
        host, repository = "docker.io", name
    if host == "docker.io":
        host, repository = "registry-1.docker.io", repository if "/" in repository else f"library/{repository}"
    return host, repository, tag


def _token(challenge: str) -> str:
    """The token that a registry gives everybody who asks where its challenge says: `Bearer realm="…",service="…"`."""
    stated = urllib.request.parse_keqv_list(urllib.request.parse_http_list(challenge[len("bearer ") :]))
    realm = stated.get("realm", "")
    if not realm.startswith("https://"):
        raise ValueError(f"it wants a token from {realm!r}")
    asked = urlencode({key: stated[key] for key in ("service", "scope") if key in stated})
    answer = json.load(_open(f"{realm}?{asked}"))
    return str(answer.get("token") or answer.get("access_token"))


def _open(url: str, **arguments: Any) -> http.client.HTTPResponse:
    # A login of ~/.netrc would replace the token.
    return open_url(url, timeout=_SECONDS, http_agent="nativelink-gitops", use_netrc=False, **arguments)
