# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What the simulated secure processor can do wrong on purpose, and the refusal each fault must meet.

Zone: dryrun (simulated; never confidential). Pure: no I/O.

`cvmtool drill` shows each of them to a user; a test holds each to its row. "Refused by" is who notices first in a whole
run: the guest agent looks at its own report before it answers, and the owner would refuse it all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """One deliberate lie."""

    NONE = "none"
    WRONG_MEASUREMENT = "wrong-measurement"
    DEBUG_POLICY = "debug-policy"
    MIGRATABLE = "migratable"
    OLD_TCB = "old-tcb"
    ALIAS_CHECK = "alias-check"
    OLD_REPORT_VERSION = "old-report-version"
    VMPL = "vmpl"
    HOST_REPORT = "host-report"
    WRONG_HOST_DATA = "wrong-host-data"
    REPLAYED_REPORT = "replayed-report"
    WRONG_NONCE = "wrong-nonce"
    BAD_SIGNATURE = "bad-signature"
    OTHER_CHIP = "other-chip"
    SWAPPED_CERTIFICATE = "swapped-certificate"
    ROLLED_BACK_TCB = "rolled-back-tcb"
    EXPIRED_CERTIFICATE = "expired-certificate"
    REVOKED_KEY = "revoked-key"
    MISSING_CRL = "missing-crl"
    UNKNOWN_ROOT = "unknown-root"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What a fault must meet: the owner's exit code and check, what it stands for, and who notices first."""

    exit_code: int
    code: str
    attack: str
    refused_by: str = "owner"


REFUSALS: dict[Fault, Refusal] = {
    Fault.WRONG_MEASUREMENT: Refusal(
        exit_code=6,
        code="measurement",
        attack="another firmware, kernel, initrd, command line or CPU count was started",
    ),
    Fault.DEBUG_POLICY: Refusal(
        exit_code=6, code="policy-debug", attack="the guest was launched so that the host may read its memory"
    ),
    Fault.MIGRATABLE: Refusal(
        exit_code=6, code="policy-migrate-ma", attack="the guest was launched so that an agent may move it elsewhere"
    ),
    Fault.OLD_TCB: Refusal(exit_code=6, code="tcb", attack="the processor runs firmware with known holes"),
    Fault.ALIAS_CHECK: Refusal(
        exit_code=6,
        code="platform-alias-check-complete",
        attack="memory modules that lie about their size (BadRAM) were not looked for",
    ),
    Fault.OLD_REPORT_VERSION: Refusal(
        exit_code=6, code="report-version", attack="old firmware, whose report hides processor and platform state"
    ),
    Fault.VMPL: Refusal(
        exit_code=6, code="vmpl", attack="less privileged software in the guest speaks for the whole guest"
    ),
    Fault.HOST_REPORT: Refusal(
        exit_code=5, code="requester", attack="the host asked the processor for the report itself"
    ),
    Fault.WRONG_HOST_DATA: Refusal(
        exit_code=6,
        code="host-data",
        attack="the image was started for another owner or another job",
        refused_by="guest",
    ),
    Fault.REPLAYED_REPORT: Refusal(
        exit_code=7, code="report-data", attack="an earlier report is shown again", refused_by="guest"
    ),
    Fault.WRONG_NONCE: Refusal(
        exit_code=7, code="report-data", attack="a report for somebody else's challenge or keys", refused_by="guest"
    ),
    Fault.BAD_SIGNATURE: Refusal(exit_code=5, code="signature", attack="the report was changed after it was signed"),
    Fault.OTHER_CHIP: Refusal(
        exit_code=5, code="signature", attack="another chip signed a report with this chip's name"
    ),
    Fault.SWAPPED_CERTIFICATE: Refusal(
        exit_code=5, code="chip", attack="the certificate beside the report is another chip's"
    ),
    Fault.ROLLED_BACK_TCB: Refusal(
        exit_code=5, code="tcb-binding", attack="a key of older, broken firmware vouches for a newer one"
    ),
    Fault.EXPIRED_CERTIFICATE: Refusal(
        exit_code=5, code="certificate-validity", attack="a key is used that nobody vouches for any longer"
    ),
    Fault.REVOKED_KEY: Refusal(exit_code=5, code="revocation", attack="the key's issuer was revoked"),
    Fault.MISSING_CRL: Refusal(exit_code=6, code="revocation-checked", attack="the revocation list is withheld"),
    Fault.UNKNOWN_ROOT: Refusal(exit_code=5, code="root-pinned", attack="the whole chain is the host's own invention"),
}
"""Every fault but `none`, with its refusal."""
