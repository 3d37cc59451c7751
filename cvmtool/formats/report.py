# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""ATTESTATION_REPORT, versions 2 to 5: 1184 bytes in which a processor says what it launched.

Zone: shared. Pure: no I/O, no signature check: what `parse_report` returns is unverified.
Spec: AMD 56860 SEV-SNP Firmware ABI, ATTESTATION_REPORT and MSG_REPORT_RSP. Little-endian throughout.

Every reserved byte must be zero, so that a report has one spelling: `parse_report(x).encode() == x`. A verifier still
hashes the bytes it received and never a re-encoding. Two things differ by version: v2 has no CPUID fields, and the
mitigation vectors belong to v5. v4 leaves their sixteen bytes undefined in public texts: they may hold anything
there, are kept, and are never used.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from operator import attrgetter
from typing import Any

from cvmtool.errors import FormatError
from cvmtool.formats.policybits import GuestPolicy, PlatformInfo
from cvmtool.formats.tcb import TCB_BYTES, Cpuid, ProductLine, Tcb, parse_tcb

REPORT_BYTES = 1184
SIGNED_BYTES = 0x2A0
KNOWN_VERSIONS = (2, 3, 4, 5)

SIGNATURE_ALGO_P384_SHA384 = 1
VMPL_HOST = 0xFFFF_FFFF
"""VMPL of a report that the host asked for itself (SNP_HV_REPORT_REQ): it says nothing of who asked."""

MAX_VMPL = 3

P384_ORDER = int("ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973", 16)
"""Order of the curve's group: R and S are from 1 to one less."""

# Name and struct format of every field up to the signature, in order; every gap is a field, too.
_LAYOUT = {
    "version": "I",
    "guest_svn": "I",
    "policy": "Q",
    "family_id": "16s",
    "image_id": "16s",
    "vmpl": "I",
    "algorithm": "I",
    "current_tcb": "8s",
    "platform_info": "Q",
    "signer_info": "I",
    "reserved_04c": "4s",
    "report_data": "64s",
    "measurement": "48s",
    "host_data": "32s",
    "id_key_digest": "48s",
    "author_key_digest": "48s",
    "report_id": "32s",
    "report_id_ma": "32s",
    "reported_tcb": "8s",
    "cpuid": "3s",
    "reserved_18b": "21s",
    "chip_id": "64s",
    "committed_tcb": "8s",
    "current_firmware": "4s",
    "committed_firmware": "4s",
    "launch_tcb": "8s",
    "launch_mit_vector": "Q",
    "current_mit_vector": "Q",
    "reserved_208": "152s",
}
_BODY = struct.Struct("<" + "".join(_LAYOUT.values()))
_CONVERTED = {"policy", "platform_info", "algorithm", "signer_info", "cpuid", "current_firmware", "committed_firmware"}
_PLAIN = tuple(name for name in _LAYOUT if name not in _CONVERTED and not name.startswith("reserved"))
_COORDINATE = 72
_COORDINATE_USED = 48


class SigningKey(IntEnum):
    """SIGNING_KEY: which key signed. NONE: the report is not signed."""

    VCEK = 0
    VLEK = 1
    NONE = 7


