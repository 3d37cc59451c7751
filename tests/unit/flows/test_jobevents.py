# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import shutil
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

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
from cvmtool.flows.jobevents import PROGRESS, Recorder, error_document, revive_error
from cvmtool.flows.jobs import JobDir
from cvmtool.flows.reporter import Stage
from cvmtool.formats.control import LogRecord, Stream
from cvmtool.owner.checks import Check

CHECK = Check(code="launch-digest", actual="aa", required="aa", passed=True, why="because")
GUEST = SimpleNamespace(simulated=True, checks=(CHECK,), unchecked=("chip",))
RECORD = LogRecord(stream=Stream.STDOUT, microseconds=1, data=b"x")


class Listener:
    def __init__(self):
        self.heard = []

    def __getattr__(self, name):
        return lambda *arguments: self.heard.append((name, *arguments))

    @contextmanager
    def stage(self, stage, text):
        self.heard.append(("stage", stage, text))
        yield


@pytest.fixture
def job(tmp_path):
    return JobDir.create(tmp_path / "jobs", "digits", simulated=True)


def tell(recorder):
    with recorder.stage(Stage.START, "starting"):
        recorder.step("placing")
        recorder.progress(1, 2)
    recorder.notice("slow")
    recorder.verdict(GUEST)
    recorder.log(RECORD)
    with pytest.raises(HostError), recorder.stage(Stage.BOOT, "booting"):
        raise HostError("no")


def events(job):
    return [event for _, _, event in job.database.events(job.record.id)]


def test_what_is_told_is_kept_in_order_and_passed_on(job):
    listener = Listener()
    tell(Recorder(job.database, job.record.id, listener))
    kept = events(job)
    for event in kept:
        if event.get("state") in ("done", "failed"):
            assert event.pop("seconds") >= 0
    assert kept == [
        {"event": "stage", "stage": "start", "state": "begun", "text": "starting"},
        {"event": "step", "text": "placing"},
        {"event": "stage", "stage": "start", "state": "done", "text": "starting"},
        {"event": "notice", "text": "slow"},
        {"event": "verdict", "simulated": True, "checks": [CHECK.to_json()], "unchecked": ["chip"]},
        {"event": "stage", "stage": "boot", "state": "begun", "text": "booting"},
        {"event": "stage", "stage": "boot", "state": "failed", "text": "booting"},
    ]
    assert job.database.latest(job.record.id) == {PROGRESS: {"done": 1, "total": 2}}
    assert listener.heard == [
        ("stage", Stage.START, "starting"),
        ("step", "placing"),
        ("progress", 1, 2),
        ("notice", "slow"),
        ("verdict", GUEST),
        ("log", RECORD),
        ("stage", Stage.BOOT, "booting"),
    ]


def test_nobody_need_listen(job):
    tell(Recorder(job.database, job.record.id, None))
    assert len(events(job)) == 7


def test_a_record_that_cannot_be_written_does_not_end_the_run(job):
    listener = Listener()
    shutil.rmtree(job.path.parent)
    job.path.parent.write_text("in the way")
    tell(Recorder(job.database, job.record.id, listener))
    assert len(listener.heard) == 7


FINDING = Finding(code="measurement", field="launch digest", actual="a", required="b", why="c")


@pytest.mark.parametrize(
    "error",
    [
        *(
            made("it failed", detail="because", hint="try")
            for made in (ConfigError, FormatError, VerificationError, FreshnessError, HostError, BuildError, JobError)
        ),
        JobError("it failed"),
        AppraisalError("refused", findings=(FINDING, FINDING), hint="look"),
    ],
)
def test_an_error_is_the_same_where_somebody_looks_on(error):
    revived = revive_error(error_document(error))
    assert type(revived) is type(error)
    assert error_document(revived) == error_document(error)
    assert revived.exit_code == error.exit_code


def test_a_bug_is_one_wherever_it_is_seen(tmp_path):
    revived = revive_error(error_document(ValueError("secret")))
    assert (type(revived), revived.exit_code) == (CvmError, 1)
    assert "ValueError" in revived.message
    assert "secret" not in revived.message


@pytest.mark.parametrize(
    "changed", [{"detail": 1}, {"exit_code": 6, "findings": None}, {"exit_code": 6, "findings": [{"code": "x"}]}]
)
def test_an_error_out_of_shape_is_refused(changed):
    with pytest.raises(FormatError):
        revive_error({**error_document(JobError("it failed")), **changed})
