# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What does confidentiality cost: one job natively, in a plain VM, and as it is meant to run, with the time of each phase.

Zone: flows. The three run one after the other, in rounds; a phase's figure is the median of its rounds.
"""

from __future__ import annotations

import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cvmtool.config import Settings
from cvmtool.errors import ConfigError
from cvmtool.flows.benchnative import run_native
from cvmtool.flows.benchphases import PHASES, Taken, Watch
from cvmtool.flows.benchplain import run_plain
from cvmtool.flows.decisions import Gate
from cvmtool.flows.platform import Platform
from cvmtool.flows.prepare import Prepared
from cvmtool.flows.reporter import Reporter, Stage
from cvmtool.flows.train import train
from cvmtool.formats.control import LogRecord
from cvmtool.formats.job import Kind
from cvmtool.owner.appraise import VerifiedGuest
from cvmtool.owner.jobfile import JobFile

NATIVE, PLAIN, DRY_RUN, CONFIDENTIAL = "native", "plain-vm", "dry-run", "confidential-vm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What was measured, in the order native, plain VM, dry run or confidential VM; and why a place was left out."""

    job: str
    simulated: bool
    emulated: str | None
    """Why CPUs were emulated; None if they were not."""
    rounds: int
    spread: float
    """By how much the longest round of a place was longer than its shortest: 0.5 is half as long again. 0 for one round."""
    taken: tuple[Taken, ...]
    skipped: dict[str, str]


@dataclass
class _Clock:
    """A reporter that notes when the stages of a run began and ended, and its log; a step or notice goes on."""

    onwards: Reporter
    begun: dict[Stage, float] = field(default_factory=dict)
    ended: dict[Stage, float] = field(default_factory=dict)
    records: list[LogRecord] = field(default_factory=list)
    emulated: str | None = None

    @contextmanager
    def stage(self, stage: Stage, text: str) -> Iterator[None]:
        """Note when a stage begins and ends."""
        self.onwards.step(text)
        self.begun.setdefault(stage, time.monotonic())
        yield
        self.ended[stage] = time.monotonic()

    def step(self, text: str) -> None:
        """Pass it on."""
        self.onwards.step(text)

    def progress(self, done: int, total: int) -> None:
        """Pass it on."""
        self.onwards.progress(done, total)

    def usage(self, usage: Mapping[str, int]) -> None:
        """Say nothing."""

    def notice(self, text: str) -> None:
        """Keep what was said of emulation."""
        if text.startswith("emulating"):
            self.emulated = text

    def verdict(self, guest: VerifiedGuest) -> None:
        """Say nothing: a refusal is an error."""

    def log(self, record: LogRecord) -> None:
        """Keep a record."""
        self.records.append(record)

    def watch(self) -> Watch:
        """Return what was noted."""
        running = self.begun[Stage.TRAIN]
        return Watch(
            start=running - self.begun[Stage.START],
            run=self.ended[Stage.TRAIN] - running,
            export=self.ended[Stage.RESULTS] - self.ended[Stage.TRAIN],
            records=tuple(self.records),
        )


def require_comparable(job: JobFile) -> None:
    """Refuse a job that only a confidential VM can run, or that does not end by itself.

    Raises:
        ConfigError: it is one; the message names the keys.
    """
    lacking = {
        "kind: serve": job.kind is Kind.SERVE,
        "checkpoint": job.checkpoint is not None,
        "network": bool(job.destinations),
        "parties": bool(job.parties),
        "resources.gpus": job.resources.gpus > 0,
    }
    if found := [key for key, there in lacking.items() if there]:
        raise ConfigError(
            f"job {job.name} has {', '.join(found)}; a job without is required to compare: only a confidential VM has it",
            hint="compare a copy of the job without",
        )


def compare(
    prepared: Prepared,
    *,
    platform: Platform,
    settings: Settings,
    reporter: Reporter,
    gate: Gate,
    rounds: int = 1,
) -> Comparison:
    """Run a prepared job everywhere, `rounds` times. `gate`: the rules of the run as it is meant.

    Raises:
        ConfigError: the job is one that cannot be compared.
        JobError: the container fails; HostError and what `train` raises.
    """
    require_comparable(prepared.file)
    simulated = platform.roots.simulated
    emulated: list[str | None] = [None]

    def whole() -> Watch:
        clock = _Clock(reporter)
        with tempfile.TemporaryDirectory() as results:
            train(
                prepared,
                platform=platform,
                settings=settings,
                reporter=clock,
                gate=gate,
                results=Path(results) / "results",
            )
        emulated[0] = clock.emulated
        return clock.watch()

    places: dict[str, Callable[[], Watch]] = {
        NATIVE: lambda: run_native(prepared, settings),
        PLAIN: lambda: run_plain(prepared, f"bench-{secrets.token_hex(4)}", settings),
        DRY_RUN if simulated else CONFIDENTIAL: whole,
    }
    taken: dict[str, list[Taken]] = {where: [] for where in places}
    skipped: dict[str, str] = {}
    for number in range(rounds):
        for where, run in places.items():
            if where in skipped:
                continue
            with reporter.stage(Stage.TRAIN, f"{where}, round {number + 1} of {rounds}"):
                try:
                    taken[where].append(run().taken(where))
                except ConfigError as error:
                    if run is whole:
                        raise
                    skipped[where] = error.message
    return Comparison(
        job=prepared.manifest.name,
        simulated=simulated,
        emulated=emulated[0],
        rounds=rounds,
        spread=round(max(_spread(found) for found in taken.values() if found), 3),
        taken=tuple(_median(found) for found in taken.values() if found),
        skipped=skipped,
    )


def _spread(taken: Sequence[Taken]) -> float:
    totals = [item.total for item in taken]
    return max(totals) / min(totals) - 1 if min(totals) > 0 else 0.0


def _median(taken: Sequence[Taken]) -> Taken:
    names = [name for name in PHASES if any(name in item.seconds for item in taken)]
    seconds = {name: statistics.median(item.seconds.get(name, 0.0) for item in taken) for name in names}
    return Taken(where=taken[0].where, seconds={name: round(value, 3) for name, value in seconds.items()})