_SIGNING_KEYS = {int(key): key for key in SigningKey}


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmwareVersion:
    """Version of the SEV firmware: one byte each. Build numbers are comparable within one product line only."""

    major: int
    minor: int
    build: int

    def key(self) -> tuple[int, int, int]:
        """Return what orders two versions."""
        return (self.major, self.minor, self.build)

    def encode(self) -> bytes:
        """Return build, minor, major and a zero byte, in this order."""
        return bytes((self.build, self.minor, self.major, 0))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.build}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tcbs:
    """The four TCB_VERSIONs of a report, decoded. `reported` is the one that the signing key was derived from."""

    current: Tcb
    reported: Tcb
    committed: Tcb
    launch: Tcb


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """An attestation report. Unverified. Names are AMD's; byte strings have the sizes of the specification.

    `family_id`, `image_id`: 16. `report_data`, `chip_id`: 64. `measurement`, `id_key_digest`, `author_key_digest`: 48.
    `host_data`, `report_id`, `report_id_ma`: 32. The TCBs are raw (8 bytes): `tcbs` decodes them for a product line.
    `signature_r` and `signature_s` are numbers; `cpuid` is None in version 2.
    """

    version: int
    guest_svn: int
    policy: GuestPolicy
    family_id: bytes
    image_id: bytes
    vmpl: int
    current_tcb: bytes
    platform_info: PlatformInfo
    author_key_en: bool
    mask_chip_key: bool
    signing_key: SigningKey
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    cpuid: Cpuid | None
    chip_id: bytes
    committed_tcb: bytes
    current_firmware: FirmwareVersion
    committed_firmware: FirmwareVersion
    launch_tcb: bytes
    launch_mit_vector: int
    current_mit_vector: int
    signature_r: int
    signature_s: int

    def __post_init__(self) -> None:
        sizes = dict(zip(_SIZES, map(len, _sized(self)), strict=True))
        if sizes != _SIZES:
            name = next(name for name in _SIZES if sizes[name] != _SIZES[name])
            raise FormatError(f"{name} has {sizes[name]} bytes; required: {_SIZES[name]}")
        _check_version(self)

    @property
    def line(self) -> ProductLine | None:
        """The product line by CPUID: None in version 2, which has none, and for an unknown processor."""
        return None if self.cpuid is None else self.cpuid.line

    @property
    def mitigations(self) -> tuple[int, int] | None:
        """LAUNCH_MIT_VECTOR and CURRENT_MIT_VECTOR, None in versions where they have no published meaning."""
        return (self.launch_mit_vector, self.current_mit_vector) if self.version >= 5 else None

    @property
    def signed(self) -> bytes:
        """The 672 bytes that the signature covers. To verify a received report, hash what was received instead."""
        return self.encode()[:SIGNED_BYTES]

    def tcbs(self, line: ProductLine) -> Tcbs:
        """Decode the four TCBs in the layout of `line`.

        Raises:
            FormatError: a byte that this layout reserves is not zero.
        """
        return _tcbs(self.current_tcb, self.reported_tcb, self.committed_tcb, self.launch_tcb, line)

    def encode(self) -> bytes:
        """Return the 1184 bytes."""
        cpuid = self.cpuid or Cpuid(family=0, model=0, stepping=0)
        converted = {
            "policy": self.policy.value,
            "algorithm": SIGNATURE_ALGO_P384_SHA384,
            "platform_info": self.platform_info.value,
            "signer_info": self.author_key_en | self.mask_chip_key << 1 | self.signing_key << 2,
            "cpuid": bytes((cpuid.family, cpuid.model, cpuid.stepping)),
            "current_firmware": self.current_firmware.encode(),
            "committed_firmware": self.committed_firmware.encode(),
        }
        plain = {name: getattr(self, name) for name in _PLAIN}
        body = _BODY.pack(*((plain | converted).get(name, b"") for name in _LAYOUT))
        signature = self.signature_r.to_bytes(_COORDINATE, "little") + self.signature_s.to_bytes(_COORDINATE, "little")
        return (body + signature).ljust(REPORT_BYTES, b"\0")


_SIZES = {
    "family_id": 16,
    "image_id": 16,
    "current_tcb": TCB_BYTES,
    "report_data": 64,
    "measurement": 48,
    "host_data": 32,
    "id_key_digest": 48,
    "author_key_digest": 48,
    "report_id": 32,
    "report_id_ma": 32,
    "reported_tcb": TCB_BYTES,
    "chip_id": 64,
    "committed_tcb": TCB_BYTES,
    "launch_tcb": TCB_BYTES,
}
_sized = attrgetter(*_SIZES)


@lru_cache(maxsize=128)  # a report's are decoded once to be checked and once to be compared, and a fleet's are alike
def _tcbs(current: bytes, reported: bytes, committed: bytes, launch: bytes, line: ProductLine) -> Tcbs:
    return Tcbs(
        current=parse_tcb(current, line, field="current_tcb"),
        reported=parse_tcb(reported, line, field="reported_tcb"),
        committed=parse_tcb(committed, line, field="committed_tcb"),
        launch=parse_tcb(launch, line, field="launch_tcb"),
    )


