# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Verify a receipt: offline, with nothing but the receipt, the roots and the measurements that one trusts.

Zone: owner (trusted). Pure: the time comes in.
Spec: docs/protocol.md section 11. What must hold, in order:

    1. the envelope and its statement parse
    2. the report inside is genuine at the time given, under the policy's roots
    3. HOST_DATA is the digest of the owner key and the manifest digest that the statement names
    4. REPORT_DATA binds the statement's nonce and the three keys to that HOST_DATA
    5. the policy accepts the report
    6. the envelope is signed by the receipt key that the report vouches for
    7. the statement's own word about simulation agrees with the root that signed

Checks left out, and why: the times (the host sets the guest's clock, so they are claims) and freshness (a receipt is
looked at long after the run; its nonce binds keys, it does not date anything).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cvmtool.errors import VerificationError
from cvmtool.formats.evidence import host_data
from cvmtool.formats.receipt import Statement, key_id, pae, parse_envelope, parse_statement
from cvmtool.owner.appraise import VerifiedGuest
from cvmtool.owner.policy import Policy
from cvmtool.owner.session import judge_evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedReceipt:
    """A receipt that held, and the guest that wrote it."""

    statement: Statement
    guest: VerifiedGuest


def verify_receipt(data: bytes, policy: Policy, at: datetime) -> VerifiedReceipt:
    """Verify a receipt (unverified bytes) at the time `at`.

    Raises:
        FormatError: 1 fails.
        VerificationError: 2, 3, 6 or 7 fails.
        FreshnessError: 4 fails.
        AppraisalError: 5 fails; every finding is listed.
    """
    envelope = parse_envelope(data)
    statement = parse_statement(envelope.payload)  # 1
    committed = host_data(owner_key=statement.owner_key, manifest_sha256=statement.manifest_sha256)  # 3
    guest = judge_evidence(
        statement.evidence, policy=policy, nonce=statement.nonce, host_data=committed, at=at
    )  # 2, 4, 5, and 3 against the report
    receipt_key = statement.evidence.receipt_key
    if envelope.keyid != key_id(receipt_key):
        raise VerificationError(f"receipt keyid is {envelope.keyid}; the report vouches for {key_id(receipt_key)}")
    try:
        Ed25519PublicKey.from_public_bytes(receipt_key).verify(envelope.signature, pae(envelope.payload))  # 6
    except (InvalidSignature, ValueError) as error:
        raise VerificationError("the receipt's signature is not the attested guest's") from error
    if statement.simulated != guest.simulated:  # 7
        raise VerificationError(
            f"the receipt says simulated: {str(statement.simulated).lower()}; the root that signed says "
            f"{str(guest.simulated).lower()}"
        )
    return VerifiedReceipt(statement=statement, guest=guest)
