# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What happens in a run, as its record keeps it, so that any process of the owner can look on.

Zone: flows (owner's machine). An event is an object with the fields of `cvmtool/event/v1` (docs/reference/json.md).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from cvmtool.errors import (
    AppraisalError,
    BuildError,
    ConfigError,
    CvmError,
    Finding,
    FormatError,
    FreshnessError,
    HostError,
    JobError,
    VerificationError,
)
from cvmtool.flows.attempts import now
from cvmtool.flows.jobdb import Document, JobsDatabase

if TYPE_CHECKING:
    from cvmtool.flows.reporter import Reporter, Stage
    from cvmtool.formats.control import LogRecord
    from cvmtool.owner.appraise import VerifiedGuest

PROGRESS = "progress"
"""Of what changes all the time: bytes of the running stage, `done` and `total`."""
USAGE = "usage"
"""Of the same: what the guest says of its use of memory, CPU and outputs."""
RESULTS = "results"
"""What came home, as `cvmtool/train/v1` has it."""
_PROGRESS_SECONDS = 1.0
_CLASSES = (ConfigError, FormatError, VerificationError, FreshnessError, HostError, BuildError, JobError)
_OF_CODE = {cls.exit_code: cls for cls in _CLASSES}


class Recorder:
    """A reporter that keeps what it is told with the run, and passes it on. That it cannot be kept does not end a run."""

    def __init__(self, database: JobsDatabase, job: str, to: Reporter | None) -> None:
        """`to`: who is told besides; None for nobody."""
        self._database = database
        self._job = job
        self._to = to
        self._shown = 0.0

    @contextmanager
    def stage(self, stage: Stage, text: str) -> Iterator[None]:
        """Keep when it begins and when it ends."""
        begun = time.monotonic()
        self._keep(event="stage", stage=stage.value, state="begun", text=text)
        state = "failed"
        try:
            if self._to is None:
                yield
            else:
                with self._to.stage(stage, text):
                    yield
            state = "done"
        finally:
            seconds = round(time.monotonic() - begun, 3)
            self._keep(event="stage", stage=stage.value, state=state, text=text, seconds=seconds)

    def step(self, text: str) -> None:
        """Keep a step."""
        self._keep(event="step", text=text)
        if self._to is not None:
            self._to.step(text)

    def progress(self, done: int, total: int) -> None:
        """Keep the newest, now and then."""
        if time.monotonic() - self._shown > _PROGRESS_SECONDS or done == total:
            self._shown = time.monotonic()
            with suppress(CvmError):
                self._database.put_latest(self._job, PROGRESS, {"done": done, "total": total})
        if self._to is not None:
            self._to.progress(done, total)

    def notice(self, text: str) -> None:
        """Keep a notice."""
        self._keep(event="notice", text=text)
        if self._to is not None:
            self._to.notice(text)

    def verdict(self, guest: VerifiedGuest) -> None:
        """Keep every check."""
        checks = [check.to_json() for check in guest.checks]
        self._keep(event="verdict", simulated=guest.simulated, checks=checks, unchecked=list(guest.unchecked))
        if self._to is not None:
            self._to.verdict(guest)

    def usage(self, usage: Mapping[str, int]) -> None:
        """Keep the newest, and pass it on."""
        with suppress(CvmError):
            self._database.put_latest(self._job, USAGE, {**usage})
        if self._to is not None:
            self._to.usage(usage)

    def log(self, record: LogRecord) -> None:
        """Pass it on: the log itself is a file."""
        if self._to is not None:
            self._to.log(record)

    def brought(self, results: Document) -> None:
        """Keep what came home."""
        with suppress(CvmError):
            self._database.put_latest(self._job, RESULTS, results)

    def ended(self, error: BaseException | None) -> None:
        """Keep how the run ended."""
        self._keep(event="ended", error=None if error is None else error_document(error))

    def _keep(self, **event: object) -> None:
        with suppress(CvmError):
            self._database.add_event(self._job, now(), event)


def error_document(error: BaseException) -> Document:
    """Return an error as a record keeps it: what `cvmtool/error/v1` says of it."""
    if not isinstance(error, CvmError):
        interrupted = isinstance(error, KeyboardInterrupt)
        code, message = (130, "ended by its owner") if interrupted else (1, type(error).__name__)
        return {"exit_code": code, "message": message, "detail": None, "hint": None, "findings": []}
    findings = error.findings if isinstance(error, AppraisalError) else ()
    return {
        "exit_code": error.exit_code,
        "message": error.message,
        "detail": error.detail,
        "hint": error.hint,
        "findings": [
            {"code": item.code, "field": item.field, "actual": item.actual, "required": item.required, "why": item.why}
            for item in findings
        ],
    }


def revive_error(document: Document) -> CvmError:
    """Return the error that a record keeps, to be raised where somebody looks on: of the same exit code, if it was deliberate.

    Raises:
        FormatError: it is out of shape.
    """
    texts = {key: document.get(key) for key in ("detail", "hint")}
    if not all(value is None or isinstance(value, str) for value in texts.values()):
        raise FormatError("the error in a run's record is out of shape")
    message, code = str(document.get("message")), document.get("exit_code")
    if code == AppraisalError.exit_code:
        try:
            findings = tuple(Finding(**item) for item in document["findings"])
        except (TypeError, KeyError) as error:
            raise FormatError("the findings in a run's record are out of shape") from error
        return AppraisalError(message, findings=findings, **texts)
    if code in _OF_CODE:
        return _OF_CODE[code](message, **texts)
    return CvmError(f"the process that ran it met {message}", hint="that is a bug; supervisor.log in the run's folder")
