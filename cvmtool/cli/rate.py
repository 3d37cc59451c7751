# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""How far something is, how fast it goes and how long it takes yet.

Zone: cli.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_MIB = 1 << 20


class Rate:
    """Follows one transfer after the other, in bytes. Another total, or a step back, begins a new one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._total = self._done = self._first = 0
        self._begun = 0.0

    def text(self, done: int, total: int) -> str:
        """Return what to show. A speed is told after a second of it, and without what was there before (a resumed upload)."""
        now = self._clock()
        if total != self._total or done < self._done:
            self._total, self._first, self._begun = total, done, now
        self._done = done
        text = f"{done // _MIB} of {total // _MIB} MiB"
        seconds, moved = now - self._begun, done - self._first
        if seconds < 1 or moved <= 0:
            return text
        speed = moved / seconds
        return f"{text}, {speed / _MIB:.1f} MiB/s, {time_left((total - done) / speed)} left"


def time_left(seconds: float) -> str:
    """Return a time in words of one unit or two."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
