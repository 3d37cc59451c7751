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

    def __init__(self, path: Path, record: JobRecord) -> None:
        self.path = path
        self.record = record
        self.database = JobsDatabase(path.parent)
        self._lock: int | None = None

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
            pid=os.getpid(),
        )
        job = cls(path, record)
        # Held while the run lasts, and let go by the kernel however this process ends.
        job._lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(job._lock, fcntl.LOCK_EX)
        job.save()
        return job

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
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

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
