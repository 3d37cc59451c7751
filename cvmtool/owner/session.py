# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""One challenge, one answer, one decision: the owner's half of an attested session.

Zone: owner (trusted). Pure: nonce, time and evidence come in; lines and decisions go out.
Spec: docs/protocol.md sections 2 and 3. RFC 9334: the owner is the verifier and the relying party in one.

The order is the security: a nonce is sent once; evidence is judged once, against that nonce; a secret is sealed to
what was judged (`cvmtool.owner.seal`). Calling these out of order is a bug here and raises RuntimeError.
"""

from __future__ import annotations

from datetime import datetime

from cvmtool.formats.certtable import CertKind, parse_cert_table
from cvmtool.formats.channel import Open
from cvmtool.formats.evidence import NONCE_SIZE, Evidence
from cvmtool.owner.appraise import VerifiedGuest, appraise
from cvmtool.owner.policy import Policy
from cvmtool.owner.verify import certificates_of, verify_report


class Session:
    """A challenge to one guest. Use it once."""

    def __init__(
        self, *, owner_key: bytes, manifest_sha256: bytes, host_data: bytes, policy: Policy, nonce: bytes
    ) -> None:
        """Prepare the challenge.

        Args:
            owner_key: the owner's public key, 32 bytes, which HOST_DATA commits to.
            manifest_sha256: of the job's canonical manifest, 32 bytes.
            host_data: what the launch must have committed to, 32 bytes.
            policy: what is acceptable.
            nonce: 32 bytes of fresh randomness.
        """
        if len(nonce) != NONCE_SIZE:
            raise ValueError(f"a nonce has {NONCE_SIZE} bytes")
        self.nonce = nonce
        self._open = Open(nonce=nonce, owner_key=owner_key, manifest_sha256=manifest_sha256)
        self._host_data = host_data
        self._policy = policy
        self._sent = False
        self._judged = False

    def challenge(self) -> bytes:
        """Return the OPEN line; once."""
        if self._sent:
            raise RuntimeError("a challenge is sent once; a second attempt needs a session of its own")
        self._sent = True
        return self._open.encode()

    def judge(self, evidence: Evidence, at: datetime) -> VerifiedGuest:
        """Decide about the answer to the challenge; once.

        Raises:
            FormatError: the evidence is malformed.
            VerificationError: the report is not genuine.
            FreshnessError: it is not the answer to this nonce with these keys.
            AppraisalError: the policy refuses it; every finding is listed.
        """
        if not self._sent or self._judged:
            raise RuntimeError("evidence is judged once, after its challenge was sent")
        self._judged = True
        return judge_evidence(evidence, policy=self._policy, nonce=self.nonce, host_data=self._host_data, at=at)


def judge_evidence(
    evidence: Evidence, *, policy: Policy, nonce: bytes, host_data: bytes, at: datetime
) -> VerifiedGuest:
    """Decide about evidence for a known nonce at a known time: what `Session.judge` does, and a replay of a saved case.

    Raises:
        FormatError, VerificationError, FreshnessError, AppraisalError: as `Session.judge`.
    """
    table = parse_cert_table(evidence.cert_table)
    authentic = verify_report(
        evidence.report, certificates_of(table), policy.trusted_roots(), at, table.get(CertKind.CRL)
    )
    return appraise(authentic, policy, nonce=nonce, evidence=evidence, host_data=host_data)
