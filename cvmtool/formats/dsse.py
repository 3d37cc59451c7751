# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A DSSE envelope with one Ed25519 signature over an in-toto statement.

Zone: shared. Pure: no I/O and no keys. The guest signs (`cvmtool.guest.receipt`), the owner verifies (`cvmtool.owner.receipts`).
Spec: docs/protocol.md section 11; DSSE v1 (pre-authentication encoding, "PAE").
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cvmtool.errors import FormatError
from cvmtool.formats.wire import (
    JsonObject,
    canonical_json,
    members,
    parse_base64,
    parse_hex,
    parse_json,
    to_base64,
    typed,
)

PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAX_ENVELOPE = 1 << 20  # bytes
SIGNATURE_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A DSSE envelope, its signature not yet checked."""

    payload: bytes
    keyid: str
    signature: bytes

    def to_json(self) -> JsonObject:
        """Return the envelope as DSSE spells it."""
        return {
            "payloadType": PAYLOAD_TYPE,
            "payload": to_base64(self.payload),
            "signatures": [{"keyid": self.keyid, "sig": to_base64(self.signature)}],
        }

    def encode(self) -> bytes:
        """Return the envelope as canonical JSON."""
        return canonical_json(self.to_json())


def pae(payload: bytes) -> bytes:
    """Return DSSE's pre-authentication encoding: the bytes that are signed."""
    kind = PAYLOAD_TYPE.encode("ascii")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def key_id(public_key: bytes) -> str:
    """Return the keyid of a raw Ed25519 public key: its SHA-256 as hex."""
    return hashlib.sha256(public_key).hexdigest()


def parse_envelope(data: bytes) -> Envelope:
    """Read an envelope. White space between JSON tokens is allowed: the payload is what is signed.

    Raises:
        FormatError: another payload type, not exactly one signature, or a malformed field.
    """
    value = parse_json(data, what="receipt", limit=MAX_ENVELOPE)
    members(value, what="receipt", required={"payloadType", "payload", "signatures"})
    if value["payloadType"] != PAYLOAD_TYPE:
        raise FormatError(f"receipt.payloadType is {str(value['payloadType'])[:64]!r}; {PAYLOAD_TYPE!r} is required")
    signatures = typed(value, "signatures", list, what="receipt")
    if len(signatures) != 1 or not isinstance(signatures[0], dict):
        raise FormatError(f"receipt.signatures has {len(signatures)} entries; exactly one is required")
    members(signatures[0], what="receipt.signatures[0]", required={"keyid", "sig"})
    keyid = typed(signatures[0], "keyid", str, what="receipt.signatures[0]")
    parse_hex(keyid, 32, what="receipt.signatures[0].keyid")
    signature = parse_base64(signatures[0]["sig"], what="receipt.signatures[0].sig", limit=SIGNATURE_BYTES)
    if len(signature) != SIGNATURE_BYTES:
        raise FormatError(f"receipt.signatures[0].sig has {len(signature)} bytes; {SIGNATURE_BYTES} are required")
    payload = parse_base64(value["payload"], what="receipt.payload", limit=MAX_ENVELOPE)
    return Envelope(payload=payload, keyid=keyid, signature=signature)
