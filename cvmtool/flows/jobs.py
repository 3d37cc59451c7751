# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The owner's record of each run: what was asked, what was proven, what came back.

Zone: flows (owner's machine). One directory a run; every file is written atomically.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from cvmtool.config import private_dir, write_atomic
from cvmtool.errors import ConfigError, FormatError
from cvmtool.flows.attempts import Attempt, now, parse_attempts

# Names in a job's directory.
RECORD_FILE = "job.json"
MANIFEST_FILE = "manifest.json"  # canonical bytes; HOST_DATA commits to them
JOB_FILE = "job.yaml"  # as the user wrote it
EVIDENCE_FILE = "evidence.bin"
POLICY_FILE = "policy.toml"
VERDICT_FILE = "verdict.json"
LOG_FILE = "log"  # records as in docs/protocol.md section 8
RECEIPT_FILE = "receipt.json"
OUTPUTS_DIR = "outputs"  # only when the results' own folder could not take them
SCHEMA = "cvmtool/job-record/v1"


class JobState(StrEnum):
    """Where a run stands."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    REFUSED = "refused"
    INTERRUPTED = "interrupted"
    LOST = "lost"
    """The process that ran it was killed; never written, found out when a record is read."""


@dataclass(slots=True, kw_only=True)
class JobRecord:
    """What `jobs show` shows."""

    id: str
    name: str
    simulated: bool
    state: JobState
    created: str
    machine: str
    finished: str | None = None
    exit_code: int | None = None
    error: str | None = None
    results: str | None = None
    """Directory of the outputs."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds by stage."""
    attempts: list[Attempt] = field(default_factory=list)
    """Launches, and the attested sessions of each."""


class JobDir:
    """One run's directory."""

    def __init__(self, path: Path, record: JobRecord) -> None:
        self.path = path
        self.record = record
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
        )
        job = cls(path, record)
        # Held while the run lasts, and let go by the kernel however this process ends.
        job._lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(job._lock, fcntl.LOCK_EX)
        job.save()
        return job

    def save(self) -> None:
        """Write the record."""
        document = {"schema": SCHEMA, **asdict(self.record)}
        write_atomic(self.path / RECORD_FILE, json.dumps(document, indent=1).encode("utf-8") + b"\n")

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


def _parse_record(data: bytes) -> JobRecord:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError("the job's record is not JSON") from error
    names = {item.name for item in fields(JobRecord)}
    texts = ("id", "name", "created", "machine")
    if (
        not isinstance(value, dict)
        or value.pop("schema", None) != SCHEMA
        or not value.keys() <= names
        or not all(isinstance(value.get(key), str) for key in texts)
        or value.get("state") not in tuple(JobState)
        or not isinstance(value.get("simulated"), bool)
        or not isinstance(value.get("stages", {}), dict)
        or not all(isinstance(seconds, int | float) for seconds in value.get("stages", {}).values())
    ):
        raise FormatError(f"the job's record does not follow {SCHEMA}")
    attempts = parse_attempts(value.get("attempts", []))
    return JobRecord(**{**value, "state": JobState(value["state"]), "attempts": attempts})


def _is_held(folder: Path) -> bool:
    """Say whether a process runs the job of this directory."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
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
    """Yield every run, oldest first. A directory without a readable record is passed over."""
    jobs = []
    for path in jobs_dir.glob(f"*/{RECORD_FILE}"):
        try:
            record = _parse_record(path.read_bytes())
            if record.state is JobState.RUNNING and not _is_held(path.parent):
                # It may have ended between the two.
                record = _parse_record(path.read_bytes())
                record.state = JobState.LOST if record.state is JobState.RUNNING else record.state
        except (OSError, FormatError):
            continue
        jobs.append(JobDir(path.parent, record))
    yield from sorted(jobs, key=lambda job: (job.record.created, job.record.id))
