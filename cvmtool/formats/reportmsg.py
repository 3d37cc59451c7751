# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The messages in which a guest asks for a report: MSG_REPORT_REQ and MSG_REPORT_RSP.

Zone: shared. Pure: no I/O.
Spec: AMD 56860 SEV-SNP Firmware ABI, guest messages; docs/protocol.md section 7. Little-endian.

    MSG_REPORT_REQ    REPORT_DATA[64] | u32 VMPL | u32 KEY_SEL | 24 zero bytes                       96 bytes
    MSG_REPORT_RSP    u32 STATUS | u32 REPORT_SIZE | 24 zero bytes | the report                      32 + REPORT_SIZE
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from cvmtool.errors import FormatError
from cvmtool.formats.report import MAX_VMPL, REPORT_BYTES

REQUEST_BYTES = 96
RESPONSE_HEADER_BYTES = 32
REPORT_DATA_BYTES = 64

STATUS_SUCCESS = 0
STATUS_INVALID_PARAMETERS = 0x16
STATUS_INVALID_KEY_SELECTION = 0x27

_REQUEST = struct.Struct("<64sII24s")
_RESPONSE = struct.Struct("<II24s")


class KeySelection(IntEnum):
    """KEY_SEL: which key shall sign."""

    VLEK_THEN_VCEK = 0
    VCEK = 1
    VLEK = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRequest:
    """A request for a report over `report_data` (64 bytes) at privilege level `vmpl` (0 to 3)."""

    report_data: bytes
    vmpl: int = 0
    key: KeySelection = KeySelection.VLEK_THEN_VCEK

    def __post_init__(self) -> None:
        if len(self.report_data) != REPORT_DATA_BYTES:
            raise FormatError(f"report_data has {len(self.report_data)} bytes; required: {REPORT_DATA_BYTES}")
        if not 0 <= self.vmpl <= MAX_VMPL:
            raise FormatError(f"vmpl is {self.vmpl}; required: 0 to {MAX_VMPL}")

    def encode(self) -> bytes:
        """Return the 96 bytes of MSG_REPORT_REQ."""
        return _REQUEST.pack(self.report_data, self.vmpl, self.key, b"")


def parse_request(data: bytes) -> ReportRequest:
    """Read the 96 bytes of MSG_REPORT_REQ (unverified).

    Raises:
        FormatError: another size, a privilege level over 3, an unknown key selection or reserved bytes in use.
    """
    if len(data) != REQUEST_BYTES:
        raise FormatError(f"report request has {len(data)} bytes; required: {REQUEST_BYTES}")
    report_data, vmpl, key, reserved = _REQUEST.unpack(data)
    if any(reserved):
        raise FormatError(f"report request reserved bytes are {reserved.hex()}; required: zero")
    try:
        selection = KeySelection(key)
    except ValueError:
        raise FormatError(f"key_sel is {key}; required: {', '.join(str(k.value) for k in KeySelection)}") from None
    return ReportRequest(report_data=report_data, vmpl=vmpl, key=selection)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportResponse:
    """The processor's answer: `status` 0 and 1184 bytes of `report`, or an error's number and no report."""

    status: int
    report: bytes

    def __post_init__(self) -> None:
        required = 0 if self.status else REPORT_BYTES
        if len(self.report) != required:
            raise FormatError(f"report has {len(self.report)} bytes at status {self.status:#x}; required: {required}")

    def encode(self) -> bytes:
        """Return the bytes of MSG_REPORT_RSP, without the padding to 4000 bytes of the kernel's interface."""
        return _RESPONSE.pack(self.status, len(self.report), b"") + self.report


def parse_response(data: bytes) -> ReportResponse:
    """Read MSG_REPORT_RSP (unverified); zero padding behind the report is accepted, as the kernel's interface has it.

    Raises:
        FormatError: too short, a report of another size, or bytes that are not zero where none may be.
    """
    if len(data) < RESPONSE_HEADER_BYTES:
        raise FormatError(f"report response has {len(data)} bytes; required: at least {RESPONSE_HEADER_BYTES}")
    status, size, reserved = _RESPONSE.unpack_from(data)
    end = RESPONSE_HEADER_BYTES + size
    if end > len(data):
        raise FormatError(f"report response claims {size} bytes; {len(data) - RESPONSE_HEADER_BYTES} are left")
    if any(reserved) or any(data[end:]):
        raise FormatError("report response has bytes that are not zero in its reserved part; required: zero")
    return ReportResponse(status=status, report=data[RESPONSE_HEADER_BYTES:end])
