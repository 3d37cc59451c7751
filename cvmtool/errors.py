# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Every failure cvmtool raises on purpose, and the exit code each one ends in.

Zone: shared. Imports nothing of cvmtool.

    CvmError(message, *, detail=None, hint=None)            exit
    |- ConfigError        a file, a key, and why               3
    |- FormatError        bytes do not follow their format     4
    |- VerificationError  not genuine (chain, signature)       5
    |- AppraisalError     genuine, but refused; .findings      6
    |- FreshnessError     stale or replayed: nonce, key, order 7
    |- HostError          the host failed us: availability     8
    |- BuildError         image build or mismatch              9
    `- JobError           the job itself failed               10

0 is success, 1 a bug (with a traceback), 2 wrong usage (Click's), 130 an interruption. A script can tell "the host is
down" (8) from "someone is forging" (5 to 7); those are never merged.

Messages are lower case without a full stop and say field, actual and required. A hint is the next command or a question.
No message holds a secret; text that came from the host goes into `detail` only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


class CvmError(Exception):
    """A failure with a cause that a user can act on."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, detail: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.hint = hint


class ConfigError(CvmError):
    """A setting, a job file or a command's argument cannot be used."""

    exit_code = 3


class FormatError(CvmError):
    """Bytes do not follow the format they claim."""

    exit_code = 4


class VerificationError(CvmError):
    """Evidence or an artefact is not genuine."""

    exit_code = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check that did not pass. `code` is stable; `why` says in plain words what the check protects."""

    code: str
    field: str
    actual: str
    required: str
    why: str = ""


class AppraisalError(CvmError):
    """Genuine, but refused by policy: `findings` holds every violation, never the first alone."""

    exit_code = 6

    def __init__(
        self, message: str, *, findings: tuple[Finding, ...], detail: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, detail=detail, hint=hint)
        self.findings = findings


class FreshnessError(CvmError):
    """Stale or replayed: the wrong nonce, the wrong key, the wrong order."""

    exit_code = 7


class HostError(CvmError):
    """The host failed us. This says nothing about trust, only about availability."""

    exit_code = 8


class BuildError(CvmError):
    """An image cannot be built, or a rebuild differs."""

    exit_code = 9


class JobError(CvmError):
    """The job itself failed: its container ended with another code than 0, or broke a limit."""

    exit_code = 10
