# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What was tried for one run or machine: each launch, each attested session in it, and to which of them keys were sent.

Zone: flows (owner's machine). Part of the owner's records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

from cvmtool.errors import FormatError

MAX_ATTEMPTS = 3
"""Launches of one run: a host on which it dies three times is not worth a fourth."""


@dataclass(slots=True, kw_only=True)
class SessionNote:
    """One attested session. Keys are sealed to the evidence for this nonce, and to nothing else."""

    nonce: str
    """64 hex digits; never used twice."""
    boot: str
    """The key that the guest made when it booted, 64 hex digits: the same as long as it lives."""
    released: bool = False
    """Keys were sent in it, after its evidence was accepted."""


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One launch."""

    started: str
    sessions: list[SessionNote] = field(default_factory=list)
    ended: str | None = None
    cause: str | None = None
    """Why it ended, if that was not the end of the run."""

    def end(self, cause: str | None = None) -> None:
        """Note that the launch is over."""
        self.ended = now()
        self.cause = cause


def now() -> str:
    """Return the time, as records have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def parse_attempts(value: object) -> list[Attempt]:
    """Read the attempts of a record.

    Raises:
        FormatError: they do not follow the schema.
    """
    if not isinstance(value, list):
        raise FormatError("attempts is not a list")
    return [_attempt(item) for item in value]


def _attempt(value: object) -> Attempt:
    found = _members(value, Attempt, required={"started", "sessions"})
    sessions = found.pop("sessions")
    if not isinstance(sessions, list) or not all(item is None or isinstance(item, str) for item in found.values()):
        raise FormatError("an attempt is out of shape")
    return Attempt(**found, sessions=[_session(item) for item in sessions])


def _session(value: object) -> SessionNote:
    found = _members(value, SessionNote, required={"nonce", "boot", "released"})
    if not all(isinstance(found[key], str) for key in ("nonce", "boot")) or not isinstance(found["released"], bool):
        raise FormatError("a session is out of shape")
    return SessionNote(**found)


def _members(value: object, of: type, *, required: set[str]) -> dict[str, Any]:
    known = {item.name for item in fields(of)}
    if not isinstance(value, Mapping) or not required <= value.keys() <= known:
        raise FormatError(f"a {of.__name__.lower()} has other keys than {', '.join(sorted(known))}")
    return dict(value)
