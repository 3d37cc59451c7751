# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A GPU's attestation report: the request and the answer of one SPDM measurement exchange, one after the other.

Zone: shared. Pure: no I/O, no decisions; everything here is unverified.
Spec: DMTF DSP0274 1.1 (GET_MEASUREMENTS, MEASUREMENTS); the opaque fields as NVIDIA's nvtrust documents them. Little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum

from cvmtool.errors import FormatError

MAX_REPORT = 8_192  # bytes, NVML's buffer
NONCE_BYTES = 32
SIGNATURE_BYTES = 96  # ECDSA on P-384: r, then s, big-endian
DIGEST_BYTES = 48  # SHA-384
_VERSION = 0x11
_SIGNED_ALL = bytes((_VERSION, 0xE0, 0x01, 0xFF))  # GET_MEASUREMENTS: sign, and report every block
_ANSWER = bytes((_VERSION, 0x60))  # MEASUREMENTS
_REQUEST_BYTES = 37
_DMTF = 1  # measurement specification
_BLOCK = struct.Struct("<BBH")
_VALUE = struct.Struct("<BH")
_FIELD = struct.Struct("<HH")


class Opaque(IntEnum):
    """The fields of NVIDIA's opaque data that are used here."""

    DRIVER_VERSION = 3
    VBIOS_VERSION = 6
    NVDEC0_STATUS = 11
    CHIP_SKU = 15
    PROJECT = 17
    PROJECT_SKU = 18
    FIRMWARE_ID = 20
    PROTECTED_PCIE = 21


STATUS_OFF = b"\x55"
"""How a status field says no; 0xAA says yes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReport:
    """A GPU's report, unverified."""

    nonce: bytes
    """The asker's, 32 bytes."""
    measurements: dict[int, bytes]
    """By SPDM's index, 1 to 254; 48 bytes each in a report of today."""
    opaque: dict[int, bytes]
    signed: bytes = field(repr=False)
    """Everything in front of the signature."""
    signature: bytes = field(repr=False)

    def text(self, kind: Opaque) -> str:
        """Return an opaque field that is ASCII text behind which zeros may stand; empty if there is none.

        Raises:
            FormatError: it holds something else.
        """
        data = self.opaque.get(kind, b"").rstrip(b"\0 ")
        if not (data.isascii() and data.decode("ascii", "replace").isprintable()) or len(data) > 32:
            raise FormatError(f"gpu report: field {kind.name.lower()} is not printable ASCII of at most 32 characters")
        return data.decode("ascii")

    @property
    def vbios_version(self) -> str:
        """The version as NVIDIA writes it: five bytes in hex with dots, such as 96.00.9F.00.01.

        Raises:
            FormatError: the field has another size.
        """
        data = self.opaque.get(Opaque.VBIOS_VERSION, b"")
        if len(data) != 8:
            raise FormatError(f"gpu report: the VBIOS version has {len(data)} bytes; 8 are required")
        return ".".join(f"{byte:02X}" for byte in (*data[3::-1], data[4]))


def parse_gpu_report(data: bytes) -> GpuReport:
    """Read a report.

    Raises:
        FormatError: another exchange, version or size, a block of another specification, or something twice.
    """
    if len(data) > MAX_REPORT:
        raise FormatError(f"gpu report has {len(data)} bytes; at most {MAX_REPORT} are allowed")
    request, answer = data[:_REQUEST_BYTES], data[_REQUEST_BYTES:]
    if len(request) != _REQUEST_BYTES or not request.startswith(_SIGNED_ALL):
        raise FormatError(f"gpu report begins with {request[:4].hex()}; {_SIGNED_ALL.hex()} is required")
    if not answer.startswith(_ANSWER):
        raise FormatError(f"gpu report answers with {answer[:2].hex()}; {_ANSWER.hex()} is required")
    reader = _Reader(answer, at=4)
    (count,) = reader.take(1)
    record = reader.take(int.from_bytes(reader.take(3), "little"))
    reader.take(NONCE_BYTES)  # the GPU's own, against reuse of its signature
    opaque = reader.take(int.from_bytes(reader.take(2), "little"))
    signature = reader.take(SIGNATURE_BYTES)
    reader.end()
    return GpuReport(
        nonce=request[4 : 4 + NONCE_BYTES],
        measurements=_measurements(record, count),
        opaque=_opaque(opaque),
        signed=data[:-SIGNATURE_BYTES],
        signature=signature,
    )


def _measurements(record: bytes, count: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    reader = _Reader(record)
    for _ in range(count):
        index, specification, size = _BLOCK.unpack(reader.take(_BLOCK.size))
        block = _Reader(reader.take(size))
        _kind, length = _VALUE.unpack(block.take(_VALUE.size))
        value = block.take(length)
        block.end()
        if specification != _DMTF or not 0 < index < 0xFF or index in found:
            raise FormatError(
                f"gpu report: block {index} of specification {specification} is out of place; each index once, "
                f"from 1 to 254, of specification {_DMTF} is required"
            )
        found[index] = value
    reader.end()
    return found


def _opaque(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    reader = _Reader(data)
    while reader.left:
        kind, size = _FIELD.unpack(reader.take(_FIELD.size))
        if kind in found:
            raise FormatError(f"gpu report has the opaque field {kind} twice")
        found[kind] = reader.take(size)
    return found


class _Reader:
    """Bytes taken from front to back."""

    def __init__(self, data: bytes, *, at: int = 0) -> None:
        self._data, self._at = data, at

    @property
    def left(self) -> int:
        return max(len(self._data) - self._at, 0)

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise FormatError(f"gpu report ends within a field of {size} bytes")
        self._at += size
        return self._data[self._at - size : self._at]

    def end(self) -> None:
        if self.left:
            raise FormatError(f"gpu report has {self.left} bytes too many in a field")
