"""A stand-in for an identity provider, which signs tokens (JWT, RFC 7519) as those of CI systems and people do."""

import base64
import json
import time
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature


class Key:
    """A key of an issuer. ``public`` is its form in a set of keys (JWKS, RFC 7517)."""

    def __init__(self, name: str) -> None:
        self._name, self._key = name, ec.generate_private_key(ec.SECP256R1())
        point = self._key.public_key().public_numbers()
        coordinates = {axis: _text(getattr(point, axis).to_bytes(32)) for axis in "xy"}
        self.public = {"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": name, **coordinates}

    def token(self, *, algorithm: str = "ES256", minutes: float = 10, **claims: Any) -> str:
        """Return a token with these claims that ends in some minutes. ``algorithm="none"`` leaves it unsigned."""
        head = {"alg": algorithm, "kid": self._name, "typ": "JWT"}
        parts = (head, {"exp": int(time.time() + minutes * 60), **claims})
        signed = ".".join(_text(json.dumps(part).encode()) for part in parts)
        if algorithm == "none":
            return f"{signed}."
        numbers = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_text(b''.join(number.to_bytes(32) for number in numbers))}"


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
