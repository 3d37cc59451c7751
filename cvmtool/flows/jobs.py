# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The owner's record of each run: what was asked, what was proven, what came back.

Zone: flows (owner's machine). What is known of a run is in the database (`cvmtool.flows.jobdb`); what is bulky, or must be kept
byte for byte, is in the run's directory, and every file is written atomically.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from cvmtool.config import private_dir, write_atomic
from cvmtool.errors import ConfigError
from cvmtool.flows.attempts import now
from cvmtool.flows.jobdb import JobsDatabase
from cvmtool.flows.jobrecord import JobRecord, JobState

# Names in a job's directory.
MANIFEST_FILE = "manifest.json"  # canonical bytes; HOST_DATA commits to them
JOB_FILE = "job.yaml"  # as the user wrote it
EVIDENCE_FILE = "evidence.bin"
POLICY_FILE = "policy.toml"
VERDICT_FILE = "verdict.json"
LOG_FILE = "log"  # records as in docs/protocol.md section 8
RECEIPT_FILE = "receipt.json"
OUTPUTS_DIR = "outputs"  # only when the results' own folder could not take them


class JobDir:
    """One run's directory."""

    def __init__(self, path: Path, record: JobRecord, *, lock: int | None = None) -> None:
        """`lock`: the descriptor by which this process holds the run, if it does."""
        self.path = path
        self.record = record
        self.database = JobsDatabase(path.parent)
        self._lock = lock

    @classmethod
    def create(cls, jobs_dir: Path, name: str, *, simulated: bool) -> JobDir:
        """Make the directory of a new run."""
        job_id = f"{name[:40]}-{datetime.now(UTC):%m%d-%H%M%S}-{secrets.token_hex(2)}"
        path = private_dir(private_dir(jobs_dir) / job_id)
        record = JobRecord(
            id=job_id,
            name=name,
            simulated=simulated,
            state=JobState.RUNNING,
            created=now(),
            machine=job_id,
        )
        job = cls(path, record)
        job.hold(patience_seconds=0)
        return job

    @classmethod
    def inherit(cls, jobs_dir: Path, job_id: str, lock: int) -> JobDir:
        """Take a run over from the process that held it; `lock`: the descriptor that it passed on.

        Raises:
            ConfigError: there is no such run.
        """
        found = load_job(jobs_dir, job_id)
        job = cls(found.path, found.record, lock=lock)
        job.record.pid = os.getpid()
        job.save()
        return job

    def hold(self, *, patience_seconds: float = 2.0) -> None:
        """Make this process the one that runs it. The kernel lets go however a process ends.

        Raises:
            ConfigError: another one runs it.
        """
        end = time.monotonic() + patience_seconds
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:  # who asks whether it runs holds it for a moment
                if time.monotonic() > end:
                    os.close(descriptor)
                    raise ConfigError(
                        f"job {self.record.id} is run by another process", hint=f"cvmtool jobs attach {self.record.id}"
                    ) from error
            time.sleep(0.01)
        self._lock = descriptor
        self.record.state, self.record.pid = JobState.RUNNING, os.getpid()
        self.record.finished = self.record.error = self.record.exit_code = None
        self.save()

    @property
    def lock(self) -> int:
        """The descriptor by which this process holds it; a process that inherits it holds it too.

        Raises:
            RuntimeError: this process does not.
        """
        if self._lock is None:
            raise RuntimeError(f"job {self.record.id} is not held")
        return self._lock

    def let_go(self) -> None:
        """Hold it no more: another process does, or the run is over. Idempotent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def reread(self) -> None:
        """Take the record as it stands now.

        Raises:
            ConfigError: the run was deleted.
        """
        found = _records(self.path.parent, self.record.id)
        if not found:
            raise ConfigError(f"job {self.record.id} is not there any more", hint="cvmtool jobs list")
        self.record = found[0]

    def save(self) -> None:
        """Write the record."""
        self.database.save(self.record)

    def finish(self, state: JobState, *, error: str | None = None, exit_code: int | None = None) -> None:
        """Note how the run ended."""
        self.record.state = state
        self.record.error = error
        self.record.exit_code = exit_code if exit_code is not None else self.record.exit_code
        self.record.finished = now()
        for attempt in self.record.attempts:
            if attempt.ended is None:
                attempt.end(error)
        self.save()
        self.let_go()

    def write(self, name: str, data: bytes) -> None:
        """Write one of the run's files."""
        write_atomic(self.path / name, data)


def _is_held(folder: Path) -> bool:
    """Say whether a process runs the job of this directory."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def load_job(jobs_dir: Path, reference: str) -> JobDir:
    """Find a run by its id, by an unambiguous beginning of it, or by the job's name (the latest run).

    Raises:
        ConfigError: there is none, or several.
    """
    jobs = list(load_jobs(jobs_dir)) if reference else []
    found = [job for job in jobs if job.record.id.startswith(reference)]
    exact = [job for job in found if job.record.id == reference]
    named = [job for job in jobs if job.record.name == reference]
    chosen = exact or (named[-1:] if named else found)
    if not chosen:
        raise ConfigError(f"there is no job {reference!r}", hint="cvmtool jobs list")
    if len(chosen) > 1:
        raise ConfigError(f"{reference!r} names {len(chosen)} jobs", hint="cvmtool jobs list; give more of the id")
    return chosen[0]


def load_jobs(jobs_dir: Path) -> Iterator[JobDir]:
    """Yield every run, oldest first, but those whose directory was deleted.

    Raises:
        ConfigError, FormatError: as `JobsDatabase`.
    """
    for record in _records(jobs_dir):
        yield JobDir(jobs_dir / record.id, record)


def _records(jobs_dir: Path, job: str | None = None) -> list[JobRecord]:
    """Return the records of all runs, or of one, whose directory is there; lost is what no process holds."""
    database = JobsDatabase(jobs_dir)
    records = database.load(job)
    dead = {record.id for record in records if record.state is JobState.RUNNING and not _is_held(jobs_dir / record.id)}
    if dead:
        records = database.load(job)  # it may have ended between the two
    for record in records:
        if record.id in dead and record.state is JobState.RUNNING:
            record.state = JobState.LOST
    return [record for record in records if (jobs_dir / record.id).is_dir()]
