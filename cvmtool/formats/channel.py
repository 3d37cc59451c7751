# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The lines that open and close a session on the agent port.

Zone: shared. Pure: no I/O.
Spec: docs/protocol.md section 2. Both directions are ordered byte streams that outlive sessions, so each line names its nonce:
whatever stands before the line that answers *this* nonce belongs to an earlier session.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from cvmtool.errors import FormatError
from cvmtool.formats.evidence import MAX_EVIDENCE, Evidence, parse_evidence
from cvmtool.formats.wire import parse_base64, to_base64

AGENT_PORT = "org.cvmtool.agent.0"
PSP_PORT = "org.cvmtool.psp.0"
CLIENT_PORTS = tuple(f"org.cvmtool.client.{number}" for number in range(4))
"""Where sessions begin beside the owner's, one on each, at a job that may be reached into (docs/protocol.md section 15)."""

OPEN_LINE = re.compile(rb"\nCVM1 OPEN ([0-9a-f]{64}) ([0-9a-f]{64}) ([0-9a-f]{64})\n")
OPEN_SIZE = len(b"\nCVM1 OPEN ") + 3 * 64 + 2 + 1  # bytes of one OPEN line, both line feeds included
MAX_ANSWER = 128 + (MAX_EVIDENCE + 2) // 3 * 4  # bytes of the longest answer line


class Refusal(StrEnum):
    """Why a guest does not open a session."""

    HOST_DATA = "host-data"  # OPEN names another owner or job than the launch committed to
    BAD_REPORT = "bad-report"  # it was shown a report over another challenge than this one
    NO_REPORT = "no-report"  # the guest could not get an attestation report
    BUSY = "busy"  # another OPEN is being answered


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """The owner's challenge."""

    nonce: bytes
    owner_key: bytes
    manifest_sha256: bytes

    def encode(self) -> bytes:
        """Return the OPEN line."""
        return b"\nCVM1 OPEN %b %b %b\n" % tuple(
            field.hex().encode("ascii") for field in (self.nonce, self.owner_key, self.manifest_sha256)
        )


def find_last_open(data: bytes) -> tuple[Open, int] | None:
    """Return the last OPEN line in `data` and the offset of the first byte behind it, if there is one.

    The last one counts: a client that sent an earlier one is gone.
    """
    found = None
    at = 0
    # A line's closing feed may be the next line's opening one, so matches are looked for one byte before the last end.
    while match := OPEN_LINE.search(data, at):
        found = match
        at = match.end() - 1
    if found is None:
        return None
    nonce, owner_key, manifest_sha256 = (bytes.fromhex(group.decode("ascii")) for group in found.groups())
    return Open(nonce=nonce, owner_key=owner_key, manifest_sha256=manifest_sha256), found.end()


def ready_line(nonce: bytes, evidence: Evidence) -> bytes:
    """Return the READY line for `nonce`."""
    return f"\nCVM1 READY {nonce.hex()} {to_base64(evidence.encode())}\n".encode("ascii")


def refused_line(nonce: bytes, refusal: Refusal) -> bytes:
    """Return the REFUSED line for `nonce`."""
    return f"\nCVM1 REFUSED {nonce.hex()} {refusal.value}\n".encode("ascii")


def closed_line(nonce: bytes) -> bytes:
    """Return the CLOSED line for `nonce`."""
    return f"\nCVM1 CLOSED {nonce.hex()}\n".encode("ascii")


def answer_to(data: bytes, nonce: bytes) -> tuple[Evidence | Refusal, int] | None:
    """Look in `data` for the guest's answer to `nonce`; return it and the offset behind it, or None while it is incomplete.

    Raises:
        FormatError: the answer is there and malformed, or longer than an answer can be.
    """
    nonce_hex = nonce.hex().encode("ascii")
    match = re.search(rb"\nCVM1 (READY|REFUSED) %b ([^\n]*)(\n?)" % nonce_hex, data)
    if match is None:
        return None
    if not match[3]:
        if len(match[2]) > MAX_ANSWER:
            raise FormatError(f"the guest's answer runs past {MAX_ANSWER} bytes")
        return None
    text = match[2].decode("ascii", "replace")
    if match[1] == b"READY":
        return parse_evidence(parse_base64(text, what="evidence", limit=MAX_EVIDENCE)), match.end()
    try:
        return Refusal(text), match.end()
    except ValueError as error:
        raise FormatError(f"the guest refused with the unknown word {text[:40]!r}") from error
