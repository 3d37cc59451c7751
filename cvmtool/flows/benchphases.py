# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The phases of a run, and what each took: from the log of its container and the owner's clock.

Zone: flows. Pure. A container names its phases itself, by lines of its standard output that are a JSON object with `phase`:

    {"phase": "compute"}

Its time until the first such line is `load`; a container that names none has one phase, `run`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cvmtool.formats.control import LogRecord, Stream

START, RUN, EXPORT = "start", "run", "export"
LOAD = "load"
NAMED = ("load", "compute", "checkpoint", "export")
"""What a container may name. Its own `export` is writing the outputs; bringing them home is added to it."""
PHASES = (START, LOAD, "compute", "checkpoint", RUN, EXPORT)
"""In the order in which they are shown."""
_MAX_LINE = 4096  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What a run took in one place: seconds by phase."""

    where: str
    seconds: dict[str, float]

    @property
    def total(self) -> float:
        """All of it, in seconds."""
        return sum(self.seconds.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What was noted of a run: seconds until the container started, that it ran, that its outputs took, and its log."""

    start: float
    run: float
    export: float
    records: Sequence[LogRecord]

    def taken(self, where: str) -> Taken:
        """Return it by phase."""
        seconds = {START: self.start, **split(marks(self.records), self.run)}
        seconds[EXPORT] = seconds.get(EXPORT, 0.0) + self.export
        return Taken(where=where, seconds={name: round(seconds[name], 3) for name in PHASES if name in seconds})


def marks(records: Iterable[LogRecord]) -> list[tuple[float, str]]:
    """Return when a container named which phase, in seconds since its start."""
    found, line = [], b""
    for record in records:
        if record.stream is not Stream.STDOUT:
            continue
        *ended, line = (line + record.data).split(b"\n")
        named = [name for name in map(_phase, ended) if name is not None]
        found += [(record.microseconds / 1e6, name) for name in named]
        line = line[-_MAX_LINE:]
    return found


def _phase(line: bytes) -> str | None:
    if len(line) >= _MAX_LINE or not line.startswith(b"{"):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    name = value.get("phase") if isinstance(value, dict) else None
    return name if isinstance(name, str) and name in NAMED else None


def split(named: Sequence[tuple[float, str]], whole: float) -> dict[str, float]:
    """Share out `whole` seconds among the phases that a container named; a phase that comes again adds up."""
    if not named:
        return {RUN: whole}
    seconds: dict[str, float] = {}
    now, phase = 0.0, LOAD
    for at, following in (*named, (whole, "")):
        until = min(max(at, now), whole)  # the guest's clock is not the owner's
        seconds[phase] = seconds.get(phase, 0.0) + until - now
        now, phase = until, following
    return seconds


def ratios(taken: Taken, base: Taken) -> dict[str, float]:
    """Return how many times as long as in `base` each phase took, and all of it; phases of no time there are left out."""
    both = {name: (value, base.seconds.get(name, 0.0)) for name, value in taken.seconds.items()}
    found = {name: round(value / other, 2) for name, (value, other) in both.items() if other > 0}
    return found | ({"total": round(taken.total / base.total, 2)} if base.total > 0 else {})
