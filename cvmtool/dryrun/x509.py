# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Write certificates and revocation lists byte for byte as AMD lays them out.

Zone: dryrun (simulated; never confidential). Pure: no I/O, the time comes in.
Spec: AMD 57230 VCEK and KDS; RFC 5280; RFC 4055.

Why not the library's builder: AMD numbers every VCEK 0, and the builder refuses that. A dry run that differed from AMD
here would hide exactly the cases that break verifiers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

Extensions = Sequence[tuple[str, bool, bytes]]
"""Dotted object identifier, critical, content of the OCTET STRING."""

_AMD_NAME = (
    ("2.5.4.11", "Engineering"),
    ("2.5.4.6", "US"),
    ("2.5.4.7", "Santa Clara"),
    ("2.5.4.8", "CA"),
    ("2.5.4.10", "Advanced Micro Devices"),
)
_COUNTRY = "2.5.4.6"
_COMMON_NAME = "2.5.4.3"
_UTC_TIME_ENDS = 2050


def tlv(tag: int, *contents: bytes) -> bytes:
    """Return a DER element with the concatenated `contents`."""
    content = b"".join(contents)
    if len(content) < 0x80:
        return bytes((tag, len(content))) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def sequence(*contents: bytes) -> bytes:
    """Return a SEQUENCE."""
    return tlv(0x30, *contents)


def integer(value: int) -> bytes:
    """Return an INTEGER that is not negative."""
    return tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def octets(value: bytes) -> bytes:
    """Return an OCTET STRING."""
    return tlv(0x04, value)


def bits(value: bytes, unused: int = 0) -> bytes:
    """Return a BIT STRING whose last byte has `unused` bits without meaning."""
    return tlv(0x03, bytes((unused,)), value)


def ia5(text: str) -> bytes:
    """Return an IA5String."""
    return tlv(0x16, text.encode("ascii"))


def oid(dotted: str) -> bytes:
    """Return an OBJECT IDENTIFIER."""
    first, second, *rest = map(int, dotted.split("."))
    content = bytearray()
    for arc in (40 * first + second, *rest):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(arc & 0x7F | 0x80)
        content += bytes(reversed(groups))
    return tlv(0x06, bytes(content))


def time(value: datetime) -> bytes:
    """Return a UTCTime, or a GeneralizedTime from 2050 on (RFC 5280 4.1.2.5)."""
    value = value.astimezone(UTC)
    if value.year < _UTC_TIME_ENDS:
        return tlv(0x17, f"{value:%y%m%d%H%M%S}Z".encode("ascii"))
    return tlv(0x18, f"{value:%Y%m%d%H%M%S}Z".encode("ascii"))


def name(common_name: str) -> bytes:
    """Return AMD's distinguished name with this CN."""

    def part(kind: str, text: str) -> bytes:
        return tlv(0x31, sequence(oid(kind), tlv(0x13 if kind == _COUNTRY else 0x0C, text.encode("ascii"))))

    return sequence(*(part(kind, text) for kind, text in (*_AMD_NAME, (_COMMON_NAME, common_name))))


_SHA384 = sequence(oid("2.16.840.1.101.3.4.2.2"), tlv(0x05))
_PSS = sequence(
    oid("1.2.840.113549.1.1.10"),
    sequence(
        tlv(0xA0, _SHA384),
        tlv(0xA1, sequence(oid("1.2.840.113549.1.1.8"), _SHA384)),
        tlv(0xA2, integer(48)),
        tlv(0xA3, integer(1)),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a certificate is about: serial number, CN, SubjectPublicKeyInfo (DER), validity and extensions."""

    serial: int
    common_name: str
    spki: bytes
    not_before: datetime
    not_after: datetime
    extensions: Extensions


def certificate(subject: Subject, issuer: str, key: rsa.RSAPrivateKey) -> bytes:
    """Return the DER of a certificate that the CA with CN `issuer` and `key` issues."""
    return _sign(
        sequence(
            tlv(0xA0, integer(2)),
            integer(subject.serial),
            _PSS,
            name(issuer),
            sequence(time(subject.not_before), time(subject.not_after)),
            name(subject.common_name),
            subject.spki,
            tlv(0xA3, _extensions(subject.extensions)),
        ),
        key,
    )


def revocation_list(
    issuer: str, key: rsa.RSAPrivateKey, revoked: Sequence[int], this_update: datetime, next_update: datetime
) -> bytes:
    """Return the DER of a list that revokes the serial numbers `revoked`."""
    entries = sequence(*(sequence(integer(serial), time(this_update)) for serial in revoked)) if revoked else b""
    number = _extensions([("2.5.29.20", False, integer(1))])
    return _sign(
        sequence(integer(1), _PSS, name(issuer), time(this_update), time(next_update), entries, tlv(0xA0, number)),
        key,
    )


def _extensions(extensions: Extensions) -> bytes:
    return sequence(
        *(
            sequence(oid(identifier), tlv(0x01, b"\xff") if critical else b"", octets(value))
            for identifier, critical, value in extensions
        )
    )


def _sign(body: bytes, key: rsa.RSAPrivateKey) -> bytes:
    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=48)
    return sequence(body, _PSS, bits(key.sign(body, pss, hashes.SHA384())))
