# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What reports come wrapped in: each container is unwrapped by name, and none is guessed.

Zone: shared. Pure: no I/O. Everything that comes out is unverified.
Spec: Linux Documentation/ABI/testing/configfs-tsm; AMD 56860 MSG_REPORT_RSP; AMD 56421 extended guest request;
Microsoft's IGVM attest request of a paravisor (OpenHCL), as a vTPM holds it in NV index 0x01400001.

    raw         the report                                                                            1184 bytes
    tsm         outblob: the report; auxblob, a file of its own: the certificate table (may be empty)
    extended    the report | the certificate table
    response    MSG_REPORT_RSP: u32 STATUS | u32 REPORT_SIZE | 24 zero bytes | the report | zeros
    azure-hcl   "HCLA" | u32 version 1 or 2 | 24 bytes of the host's | the report | runtime data | zeros
                runtime data: u32 size | u32 version 1 or 2 | u32 type 2 (SNP) | u32 hash 1 to 3 | u32 n | n bytes of claims

Integers are little-endian. Under azure-hcl REPORT_DATA is the hash of the claims (SHA-256, 384 or 512), zero-filled to 64
bytes: `Claims.report_data` says what it must be, and the caller compares. The header's other fields and the size of the
runtime data say nothing that is used, so they are passed over: nothing of them is signed.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from cvmtool.errors import FormatError
from cvmtool.formats.certtable import MAX_TABLE_BYTES, CertTable, parse_cert_table
from cvmtool.formats.report import REPORT_BYTES
from cvmtool.formats.reportmsg import STATUS_SUCCESS, parse_response

MAX_CONTAINER_BYTES = REPORT_BYTES + MAX_TABLE_BYTES
REPORT_DATA_BYTES = 64

_HCL_HEADER = struct.Struct("<4sI24s")
_HCL_MAGIC = b"HCLA"
_HCL_VERSIONS = (1, 2)
_RUNTIME = struct.Struct("<IIIII")
_RUNTIME_SNP = 2


class Container(StrEnum):
    """The containers by the name that a user gives."""

    RAW = "raw"
    TSM = "tsm"
    EXTENDED = "extended"
    RESPONSE = "response"
    AZURE_HCL = "azure-hcl"


class ClaimsHash(IntEnum):
    """Which hash of the claims stands in REPORT_DATA."""

    SHA256 = 1
    SHA384 = 2
    SHA512 = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a paravisor says of the machine, as JSON text that nobody has parsed: true only if REPORT_DATA is its hash."""

    text: bytes
    hash: ClaimsHash

    @property
    def report_data(self) -> bytes:
        """What REPORT_DATA must be for these claims, 64 bytes."""
        return hashlib.new(self.hash.name, self.text).digest().ljust(REPORT_DATA_BYTES, b"\0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unwrapped:
    """What was in a container: `report` (1184 bytes as they came), the certificate table, claims if it has any."""

    report: bytes
    table: CertTable = field(default_factory=CertTable)
    claims: Claims | None = None


def unwrap(data: bytes, container: Container, *, auxblob: bytes = b"") -> Unwrapped:
    """Take a report out of `container`. `auxblob` goes with `tsm` alone, where it is a file of its own.

    Raises:
        FormatError: a size, mark, version or bound is wrong, a status is not success, or bytes are left over.
    """
    if len(data) > MAX_CONTAINER_BYTES:
        raise FormatError(f"{container} has {len(data)} bytes; required: at most {MAX_CONTAINER_BYTES}")
    if auxblob and container is not Container.TSM:
        raise FormatError(
            f"an auxblob of {len(auxblob)} bytes is given with container {container}; required: with tsm alone"
        )
    match container:
        case Container.RAW:
            return Unwrapped(report=_exactly(data, container))
        case Container.TSM:
            return Unwrapped(report=_exactly(data, container), table=parse_cert_table(auxblob))
        case Container.EXTENDED:
            report = _exactly(data[:REPORT_BYTES], container)
            return Unwrapped(report=report, table=parse_cert_table(data[REPORT_BYTES:]))
        case Container.RESPONSE:
            return _response(data)
        case Container.AZURE_HCL:
            return _azure_hcl(data)


def _exactly(data: bytes, container: Container) -> bytes:
    if len(data) != REPORT_BYTES:
        hint = "is this another container?" if len(data) > REPORT_BYTES else "was it cut off?"
        raise FormatError(f"report in {container} has {len(data)} bytes; required: {REPORT_BYTES}", hint=hint)
    return data


def _response(data: bytes) -> Unwrapped:
    response = parse_response(data)
    if response.status != STATUS_SUCCESS:
        raise FormatError(f"report response status is {response.status:#x}; required: 0 (success)")
    return Unwrapped(report=response.report)


def _azure_hcl(data: bytes) -> Unwrapped:
    start = _HCL_HEADER.size + REPORT_BYTES
    if len(data) < start + _RUNTIME.size:
        raise FormatError(f"azure-hcl has {len(data)} bytes; required: {start + _RUNTIME.size} or more")
    magic, version, _ = _HCL_HEADER.unpack_from(data)
    if magic != _HCL_MAGIC or version not in _HCL_VERSIONS:
        raise FormatError(
            f"azure-hcl starts with {magic.hex()} version {version}; required: {_HCL_MAGIC.hex()} version 1 or 2"
        )
    _, runtime_version, kind, hashed, count = _RUNTIME.unpack_from(data, start)
    if runtime_version not in _HCL_VERSIONS or kind != _RUNTIME_SNP:
        raise FormatError(
            f"azure-hcl runtime data is version {runtime_version} of type {kind}; required: version 1 or 2 of type 2 (snp)"
        )
    if hashed not in set(ClaimsHash):
        raise FormatError(f"azure-hcl claims hash is {hashed}; required: 1 (sha-256), 2 (sha-384) or 3 (sha-512)")
    begin = start + _RUNTIME.size
    if not 0 < count <= len(data) - begin:
        raise FormatError(f"azure-hcl claims have {count} bytes; required: 1 to {len(data) - begin}")
    if any(data[begin + count :]):
        raise FormatError(f"azure-hcl has bytes behind its claims at {begin + count}; required: zero")
    return Unwrapped(
        report=data[_HCL_HEADER.size : start],
        claims=Claims(text=data[begin : begin + count], hash=ClaimsHash(hashed)),
    )
