# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A run's log as it arrives: byte by byte into the run's record, record by record to whoever watches.

Zone: flows. It goes on where it stopped when a connection was lost, and begins anew when the machine was started again; what
came before is kept beside it (`log.1`, `log.2`). A process that takes a run up again has the whole log sent once more: what an
earlier one wrote may end anywhere. Metrics found in it go into the database.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from cvmtool.errors import CvmError
from cvmtool.flows.jobmetrics import MetricsReader
from cvmtool.flows.jobs import LOG_FILE, JobDir
from cvmtool.flows.reporter import Reporter
from cvmtool.formats.control import LogReader


class JobLog:
    """The log of one run."""

    def __init__(self, job: JobDir, reporter: Reporter) -> None:
        self.job = job
        self._reporter = reporter
        self._path = job.path / LOG_FILE
        self._attempt = 0
        self._reader = LogReader()
        self._metrics = MetricsReader()

    def begin(self) -> int:
        """Make ready for what the running attempt has to say; return from which byte on."""
        attempt = len(self.job.record.attempts)
        if attempt != self._attempt:
            if self._path.exists() and not self._is_of_this_guest:
                self._path.rename(self._path.with_name(f"{LOG_FILE}.{attempt - 1}"))
            self._path.unlink(missing_ok=True)
            self._attempt = attempt
            self._reader, self._metrics = LogReader(), MetricsReader()
            self.job.database.clear_metrics(self.job.record.id)
            self._path.touch(0o600)
        return self._path.stat().st_size

    @property
    def _is_of_this_guest(self) -> bool:
        """Whether what is there was heard from the guest that runs now: it had its keys before this session."""
        return any(session.released for session in self.job.record.attempts[-1].sessions[:-1])

    def follow(self, pieces: Iterable[bytes]) -> None:
        """Take what arrives, until it ends.

        Raises:
            FormatError: it is no log.
        """
        with self._path.open("ab") as file:
            for piece in pieces:
                file.write(piece)
                file.flush()
                metrics = []
                for record in self._reader.feed(piece):
                    self._reporter.log(record)
                    metrics += self._metrics.feed(record)
                if metrics:
                    with suppress(CvmError):  # that they cannot be kept does not end a run
                        self.job.database.add_metrics(self.job.record.id, metrics)
