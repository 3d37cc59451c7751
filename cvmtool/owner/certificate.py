# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""X.509 certificates as AMD issues them: read strictly, checked for their role, signatures verified.

Zone: owner (trusted). Pure: no I/O, no clock.
Spec: AMD 57230 VCEK and KDS; RFC 5280; RFC 4055 for the parameters of RSASSA-PSS.

`parse_certificate` reads; it trusts nothing. Everything above a report is signed with RSASSA-PSS over SHA-384 (MGF1
with SHA-384, salt of 48 bytes) by an RSA-4096 key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from cvmtool.errors import FormatError
from cvmtool.owner.der import BOOLEAN, OCTET_STRING, SEQUENCE, SET, Der, context

MAX_CERTIFICATE_BYTES = 16 << 10
MAX_CERTIFICATES = 16
"""In one blob, and in one verification."""

_NAME_PARTS = {"2.5.4.3": "CN", "2.5.4.6": "C", "2.5.4.7": "L", "2.5.4.8": "ST", "2.5.4.10": "O", "2.5.4.11": "OU"}
_AMD_NAME = [
    ("OU", "Engineering"),
    ("C", "US"),
    ("L", "Santa Clara"),
    ("ST", "CA"),
    ("O", "Advanced Micro Devices"),
]

# The same in DER, as AMD spells it. Every certificate starts so; a name that does not is read part by part.
_AMD_RDNS = bytes.fromhex(
    "31143012060355040b0c0b456e67696e656572696e67310b300906035504061302555331143012060355"
    "04070c0b53616e746120436c617261310b300906035504080c024341311f301d060355040a0c16416476"
    "616e636564204d6963726f2044657669636573"
)

# RSASSA-PSS { SHA-384, MGF1 { SHA-384 }, salt 48 } with the trailer field left out (its default) or spelled out.
_PSS = bytes.fromhex(
    "06092a864886f70d01010a3034a00f300d06096086480165030402020500"
    "a11c301a06092a864886f70d010108300d06096086480165030402020500a203020130"
)
_PSS_SPELLED = bytes.fromhex(
    "06092a864886f70d01010a3039a00f300d06096086480165030402020500"
    "a11c301a06092a864886f70d010108300d06096086480165030402020500a203020130a303020101"
)

_PADDING = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=48)
_RSA_BITS = 4096
_RSA_EXPONENT = 65537


class Extension(NamedTuple):
    """One extension: its raw value (the content of the OCTET STRING) and whether it must be understood."""

    critical: bool
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A certificate that was read, and no more: unverified.

    `issuer` and `subject` are the raw DER names (compare them as bytes); `common_name` is the subject's CN if the rest of
    its name is exactly AMD's, else None; `signed` are the bytes that `signature`
    covers; `spki` is the subject's public key; `extensions` by dotted object identifier.
    """

    der: bytes
    signed: bytes
    signature: bytes
    serial: int
    issuer: bytes
    subject: bytes
    common_name: str | None
    not_before: datetime
    not_after: datetime
    spki: bytes
    extensions: dict[str, Extension]

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the DER, 32 bytes."""
        return hashlib.sha256(self.der).digest()


def parse_certificate(der: bytes) -> Certificate:
    """Read one DER certificate of at most 16 KiB.

    Raises:
        FormatError: not DER, not version 3, signed with anything but RSASSA-PSS over SHA-384, or an extension twice.
    """
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise FormatError(f"certificate has {len(der)} bytes; required: at most {MAX_CERTIFICATE_BYTES}")
    signed, algorithm, signature = open_signed(der, "certificate")
    body = Der(signed, "certificate").enter(SEQUENCE)
    version = body.enter(context(0))
    if version.integer() != 2:
        raise FormatError("certificate version is not 3; required: 3")
    version.finish()
    serial = body.integer()
    require_pss(body.take(SEQUENCE), algorithm, "certificate")
    issuer = body.take_whole(SEQUENCE)
    validity = body.enter(SEQUENCE)
    not_before, not_after = validity.time(), validity.time()
    validity.finish()
    subject = body.take_whole(SEQUENCE)
    spki = body.take_whole(SEQUENCE)
    wrapped = body.enter(context(3))
    extensions = parse_extensions(wrapped.enter(SEQUENCE), "certificate")
    wrapped.finish()
    body.finish()
    return Certificate(
        der=der,
        signed=signed,
        signature=signature,
        serial=serial,
        issuer=issuer,
        subject=subject,
        common_name=amd_common_name(subject),
        not_before=not_before,
        not_after=not_after,
        spki=spki,
        extensions=extensions,
    )


