# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What AMD writes into a VCEK or VLEK certificate: which chip or provider, at which TCB.

Zone: owner (trusted). Pure: no I/O.
Spec: AMD 57230 VCEK and KDS, section 3 (extensions under 1.3.6.1.4.1.3704.1).

Unknown extensions under that arc are passed over unless critical: rejecting them broke others when Turin added 3.9.
`productName` is read for display alone; AMD spells it in several ways.
"""

from __future__ import annotations

from dataclasses import dataclass

from cvmtool.errors import FormatError
from cvmtool.formats.report import SigningKey
from cvmtool.formats.tcb import ProductLine, Tcb
from cvmtool.owner.certificate import Certificate
from cvmtool.owner.der import IA5_STRING, OCTET_STRING, Der

AMD_ARC = "1.3.6.1.4.1.3704.1."
STRUCT_VERSION = AMD_ARC + "1"
PRODUCT_NAME = AMD_ARC + "2"
HWID = AMD_ARC + "4"
CSP_ID = AMD_ARC + "5"
SPL = {
    "bootloader": AMD_ARC + "3.1",
    "tee": AMD_ARC + "3.2",
    "snp": AMD_ARC + "3.3",
    "microcode": AMD_ARC + "3.8",
    "fmc": AMD_ARC + "3.9",
}
SPL_RESERVED = {"spl4": AMD_ARC + "3.4", "spl5": AMD_ARC + "3.5", "spl6": AMD_ARC + "3.6", "spl7": AMD_ARC + "3.7"}

STRUCT_VERSIONS = {ProductLine.MILAN: 0, ProductLine.GENOA: 0, ProductLine.TURIN: 1}
HWID_BYTES = {ProductLine.MILAN: 64, ProductLine.GENOA: 64, ProductLine.TURIN: 8}
COMMON_NAMES = {"SEV-VCEK": SigningKey.VCEK, "SEV-VLEK": SigningKey.VLEK}

_MAX_TEXT = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Vek:
    """The claims of a signing key's certificate.

    `hwid`: 64 bytes (8 on Turin), of a VCEK; `csp_id`: the provider's name, of a VLEK; the other one is None.
    """

    kind: SigningKey
    line: ProductLine
    struct_version: int
    product_name: str
    tcb: Tcb
    hwid: bytes | None
    csp_id: str | None


def parse_vek(certificate: Certificate, line: ProductLine) -> Vek:
    """Read AMD's extensions of a VCEK or VLEK that was issued by `line`.

    Raises:
        FormatError: not a VCEK or VLEK by name, an extension missing or malformed, or another line's version.
    """
    kind = COMMON_NAMES.get(certificate.common_name or "")
    if kind is None:
        raise FormatError(f"certificate name is {certificate.common_name}; required: {' or '.join(COMMON_NAMES)}")
    struct_version = _integer(certificate, STRUCT_VERSION, "structVersion")
    if struct_version != STRUCT_VERSIONS[line]:
        raise FormatError(f"structVersion is {struct_version}; required: {STRUCT_VERSIONS[line]} on {line}")
    return Vek(
        kind=kind,
        line=line,
        struct_version=struct_version,
        product_name=_text(certificate, PRODUCT_NAME, "productName"),
        tcb=_tcb(certificate, line),
        hwid=_hwid(certificate, line, expected=kind is SigningKey.VCEK),
        csp_id=_csp_id(certificate, expected=kind is SigningKey.VLEK),
    )


def _tcb(certificate: Certificate, line: ProductLine) -> Tcb:
    turin = line is ProductLine.TURIN
    _require(certificate, SPL["fmc"], "fmcSPL", present=turin)
    _require(certificate, SPL_RESERVED["spl4"], "spl4", present=not turin)
    for name, oid in SPL_RESERVED.items():
        if oid in certificate.extensions or name != "spl4":
            value = _integer(certificate, oid, name)
            if value:
                raise FormatError(f"{name} is {value}; required: 0")
    names = [name for name in SPL if turin or name != "fmc"]
    return Tcb(line=line, **{name: _integer(certificate, SPL[name], f"{name} SPL") for name in names})


def _require(certificate: Certificate, oid: str, name: str, *, present: bool) -> None:
    if (oid in certificate.extensions) != present:
        raise FormatError(f"certificate {'lacks' if present else 'has'} {name} ({oid})")


def _value(certificate: Certificate, oid: str, name: str) -> Der:
    _require(certificate, oid, name, present=True)
    return Der(certificate.extensions[oid].value, f"certificate {name}")


def _integer(certificate: Certificate, oid: str, name: str) -> int:
    cursor = _value(certificate, oid, name)
    value = cursor.integer()
    cursor.finish()
    if value > 255:
        raise FormatError(f"certificate {name} is {value}; required: 0 to 255")
    return value


def _text(certificate: Certificate, oid: str, name: str) -> str:
    cursor = _value(certificate, oid, name)
    content = cursor.take(IA5_STRING)
    cursor.finish()
    if len(content) > _MAX_TEXT or not content.isascii() or not content.decode("ascii").isprintable():
        raise FormatError(
            f"certificate {name} is {content.hex()[:64]}; required: at most {_MAX_TEXT} printable characters"
        )
    return content.decode("ascii")


def _hwid(certificate: Certificate, line: ProductLine, *, expected: bool) -> bytes | None:
    _require(certificate, HWID, "HWID", present=expected)
    if not expected:
        return None
    raw = certificate.extensions[HWID].value
    size = HWID_BYTES[line]
    if len(raw) != size:
        # Some issuers wrap it. Length decides, never the first byte: raw identifiers may start with any.
        cursor = Der(raw, "certificate HWID")
        raw = cursor.take(OCTET_STRING)
        cursor.finish()
    if len(raw) != size:
        raise FormatError(f"certificate HWID has {len(raw)} bytes; required: {size} on {line}")
    return raw


def _csp_id(certificate: Certificate, *, expected: bool) -> str | None:
    _require(certificate, CSP_ID, "CSP_ID", present=expected)
    return _text(certificate, CSP_ID, "CSP_ID") if expected else None
