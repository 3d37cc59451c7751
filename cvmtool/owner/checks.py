# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""One check as the user sees it: what was looked at, what was found, what was required, and what it protects from.

Zone: owner (trusted). Pure: no I/O.

Genuineness (`verify`) stops at the first check that fails, since nothing after it may be believed. Policy (`appraise`)
evaluates every check and lists them all.
"""

from __future__ import annotations

from dataclasses import dataclass

from cvmtool.errors import Finding, VerificationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A check and its outcome. `code` is stable and may be scripted against; the rest is for people."""

    code: str
    title: str
    actual: str
    required: str
    passed: bool
    why: str

    def finding(self) -> Finding:
        """Return this check as a violation."""
        return Finding(code=self.code, field=self.title, actual=self.actual, required=self.required, why=self.why)

    def sentence(self) -> str:
        """Return the check as one lower-case sentence without a full stop."""
        return f"{self.title} is {self.actual}; required: {self.required}"


class NotGenuineError(VerificationError):
    """The report is not what AMD's keys signed; `check` is the one that failed."""

    def __init__(self, check: Check, *, hint: str | None = None) -> None:
        super().__init__(check.sentence(), detail=f"{check.code}: {check.why}", hint=hint)
        self.check = check
