# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Is this guest acceptable, fresh, and the one that holds these keys? The only place where trust is given.

Zone: owner (trusted). Pure: no I/O, no clock, no randomness: the nonce comes in.
Spec: docs/protocol.md section 3; RFC 9334 ("appraisal").

What must hold, in this order of refusal (each check is evaluated all the same, and listed):

    1  REPORT_DATA is the value for this nonce and these keys                                 FreshnessError
    2  HOST_DATA is the job's, and the policy accepts every other field                       AppraisalError

1 comes first because a stale report says nothing of the guest that showed it: its findings would be about another.
HOST_DATA is part of REPORT_DATA; for 1 it may be the job's or the report's own (signed) one. The two differ only when 2
refuses HOST_DATA anyway, and then the finding names what is wrong: a launch for another job, not a stale report.
"""

from __future__ import annotations

import hmac
from dataclasses import InitVar, dataclass

from cvmtool.errors import AppraisalError, FreshnessError
from cvmtool.formats.evidence import Evidence, report_data
from cvmtool.formats.report import Report
from cvmtool.owner.checks import Check
from cvmtool.owner.judge import judge
from cvmtool.owner.policy import Policy
from cvmtool.owner.verify import AuthenticReport

_MADE_HERE = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedGuest:
    """A guest that the owner may trust with a secret; `appraise` alone makes one.

    `ssh_host_key`, `receipt_key` (Ed25519) and `hpke_key` (X25519), 32 bytes each, are this boot's and signed for.
    `checks`: everything that was verified and judged, all passed. `unchecked`: what the policy left out by name.
    `simulated`: a dry run, which is confidential to nobody; whatever is made of it must say so.
    """

    simulated: bool
    report: Report
    ssh_host_key: bytes
    hpke_key: bytes
    receipt_key: bytes
    host_data: bytes
    report_data: bytes
    checks: tuple[Check, ...]
    unchecked: tuple[str, ...]
    token: InitVar[object]

    def __post_init__(self, token: object) -> None:
        if token is not _MADE_HERE:
            raise TypeError("a VerifiedGuest is made by appraise alone")


class RefusedError(AppraisalError):
    """The policy refuses a genuine, fresh report. `checks`: all of them, the passed ones too."""

    def __init__(self, checks: tuple[Check, ...], *, hint: str | None = None) -> None:
        failed = tuple(check for check in checks if not check.passed)
        super().__init__(
            f"the policy refuses this guest: {'; '.join(check.sentence() for check in failed)}",
            findings=tuple(check.finding() for check in failed),
            hint=hint,
        )
        self.checks = checks


class StaleEvidenceError(FreshnessError):
    """The report is not over this nonce and these keys. `checks`: all of them, the policy's too."""

    def __init__(self, check: Check, checks: tuple[Check, ...]) -> None:
        super().__init__(
            check.sentence(),
            detail=f"{check.code}: {check.why}",
            hint="ask again with a new nonce; if it recurs, somebody replays evidence or stands in between",
        )
        self.checks = checks


def appraise(
    authentic: AuthenticReport, policy: Policy, *, nonce: bytes, evidence: Evidence, host_data: bytes
) -> VerifiedGuest:
    """Decide whether the guest that showed `evidence` for `nonce` is trusted with the job of `host_data` (32 bytes).

    `authentic` must be the verified report of this evidence.

    Raises:
        StaleEvidenceError: REPORT_DATA is not the value for this nonce and these keys (a FreshnessError).
        RefusedError: the policy refuses the report; all findings are listed (an AppraisalError).
        FormatError: a field has another size.
    """
    if not hmac.compare_digest(authentic.raw, evidence.report):
        raise ValueError("the authentic report is not the one of this evidence")
    fresh = _fresh(authentic.report, nonce, evidence, host_data)
    judged = judge(authentic, policy, host_data=host_data)
    checks = (*authentic.checks, fresh, *judged)
    if not fresh.passed:
        raise StaleEvidenceError(fresh, checks)
    if not all(check.passed for check in checks):
        raise RefusedError(checks)
    return VerifiedGuest(
        simulated=authentic.simulated,
        report=authentic.report,
        ssh_host_key=evidence.ssh_host_key,
        hpke_key=evidence.hpke_key,
        receipt_key=evidence.receipt_key,
        host_data=authentic.report.host_data,
        report_data=authentic.report.report_data,
        checks=checks,
        unchecked=policy.unchecked,
        token=_MADE_HERE,
    )


def _fresh(report: Report, nonce: bytes, evidence: Evidence, host_data: bytes) -> Check:
    expected, launched = (
        report_data(
            nonce=nonce,
            ssh_host_key=evidence.ssh_host_key,
            hpke_key=evidence.hpke_key,
            receipt_key=evidence.receipt_key,
            host_data=value,
        )
        for value in (host_data, report.host_data)
    )
    return Check(
        code="report-data",
        actual=report.report_data.hex(),
        required=expected.hex(),
        passed=hmac.compare_digest(report.report_data, expected) or hmac.compare_digest(report.report_data, launched),
        why="it binds the report to this challenge and to the keys of this connection",
    )
