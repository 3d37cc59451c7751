# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""End a run from another process, and copy what it brought home.

Zone: flows (owner's machine).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from cvmtool.config import Settings
from cvmtool.errors import ConfigError, FormatError, HostError, VerificationError
from cvmtool.flows.jobdb import Document
from cvmtool.flows.jobevents import RESULTS
from cvmtool.flows.jobrecord import JobState
from cvmtool.flows.jobs import MANIFEST_FILE, RECEIPT_FILE, JobDir
from cvmtool.flows.keeper import Keeper
from cvmtool.flows.machine import destroy_machine
from cvmtool.flows.records import load_record
from cvmtool.formats.age import SUFFIX
from cvmtool.formats.job import JobManifest, parse_job_manifest

CANCEL_SECONDS = 120.0
"""For a process to end its run in order: its machine is removed, and a host may be slow."""
_LOOK_SECONDS = 0.2


def cancel(
    job: JobDir, settings: Settings, *, notice: Callable[[str], None], patience_seconds: float = CANCEL_SECONDS
) -> None:
    """End a run. The process that runs it does that in order; where it died, the machine it left is removed.

    A job with checkpoints has its container asked to end, and what it wrote by the end of its grace is kept. `patience_seconds`
    are counted from there. `notice` is told what is kept.

    Raises:
        ConfigError: the run is over.
        HostError: the process does not end, or the host does not let go of the machine.
    """
    if job.record.state not in {JobState.RUNNING, JobState.LOST}:
        raise ConfigError(f"job {job.record.id} is over: {job.record.state}", hint=f"cvmtool jobs show {job.record.id}")
    manifest = _manifest(job)
    checkpoint = manifest.checkpoint if manifest else None
    patience_seconds += checkpoint.grace_seconds if checkpoint else 0
    end = time.monotonic() + patience_seconds
    told: set[int | None] = set()
    while job.record.state is JobState.RUNNING:
        # As long as the run is held, its number is that of a process that lives: of the command, then of the supervisor.
        if job.record.pid is not None and job.record.pid not in told:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(job.record.pid, signal.SIGTERM)
            told.add(job.record.pid)
        if time.monotonic() > end:
            raise HostError(
                f"the process {job.record.pid} that runs job {job.record.id} has not ended for {patience_seconds:.0f} s",
                hint=f"kill -9 {job.record.pid}; then cvmtool jobs cancel {job.record.id} again removes its machine",
            )
        time.sleep(_LOOK_SECONDS)
        job.reread()
    if job.record.state is not JobState.LOST:
        return
    job.hold()
    try:
        known = load_record(settings.records_dir, job.record.machine)
        if known is not None:
            destroy_machine(job.record.machine, settings)
        if manifest is not None:
            here = replace(settings, host=known.host if known else settings.host)
            Keeper(manifest, here, every_seconds=0).settle(done=False, notice=notice)
    except BaseException:
        job.let_go()  # lost as it was: this can be tried again
        raise
    job.finish(JobState.INTERRUPTED, error="cancelled after the process that ran it had died")


def _manifest(job: JobDir) -> JobManifest | None:
    """Return a run's manifest; None if it is gone or damaged, which keeps no run from being ended."""
    try:
        return parse_job_manifest((job.path / MANIFEST_FILE).read_bytes())
    except (OSError, FormatError):
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What a run brought home."""

    folder: Path
    outputs: tuple[Document, ...]
    """As in `cvmtool/train/v1`, each with the path it has now."""


def results(job: JobDir, *, out: Path | None) -> Results:
    """Return what a run brought home; copy it to `out`, if that is given, with the receipt.

    Raises:
        ConfigError: it brought nothing home, or it is not there any more, or `out` cannot be written.
        VerificationError: an output is not any more what came home.
    """
    record = job.record
    folder = None if record.results is None else Path(record.results)
    found = job.database.latest(record.id).get(RESULTS)
    if folder is None or found is None:
        raise ConfigError(f"job {record.id} brought nothing home: it is {record.state}", hint=_hint(job))
    outputs = []
    for item in found["outputs"]:
        sealed = item.get("sealed")
        name, content = (f"{item['name']}{SUFFIX}", sealed) if sealed else (str(item["name"]), item)
        source = folder / name
        _require_same(source, str(content["sha256"]))
        outputs.append({**item, "path": str(source if out is None else _copy(source, out / name))})
    if out is not None:
        _copy(folder / RECEIPT_FILE, out / RECEIPT_FILE)
    return Results(folder=out or folder, outputs=tuple(outputs))


def _hint(job: JobDir) -> str:
    name = job.record.id
    return {
        JobState.RUNNING: f"cvmtool jobs attach {name}",
        JobState.LOST: f"cvmtool jobs resume {name} fetches them, or runs it again",
    }.get(job.record.state, f"cvmtool jobs logs {name}")


def _require_same(path: Path, sha256: str) -> None:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"output {path} cannot be read", detail=str(error)) from error
    if digest != sha256:
        raise VerificationError(f"output {path} has SHA-256 {digest}; {sha256} came home", hint="it was changed since")


def _copy(source: Path, target: Path) -> Path:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not (target.exists() and target.samefile(source)):
            shutil.copyfile(source, target)
    except OSError as error:
        raise ConfigError(f"{target} cannot be written", detail=str(error)) from error
    return target
