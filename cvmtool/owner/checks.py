# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""One check as the user sees it: what was looked at, what was found, what was required, and what it protects from.

Zone: owner (trusted). Pure: no I/O.

Genuineness (`verify`) stops at the first check that fails, since nothing after it may be believed. Policy (`appraise`)
evaluates every check and lists them all.
"""

from __future__ import annotations

from typing import NamedTuple

from cvmtool.errors import Finding, VerificationError


class Check(NamedTuple):
    """A check and its outcome. `code` is stable and may be scripted against; the rest is for people.

    A named tuple, since each verdict makes some 25 of these and a frozen dataclass takes three times as long to make.
    """

    code: str
    actual: str
    required: str
    passed: bool
    why: str

    @property
    def title(self) -> str:
        """What was looked at, in words."""
        return self.code.replace("-", " ")

    def to_json(self) -> dict[str, str | bool]:
        """Return the check as JSON has it: the fields, and the title behind the code."""
        return {"code": self.code, "title": self.title, **self._asdict()}

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
