# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What a container says of its progress: lines of its standard output that are a JSON object of numbers and short texts.

Zone: flows. Pure. The text is the container's: bounded, parsed strictly; a line that is anything else is an ordinary line.

    {"epoch": 3, "epochs": 30, "loss": 0.412, "accuracy": 0.91}

`epoch` with `epochs`, or `step` with `steps`, say how far it is, and two such lines how long it takes yet. All other names are
the container's own.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass

from cvmtool.formats.control import LogRecord, Stream

MAX_LINE = 4096
"""Bytes."""
MAX_VALUES = 32
MAX_TEXT = 64
"""Characters of a text."""
_MAX_INTEGER = 1 << 53
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]{0,63}")
_COUNTED = (("epoch", "epochs"), ("step", "steps"))

Value = int | float | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """One such line."""

    microseconds: int
    """Since the container started, by the guest's clock."""
    values: dict[str, Value]

    @property
    def progress(self) -> tuple[str, float, float] | None:
        """What is counted, how much of it is done, and of how much; None if the line does not say."""
        for name, total_name in _COUNTED:
            done, total = self.values.get(name), self.values.get(total_name)
            if isinstance(done, int | float) and isinstance(total, int | float) and 0 <= done <= total and total > 0:
                return name, done, total
        return None


class MetricsReader:
    """Finds metrics in a log; feed it record by record."""

    def __init__(self) -> None:
        self._line = b""
        self._skipping = False

    def feed(self, record: LogRecord) -> list[Metrics]:
        """Return the metrics of the lines that end in this record."""
        if record.stream is not Stream.STDOUT:
            return []
        found = []
        *ended, rest = record.data.split(b"\n")
        for piece in ended:
            line, skipped = self._line + piece, self._skipping
            self._line, self._skipping = b"", False
            values = None if skipped else parse_metrics(line)
            if values is not None:
                found.append(Metrics(microseconds=record.microseconds, values=values))
        self._line += rest
        if len(self._line) > MAX_LINE or self._line[:1] not in (b"", b"{"):
            self._line, self._skipping = b"", True
        return found


def parse_metrics(line: bytes) -> dict[str, Value] | None:
    """Read a line of a log; None if it is no metrics."""
    if len(line) > MAX_LINE or not line.startswith(b"{"):
        return None
    try:
        pairs = json.loads(line, object_pairs_hook=_Pairs, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(pairs, _Pairs) or not 0 < len(pairs) <= MAX_VALUES:
        return None
    values = dict(pairs)
    if len(values) != len(pairs) or not all(_NAME.fullmatch(name) and _is_value(value) for name, value in pairs):
        return None
    return values if any(not isinstance(value, str) for value in values.values()) else None


class _Pairs(list[tuple[str, Value]]):
    """An object's members, names that stand twice among them."""


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _is_value(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_TEXT and value.isprintable()
    if isinstance(value, bool):
        return False
    return abs(value) < _MAX_INTEGER if isinstance(value, int) else isinstance(value, float) and math.isfinite(value)


class Pace:
    """How far a run is, and how long it takes yet; feed it metrics.

    What is counted in another way, or to another total, or is fewer than it was, begins anew.
    """

    def __init__(self) -> None:
        self._counted: tuple[str, float] | None = None
        self._first = self._last = 0.0
        self._begun = 0

    def seconds_left(self, metrics: Metrics) -> float | None:
        """Return the seconds to the end after these metrics; None if that cannot be said."""
        if metrics.progress is None:
            return None
        name, done, total = metrics.progress
        if self._counted != (name, total) or done < self._last:
            self._counted, self._first, self._begun = (name, total), done, metrics.microseconds
        self._last = done
        moved, seconds = done - self._first, (metrics.microseconds - self._begun) / 1e6
        return None if moved <= 0 or seconds < 0 else (total - done) * seconds / moved