def open_signed(der: bytes, what: str) -> tuple[bytes, bytes, bytes]:
    """Split what X.509 signs into the signed bytes, the outer algorithm and the signature.

    Raises:
        FormatError: not DER, or not of that shape.
    """
    outside = Der(der, what)
    outer = outside.enter(SEQUENCE)
    outside.finish()
    parts = outer.take_whole(SEQUENCE), outer.take(SEQUENCE), outer.bits()
    outer.finish()
    return parts


def require_pss(inner: bytes, outer: bytes, what: str) -> None:
    """Check both algorithm identifiers (their contents): equal, and RSASSA-PSS with exactly AMD's parameters.

    Raises:
        FormatError: another algorithm, other parameters, or the signed one differs from the one outside.
    """
    if inner != outer or inner not in (_PSS, _PSS_SPELLED):
        raise FormatError(f"{what} signature algorithm is {inner.hex()[:40]}; required: rsassa-pss, sha-384, salt 48")


def parse_extensions(sequence: Der, what: str) -> dict[str, Extension]:
    """Read a sequence of extensions: dotted object identifier -> extension.

    Raises:
        FormatError: not DER, none at all, or one twice.
    """
    extensions: dict[str, Extension] = {}
    while sequence.peek() is not None:
        entry = sequence.enter(SEQUENCE)
        oid = entry.oid()
        critical = entry.peek() == BOOLEAN
        if critical and not entry.boolean():
            raise FormatError(f"{what} extension {oid} spells out its default; required: der")
        if oid in extensions:
            raise FormatError(f"{what} extension {oid} occurs twice; required: once")
        extensions[oid] = Extension(critical=critical, value=entry.take(OCTET_STRING))
        entry.finish()
    if not extensions:
        raise FormatError(f"{what} has an empty sequence of extensions; required: one or more")
    return extensions


def amd_common_name(name: bytes) -> str | None:
    """Return the CN of a DER name whose other parts are exactly AMD's, in AMD's order; None for every other name.

    Raises:
        FormatError: not DER.
    """
    content = Der(name, "certificate name").take(SEQUENCE)
    known = content.startswith(_AMD_RDNS)
    *others, last = _name_parts(content[len(_AMD_RDNS) :] if known else content) or [("", "")]
    return last[1] if last[0] == "CN" and others == ([] if known else _AMD_NAME) else None


def _name_parts(content: bytes) -> list[tuple[str, str]]:
    parts = []
    rdns = Der(content, "certificate name")
    while rdns.peek() is not None:
        rdn = rdns.enter(SET)
        pair = rdn.enter(SEQUENCE)
        parts.append((_NAME_PARTS.get(pair.oid(), "?"), pair.text()))
        pair.finish()
        rdn.finish()
    return parts


_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----\s([^-]+)-----END CERTIFICATE-----")


_WHITESPACE = b" \t\n\r\v\f"


def split_certificates(blob: bytes) -> tuple[bytes, ...]:
    """Return the DER of each certificate in `blob`: one DER certificate, or PEM with at most 16.

    Raises:
        FormatError: neither of the two, too large or too many.
    """
    if len(blob) > MAX_CERTIFICATES * MAX_CERTIFICATE_BYTES:
        raise FormatError(f"certificates have {len(blob)} bytes; required: at most 262144")
    if blob[:1] == bytes((SEQUENCE,)):
        return (blob,)
    found = _PEM.findall(blob)
    if not found or len(found) != blob.count(b"-----BEGIN ") or len(found) > MAX_CERTIFICATES:
        raise FormatError(f"certificates are neither der nor pem with 1 to {MAX_CERTIFICATES} of them")
    try:
        return tuple(base64.b64decode(body.translate(None, _WHITESPACE), validate=True) for body in found)
    except binascii.Error as error:
        raise FormatError(f"certificate pem is not base64: {error}") from None


def rsa_key(spki: bytes) -> rsa.RSAPublicKey | None:
    """Return the key if it is RSA-4096 with exponent 65537, else None."""
    key = _load(spki)
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size != _RSA_BITS:
        return None
    return key if key.public_numbers().e == _RSA_EXPONENT else None


def p384_key(spki: bytes) -> ec.EllipticCurvePublicKey | None:
    """Return the key if it is a point on P-384, else None."""
    key = _load(spki)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        return None
    return key


def _load(spki: bytes) -> object:
    try:
        return serialization.load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm):
        return None


def signed_by(key: rsa.RSAPublicKey, signature: bytes, signed: bytes) -> bool:
    """Whether `signature` over `signed` is RSASSA-PSS by `key`, with exactly the parameters above."""
    try:
        key.verify(signature, signed, _PADDING, hashes.SHA384())
    except InvalidSignature:
        return False
    return True
