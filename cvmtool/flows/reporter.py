# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""How a flow tells what it does, without knowing who listens: a terminal, JSON lines, or a test.

Zone: flows.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from cvmtool.formats.control import LogRecord
    from cvmtool.owner.appraise import VerifiedGuest


class Stage(StrEnum):
    """The parts of a run, in order. Their names are part of `--json`."""

    BUILD = "build"
    FIT = "fit"
    PACK = "pack"
    CONSENT = "consent"
    START = "start"
    BOOT = "boot"
    ATTEST = "attest"
    UNLOCK = "unlock"
    TRAIN = "train"
    RESULTS = "results"


class Reporter(Protocol):
    """Takes what a flow has to say. Its methods return at once and never raise."""

    def stage(self, stage: Stage, text: str) -> AbstractContextManager[None]:
        """Mark the time that a stage takes."""
        ...

    def step(self, text: str) -> None:
        """Say what happens inside the running stage."""
        ...

    def progress(self, done: int, total: int) -> None:
        """Say how far the running stage has come, in bytes."""
        ...

    def usage(self, usage: Mapping[str, int]) -> None:
        """Say what the container uses, by the names of `flows.usage.USED`."""
        ...

    def notice(self, text: str) -> None:
        """Say something the user should know and need not act on."""
        ...

    def verdict(self, guest: VerifiedGuest) -> None:
        """Show the checks that were passed."""
        ...

    def log(self, record: LogRecord) -> None:
        """Pass on what the container printed. Not trusted to be printable."""
        ...