def _check_version(report: Report) -> None:
    if report.version not in KNOWN_VERSIONS:
        raise FormatError(
            f"report version is {report.version}; required: {' or '.join(map(str, KNOWN_VERSIONS))}",
            hint="is there a newer cvmtool that knows this firmware's reports?",
        )
    if (report.cpuid is None) != (report.version == 2):
        raise FormatError(f"cpuid is {report.cpuid} in report version {report.version}; only version 2 has none")
    if report.version < 4 and (report.launch_mit_vector or report.current_mit_vector):
        raise FormatError(f"mitigation vectors are not zero; required: zero in report version {report.version}")
    if report.vmpl > MAX_VMPL and report.vmpl != VMPL_HOST:
        raise FormatError(f"vmpl is {report.vmpl:#x}; required: 0 to {MAX_VMPL}")
    line = report.line
    if line is not None:
        report.tcbs(line)
    elif report.version == 2:
        # Zero in both layouts; the rest waits for the certificate to say which line this is.
        for name in ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"):
            if any(getattr(report, name)[4:6]):
                raise FormatError(f"{name} is {getattr(report, name).hex()}; required: zero in bytes 4 and 5")
    # An unsigned report has no signature to speak of; `verify` refuses it by its SIGNING_KEY.
    if report.signing_key is not SigningKey.NONE:
        for name in ("signature_r", "signature_s"):
            if not 0 < getattr(report, name) < P384_ORDER:
                raise FormatError(f"{name} is out of range; required: 1 to the order of p-384 less one")


def parse_report(data: bytes) -> Report:
    """Read the 1184 bytes of an attestation report (unverified).

    Raises:
        FormatError: another size or version, a reserved bit or byte that is not zero, or a value out of its range.
    """
    if len(data) != REPORT_BYTES:
        raise FormatError(
            f"report has {len(data)} bytes; required: {REPORT_BYTES}",
            hint="is this a container around a report (a vTPM blob, an extended report)? it must be unwrapped first",
        )
    raw: dict[str, Any] = dict(zip(_LAYOUT, _BODY.unpack_from(data), strict=True))
    algorithm, signer_info, cpuid = raw.pop("algorithm"), raw.pop("signer_info"), raw.pop("cpuid")
    if algorithm != SIGNATURE_ALGO_P384_SHA384:
        raise FormatError(
            f"signature_algo is {algorithm}; required: {SIGNATURE_ALGO_P384_SHA384} (ecdsa p-384, sha-384)"
        )
    _must_be_zero("0x4c", raw.pop("reserved_04c"))
    _must_be_zero("0x18b", raw.pop("reserved_18b"))
    _must_be_zero("0x208", raw.pop("reserved_208"))
    _must_be_zero("0x330", data[SIGNED_BYTES + 2 * _COORDINATE :])
    has_cpuid = raw["version"] != 2
    if not has_cpuid:
        _must_be_zero("0x188", cpuid)
    raw["policy"] = GuestPolicy(raw["policy"])
    raw["platform_info"] = PlatformInfo(raw["platform_info"])
    raw["current_firmware"] = _firmware(raw["current_firmware"], "0x1eb")
    raw["committed_firmware"] = _firmware(raw["committed_firmware"], "0x1ef")
    return Report(
        **raw,
        author_key_en=bool(signer_info & 1),
        mask_chip_key=bool(signer_info & 2),
        signing_key=_signing_key(signer_info),
        cpuid=Cpuid(family=cpuid[0], model=cpuid[1], stepping=cpuid[2]) if has_cpuid else None,
        signature_r=_coordinate("signature_r", data[SIGNED_BYTES:][:_COORDINATE]),
        signature_s=_coordinate("signature_s", data[SIGNED_BYTES + _COORDINATE :][:_COORDINATE]),
    )


def _must_be_zero(offset: str, data: bytes) -> None:
    if data.strip(b"\0"):
        raise FormatError(f"reserved bytes at {offset} are {data.hex()[:32]}; required: zero")


def _signing_key(signer_info: int) -> SigningKey:
    if signer_info >> 5:
        raise FormatError(f"signer_info is {signer_info:#x}; required: bits 5 to 31 zero")
    key = _SIGNING_KEYS.get(signer_info >> 2 & 7)
    if key is None:
        raise FormatError(f"signing_key is {signer_info >> 2 & 7}; required: 0 (vcek), 1 (vlek) or 7 (none)")
    return key


def _firmware(data: bytes, reserved: str) -> FirmwareVersion:
    _must_be_zero(reserved, data[3:])
    return FirmwareVersion(major=data[2], minor=data[1], build=data[0])


def _coordinate(name: str, data: bytes) -> int:
    if data[_COORDINATE_USED:].strip(b"\0"):
        raise FormatError(f"{name} has more than {_COORDINATE_USED * 8} bits; required: upper 24 bytes zero")
    return int.from_bytes(data, "little")
