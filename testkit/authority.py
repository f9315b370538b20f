"""Certificates for tests and for conformance. They are made for each run, so that Git contains none."""

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_PEM = serialization.Encoding.PEM


class Authority:
    """A CA. ``pem`` is its certificate."""

    def __init__(self, name: str) -> None:
        self._name, self._key = name, ec.generate_private_key(ec.SECP256R1())
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        self.pem = self._signed(name, self._key.public_key(), constraints, days=365)  # an alert looks ahead 30 days

    def issue(self, name: str, *hosts: x509.GeneralName, days: int = 1) -> tuple[bytes, bytes]:
        """Return a certificate for these hosts, or for a client, that is valid for some days, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        names = x509.SubjectAlternativeName(hosts or (x509.DNSName(name),))
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        return self._signed(name, key.public_key(), names, usage, days=days), private

    def revoked(self, *certificates: bytes) -> bytes:
        """Return a list (CRL) that revokes these certificates of the CA, and is valid for a day."""
        now = datetime.datetime.now(datetime.UTC)
        made = x509.CertificateRevocationListBuilder(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self._name)]), now, now + datetime.timedelta(days=1)
        )
        for each in certificates:
            serial = x509.load_pem_x509_certificate(each).serial_number
            revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            made = made.add_revoked_certificate(revoked)
        return made.sign(self._key, hashes.SHA256()).public_bytes(_PEM)

    def _signed(
        self, name: str, key: ec.EllipticCurvePublicKey, *extensions: x509.ExtensionType, days: int = 1
    ) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self._name)]))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=days))
        )
        for each in extensions:
            made = made.add_extension(each, critical=isinstance(each, x509.BasicConstraints))
        return made.sign(self._key, hashes.SHA256()).public_bytes(_PEM)
