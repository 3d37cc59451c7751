# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What a guest shows of its GPUs, and the nonce that each must have answered.

Zone: shared. Pure: no I/O, no decisions; everything here is unverified.
Spec: docs/protocol.md section 14.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cvmtool.errors import FormatError
from cvmtool.formats.spdm import MAX_REPORT
from cvmtool.formats.wire import JsonObject, lp, members, parse_base64, to_base64, typed

MAX_GPUS = 8  # of one guest: what one NVSwitch board holds
MAX_CERTIFICATES = 5_120  # bytes of PEM, NVML's buffer
_NONCE = b"cvmtool/v1/gpu-nonce"
_KEYS = {"report", "certificates", "devtools"}


def gpu_nonce(report_data: bytes, index: int) -> bytes:
    """Return the nonce (32 bytes) of GPU number `index`, from 0, in the session whose report is over `report_data`.

    REPORT_DATA is a digest over the owner's nonce and the keys of this boot: what a GPU signs for one guest and one
    challenge, and in one place among its fellows, fits nowhere else.
    """
    return hashlib.sha256(lp(_NONCE, report_data, index.to_bytes(4, "big"))).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuEvidence:
    """What the driver in the guest hands over for one GPU."""

    report: bytes
    """The SPDM exchange, see `cvmtool.formats.spdm`."""
    certificates: bytes
    """The GPU's chain in PEM, the signing key first and NVIDIA's root last."""
    devtools: bool
    """Whether the driver says that it runs in its developers' mode, in which debuggers read the GPU's memory."""

    def to_json(self) -> JsonObject:
        """Return the evidence for the wire."""
        return {
            "report": to_base64(self.report),
            "certificates": to_base64(self.certificates),
            "devtools": self.devtools,
        }


def parse_gpu_evidence(value: JsonObject) -> tuple[GpuEvidence, ...]:
    """Read the guest's answer: `gpus`, one entry for each GPU.

    Raises:
        FormatError: a key is missing or unknown, something is too large, or there are too many.
    """
    entries = typed(value, "gpus", list, what="gpu evidence")
    if len(entries) > MAX_GPUS:
        raise FormatError(f"gpu evidence has {len(entries)} entries; at most {MAX_GPUS} are allowed")
    return tuple(_parse(entry, f"gpu evidence[{number}]") for number, entry in enumerate(entries))


def _parse(entry: object, what: str) -> GpuEvidence:
    if not isinstance(entry, dict):
        raise FormatError(f"{what} is a {type(entry).__name__}; an object is required")
    members(entry, what=what, required=_KEYS)
    return GpuEvidence(
        report=parse_base64(entry["report"], what=f"{what}.report", limit=MAX_REPORT),
        certificates=parse_base64(entry["certificates"], what=f"{what}.certificates", limit=MAX_CERTIFICATES),
        devtools=typed(entry, "devtools", bool, what=what),
    )
