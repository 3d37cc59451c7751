# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What a guest shows to be believed: the report, its certificates, and the three keys made at its boot.

Zone: shared. Pure: no I/O, no decisions; everything here is unverified.
Spec: docs/protocol.md sections 1 and 3.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cvmtool.errors import FormatError
from cvmtool.formats.wire import lp, parse_lp

REPORT_SIZE = 1184  # bytes, ATTESTATION_REPORT
NONCE_SIZE = 32
KEY_SIZE = 32  # bytes of a raw Ed25519 or X25519 public key
HOST_DATA_SIZE = 32
MAX_EVIDENCE = 65_536  # bytes, the whole encoded evidence
MAX_CERT_TABLE = 32_768  # bytes

_EVIDENCE = b"cvmtool/v1/evidence"
_REPORT_DATA = b"cvmtool/v1/report-data"
_HOST_DATA = b"cvmtool/v1/host-data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Unverified evidence of one boot of one guest."""

    report: bytes
    """1184 bytes, ATTESTATION_REPORT."""
    cert_table: bytes
    """The extended report's certificate table, or nothing."""
    ssh_host_key: bytes
    """Ed25519 public key, 32 bytes raw."""
    hpke_key: bytes
    """X25519 public key, 32 bytes raw."""
    receipt_key: bytes
    """Ed25519 public key, 32 bytes raw."""

    def __post_init__(self) -> None:
        _size("report", self.report, REPORT_SIZE)
        _size("ssh_host_key", self.ssh_host_key, KEY_SIZE)
        _size("hpke_key", self.hpke_key, KEY_SIZE)
        _size("receipt_key", self.receipt_key, KEY_SIZE)
        if len(self.cert_table) > MAX_CERT_TABLE:
            raise FormatError(f"cert_table has {len(self.cert_table)} bytes; at most {MAX_CERT_TABLE} are allowed")

    def encode(self) -> bytes:
        """Return the evidence as docs/protocol.md section 3 spells it."""
        return lp(_EVIDENCE, self.report, self.cert_table, self.ssh_host_key, self.hpke_key, self.receipt_key)


def is_evidence(data: bytes) -> bool:
    """Say whether `data` begins with evidence's own label, which no report and no container begins with."""
    return data.startswith(lp(_EVIDENCE))


def parse_evidence(data: bytes) -> Evidence:
    """Parse encoded evidence.

    Raises:
        FormatError: another label, a field of another size, or too long.
    """
    if len(data) > MAX_EVIDENCE:
        raise FormatError(f"evidence has {len(data)} bytes; at most {MAX_EVIDENCE} are allowed")
    label, report, cert_table, ssh_host_key, hpke_key, receipt_key = parse_lp(data, 6, what="evidence")
    if label != _EVIDENCE:
        raise FormatError(f"evidence is labelled {label[:32]!r}; {_EVIDENCE!r} is required")
    return Evidence(
        report=report, cert_table=cert_table, ssh_host_key=ssh_host_key, hpke_key=hpke_key, receipt_key=receipt_key
    )


def report_data(*, nonce: bytes, ssh_host_key: bytes, hpke_key: bytes, receipt_key: bytes, host_data: bytes) -> bytes:
    """Return the 64 bytes of REPORT_DATA that bind one challenge to one boot's keys and one launch.

    Raises:
        FormatError: a field of another size.
    """
    _size("nonce", nonce, NONCE_SIZE)
    _size("ssh_host_key", ssh_host_key, KEY_SIZE)
    _size("hpke_key", hpke_key, KEY_SIZE)
    _size("receipt_key", receipt_key, KEY_SIZE)
    _size("host_data", host_data, HOST_DATA_SIZE)
    return hashlib.sha512(lp(_REPORT_DATA, nonce, ssh_host_key, hpke_key, receipt_key, host_data)).digest()


def host_data(*, owner_key: bytes, manifest_sha256: bytes) -> bytes:
    """Return the 32 bytes of HOST_DATA that commit a launch to its owner and its job.

    Raises:
        FormatError: a field of another size.
    """
    _size("owner_key", owner_key, KEY_SIZE)
    _size("manifest_sha256", manifest_sha256, 32)
    return hashlib.sha256(lp(_HOST_DATA, owner_key, manifest_sha256)).digest()


def _size(name: str, value: bytes, size: int) -> None:
    if len(value) != size:
        raise FormatError(f"{name} has {len(value)} bytes; {size} are required")
