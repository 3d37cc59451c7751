# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What is on record of each run.

Zone: flows (owner's machine). Pure. `cvmtool.flows.jobdb` keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from cvmtool.flows.attempts import Attempt


class JobState(StrEnum):
    """Where a run stands."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    REFUSED = "refused"
    INTERRUPTED = "interrupted"
    LOST = "lost"
    """The process that ran it was killed; never written, found out when a record is read."""


@dataclass(slots=True, kw_only=True)
class JobRecord:
    """What `jobs show` shows."""

    id: str
    name: str
    simulated: bool
    state: JobState
    created: str
    machine: str
    pid: int | None = None
    """The process that runs it, or ran it last."""
    finished: str | None = None
    exit_code: int | None = None
    error: str | None = None
    results: str | None = None
    """Directory of the outputs."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds by stage."""
    attempts: list[Attempt] = field(default_factory=list)
    """Launches, and the attested sessions of each."""
