# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""One line about a running container: how far it is by its own words, and what it uses by the guest's.

Zone: cli.
"""

from __future__ import annotations

from collections.abc import Mapping

from cvmtool.cli.rate import time_left
from cvmtool.flows.jobmetrics import Metrics, Pace, Value, parse_metrics

_MIB = 1 << 20
_SHOWN = 4  # values besides the count


class ProgressLine:
    """Takes what a container prints and the guest's numbers, and says both in short."""

    def __init__(self) -> None:
        self._pace = Pace()
        self._progress = ""
        self._usage = ""
        self._cpu: tuple[float, float] | None = None

    @property
    def text(self) -> str:
        """What to show; empty at first."""
        return "; ".join(filter(None, (self._progress, self._usage)))

    def take(self, line: str, microseconds: int) -> bool:
        """Take a line of the container's, printed at `microseconds`; say whether it is metrics."""
        values = parse_metrics(line.encode("utf-8", "replace"))
        if values is None:
            return False
        metrics = Metrics(microseconds=microseconds, values=values)
        left = self._pace.seconds_left(metrics)
        parts = []
        counted: set[str] = set()
        if metrics.progress is not None:
            name, done, total = metrics.progress
            parts.append(f"{name} {done:g}/{total:g}")
            counted = {name, f"{name}s"}
        parts += [f"{key} {_shown(value)}" for key, value in values.items() if key not in counted][:_SHOWN]
        if left is not None:
            parts.append(f"{time_left(left)} left")
        self._progress = ", ".join(parts)
        return True

    def use(self, usage: Mapping[str, object], at: float) -> None:
        """Take what the guest says it uses, in bytes and microseconds, at a moment in seconds."""
        parts = []
        memory, cpu = usage.get("memory_bytes"), usage.get("cpu_microseconds")
        if isinstance(memory, int):
            parts.append(f"{memory // _MIB} MiB")
        if isinstance(cpu, int):
            if self._cpu is not None and at > self._cpu[0] and cpu / 1e6 >= self._cpu[1]:
                parts.append(f"{(cpu / 1e6 - self._cpu[1]) / (at - self._cpu[0]):.1f} CPUs")
            self._cpu = (at, cpu / 1e6)
        self._usage = ", ".join(parts)


def _shown(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
