# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's certificates: from a pinned root to the key that signed.

Zone: owner (trusted). Pure: no I/O, no clock.
Spec: RFC 5280 section 6.1 as far as NVIDIA's chains go; TCG DICE Attestation Architecture 1.1, section 6.1 (TcbInfo).

What must hold: the root is the pinned one; each certificate is signed by the next and names it; each but the first is an
authority whose path is long enough; all are valid at the time. Left out, and why: name constraints and policies, of which these
chains have none. An unknown critical extension is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID, NameOID

from cvmtool.errors import FormatError
from cvmtool.owner.checks import Check, NotGenuineError

DEVICE_ROOT = bytes.fromhex("102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48")
"""SHA-256 of the DER of "NVIDIA Device Identity CA"."""
RIM_ROOT = bytes.fromhex("12977b5115acb0381179279fffeb5a8c4d264971ebb32298023a465fa41df5d1")
"""SHA-256 of the DER of "NVIDIA CoRIM signing Root CA"."""

UNREADABLE = (
    *(ValueError, TypeError, UnsupportedAlgorithm),
    *(x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType),
)
"""What the library raises for a certificate, or a status, that it cannot read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaRoots:
    """Whose signatures count, by SHA-256 of the DER: of GPUs, and of reference manifests. Tests have their own."""

    device: bytes
    manifests: bytes


NVIDIA = NvidiaRoots(device=DEVICE_ROOT, manifests=RIM_ROOT)
MAX_CHAIN = 8
_KNOWN_CRITICAL = {ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE, ExtensionOID.EXTENDED_KEY_USAGE}
_TCB_INFO = ("2.23.133.5.4.1", "2.23.133.5.4.1.1")
_FIRMWARE_ID = bytes.fromhex("060960864801650304020204 30")
"""In a TcbInfo: the object identifier of SHA-384, then an OCTET STRING of 48 bytes follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A verified chain; `verify_chain` makes it. The signing certificate comes first, the pinned root last."""

    certificates: tuple[x509.Certificate, ...]

    @property
    def leaf(self) -> x509.Certificate:
        """The certificate of the signing key."""
        return self.certificates[0]

    @property
    def key(self) -> ec.EllipticCurvePublicKey:
        """The signing key, on P-384."""
        key = self.leaf.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
            raise FormatError("the signing certificate's key is not on P-384")
        return key

    @property
    def chip(self) -> str:
        """The chip by its name in the certificate, such as GH100; empty if there is none."""
        return _name(self.leaf, NameOID.COMMON_NAME).partition(" ")[0]

    @property
    def device(self) -> str:
        """The one GPU: the serial number that NVIDIA gave its identity key, in hex; empty if there is none."""
        return _name(self.certificates[1], NameOID.SERIAL_NUMBER).lower()

    @property
    def firmware_id(self) -> bytes | None:
        """The digest of the firmware that made the signing key, 48 bytes; None if the certificate states none."""
        for extension in self.leaf.extensions:
            value = extension.value
            if extension.oid.dotted_string in _TCB_INFO and isinstance(value, x509.UnrecognizedExtension):
                _, found, rest = value.value.partition(_FIRMWARE_ID)
                return rest[:48] if found and len(rest) >= 48 else None
        return None


def parse_chain(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Read certificates in PEM, unverified.

    Raises:
        FormatError: none, too many, or not certificates.
    """
    try:
        chain = tuple(x509.load_pem_x509_certificates(pem))
    except UNREADABLE as error:
        raise FormatError("the certificates are not PEM", detail=str(error)) from error
    if not 2 <= len(chain) <= MAX_CHAIN:
        raise FormatError(f"the chain has {len(chain)} certificates; 2 to {MAX_CHAIN} are required")
    return chain


def verify_chain(chain: Sequence[x509.Certificate], root: bytes, at: datetime, *, what: str) -> Chain:
    """Return the chain if it leads from its first certificate to the pinned `root` (SHA-256 of the DER) at the time `at`.

    Raises:
        NotGenuineError: it does not.
        FormatError: a certificate cannot be read.
    """
    for certificate in chain:
        _require_readable(certificate, what)
    fingerprint = chain[-1].fingerprint(hashes.SHA256())
    _require(what, "a root of its own", f"nvidia's root, {root.hex()}", passed=fingerprint == root)
    for depth, certificate in enumerate(chain):
        name = certificate.subject.rfc4514_string()[:128]
        until, since = certificate.not_valid_after_utc, certificate.not_valid_before_utc
        _require(what, f"{name}, valid until {until:%F}", f"a certificate that is valid at {at:%F}",
                 passed=since <= at <= until)  # fmt: skip
        _require(what, f"{name} without authority", "an authority", passed=depth == 0 or _may_issue(certificate, depth))
        odd = [
            item.oid.dotted_string
            for item in certificate.extensions
            if item.critical and item.oid not in _KNOWN_CRITICAL
        ]
        _require(what, f"{name} with the critical extension {odd[:1]}", "known critical extensions", passed=not odd)
    for certificate, issuer in pairwise(chain):
        try:
            certificate.verify_directly_issued_by(issuer)
        except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
            _require(
                what, f"{certificate.subject.rfc4514_string()[:128]} not signed by the next", "a chain", passed=False
            )
    return Chain(certificates=tuple(chain))


def _require_readable(certificate: x509.Certificate, what: str) -> None:
    """Ask for every part that is read later: the library reads most of a certificate when it is asked, and refuses it then."""
    try:
        _ = (certificate.subject, certificate.issuer, certificate.extensions, certificate.signature_hash_algorithm)
        _ = (certificate.not_valid_before_utc, certificate.not_valid_after_utc, certificate.public_key())
    except UNREADABLE as error:
        raise FormatError(f"{what}: a certificate cannot be read", detail=str(error)) from error


def _may_issue(certificate: x509.Certificate, depth: int) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return False
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        usage = True
    room = constraints.path_length is None or constraints.path_length >= depth - 1
    return constraints.ca and usage and room


def _require(what: str, actual: str, required: str, *, passed: bool) -> None:
    if not passed:
        raise NotGenuineError(
            Check(code=what, actual=actual, required=required, passed=False, why="it leads to NVIDIA's own key")
        )


def _name(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> str:
    values = certificate.subject.get_attributes_for_oid(oid)
    text = values[0].value if values else ""
    return text if isinstance(text, str) and text.isascii() and text.isprintable() and len(text) <= 64 else ""
