# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Look on at a run of any process, from its record: what happened, what its container printed, until it is over.

Zone: flows (owner's machine).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cvmtool.flows.jobdb import Document
from cvmtool.flows.jobrecord import JobState
from cvmtool.flows.jobs import LOG_FILE, JobDir
from cvmtool.flows.reporter import Stage
from cvmtool.formats.control import LogReader, LogRecord

POLL_SECONDS = 0.25
_PIECE = 1 << 16  # bytes of a log read at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    """An event of the run."""

    number: int
    event: Document


@dataclass(frozen=True, slots=True, kw_only=True)
class Latest:
    """What is last known of what changes all the time, by its name (`jobevents.PROGRESS`, `USAGE`)."""

    values: dict[str, Document]


def follow(job: JobDir, *, after: int = -1) -> Iterator[Happened | LogRecord | Latest]:
    """Yield what a run's record has, from the event behind number `after` and from the log's beginning, and what comes, to its end.

    `job.record` is as of the last that was yielded.

    Raises:
        FormatError: record or log are damaged.
        ConfigError: the run was deleted meanwhile.
    """
    tail = LogTail(job.path)
    latest: dict[str, Document] = {}
    while True:
        job.reread()  # before what it has to say: whatever is said until it is over is heard
        over = job.record.state is not JobState.RUNNING
        events = [
            Happened(number=number, event=event) for number, _, event in job.database.events(job.record.id, after=after)
        ]
        logged = next((at for at, item in enumerate(events) if _ends_the_log(item.event)), len(events))
        yield from events[:logged]
        yield from tail.read()
        yield from events[logged:]
        after = events[-1].number if events else after
        known = job.database.latest(job.record.id)
        if known != latest:
            latest = known
            yield Latest(values=known)
        if over:
            return
        time.sleep(POLL_SECONDS)


def _ends_the_log(event: Document) -> bool:
    return event.get("stage") == Stage.TRAIN.value and event.get("state") != "begun"


class LogTail:
    """Reads a run's log as it grows; begins anew when another one has taken its place."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOG_FILE
        self._file = -1
        self._offset = 0
        self._reader = LogReader()

    def read(self) -> Iterator[LogRecord]:
        """Yield the whole records that have come since.

        Raises:
            FormatError: it is no log.
        """
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return
        with file:
            number = os.fstat(file.fileno()).st_ino
            if number != self._file:
                self._file, self._offset, self._reader = number, 0, LogReader()
            file.seek(self._offset)
            while data := file.read(_PIECE):
                self._offset += len(data)
                yield from self._reader.feed(data)
