# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A check, what it found, and the line that tells it.

Zone: host. Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from cvmtool.host.doctor.facts import Seen
from cvmtool.host.doctor.source import Claim


class Verdict(StrEnum):
    """Their names are part of `--json`."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"
    SKIPPED = "skipped"


class Use(StrEnum):
    """What a host can be used for, the best first."""

    SNP = "sev-snp"
    KVM = "dry-run-kvm"
    TCG = "dry-run-tcg"


ALL_USES = frozenset(Use)
DRY_RUNS = frozenset({Use.KVM, Use.TCG})


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a check found: `evidence` is what was read and where, `remedy` what mends it."""

    verdict: Verdict
    evidence: str
    remedy: str = ""


def ok(evidence: str) -> Outcome:
    """Nothing to mend."""
    return Outcome(verdict=Verdict.OK, evidence=evidence)


def warn(evidence: str, remedy: str) -> Outcome:
    """It works, and somebody should know."""
    return Outcome(verdict=Verdict.WARN, evidence=evidence, remedy=remedy)


def fail(evidence: str, remedy: str) -> Outcome:
    """It cannot work like this."""
    return Outcome(verdict=Verdict.FAIL, evidence=evidence, remedy=remedy)


def unknown(claim: Claim[object] | str, remedy: str = "") -> Outcome:
    """Nothing was learnt; a claim says why."""
    evidence = claim if isinstance(claim, str) else claim.evidence
    return Outcome(verdict=Verdict.UNKNOWN, evidence=evidence, remedy=remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question. `code` is stable; `needs` are the codes of checks without which it has no meaning.

    `essential`: its uses are not promised while the answer is unknown. Of any other check that is no obstacle.
    """

    code: str
    why: str
    uses: frozenset[Use]
    look: Callable[[Seen], Outcome]
    needs: tuple[str, ...] = ()
    essential: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What a check found, as people and scripts see it."""

    check: Check
    outcome: Outcome

    @property
    def blocks(self) -> bool:
        """Whether the check's uses are out of the question, as far as this line goes."""
        verdict = self.outcome.verdict
        unsure = self.check.essential and verdict in {Verdict.UNKNOWN, Verdict.SKIPPED}
        return verdict is Verdict.FAIL or unsure
