# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Supervisors on a host that can run no guest. (A whole run: tests/scenario/test_detach.py.)"""

import os
import signal
import stat
import time
from contextlib import suppress

import pytest

from cvmtool.config import load_settings
from cvmtool.errors import ConfigError, HostError
from cvmtool.flows.jobevents import revive_error
from cvmtool.flows.jobfollow import Happened, follow
from cvmtool.flows.jobplan import PLAN_FILE, Plan
from cvmtool.flows.jobrecord import JobState
from cvmtool.flows.jobs import JobDir, load_job
from cvmtool.flows.supervise import SUPERVISOR_FILE, carry_out, resume, send_off
from tests.unit.flows.runs import NO_HOST, prepared_job, recorded_run

pytest.importorskip("libvirt")
PLAN = Plan(simulated=False, host=NO_HOST)  # no simulated AMD need be made


@pytest.fixture
def prepared(tmp_path):
    return prepared_job(tmp_path, load_settings())


@pytest.fixture
def run(prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return recorded_run(prepared, PLAN, load_settings())


def events(job):
    return [item.event for item in follow(job) if isinstance(item, Happened)]


def test_a_run_is_carried_out_by_a_process_of_its_own(run, prepared):
    send_off(run, prepared)
    with pytest.raises(RuntimeError):
        assert run.job.lock
    job = load_job(run.job.path.parent, run.job.record.id)
    told = events(job)
    assert job.record.pid != os.getpid()
    assert job.record.state is JobState.FAILED
    assert [(event["event"], event.get("state")) for event in told] == [
        ("stage", "begun"),
        ("stage", "failed"),
        ("ended", None),
    ]
    error = revive_error(told[-1]["error"])
    assert isinstance(error, HostError)
    assert error.message == job.record.error
    assert (job.path / SUPERVISOR_FILE).read_bytes() == b""
    assert stat.S_IMODE((job.path / SUPERVISOR_FILE).stat().st_mode) == 0o600


def test_the_foreground_meets_the_same(run, prepared):
    with pytest.raises(HostError) as met:
        carry_out(run, prepared, PLAN, load_settings())
    assert run.job.record.error == met.value.message
    send_off(recorded := recorded_run(prepared, PLAN, load_settings()), prepared)
    job = load_job(run.job.path.parent, recorded.job.record.id)
    events(job)
    assert job.record.error == met.value.message


def test_a_supervisor_that_cannot_begin_says_why(run, prepared):
    (run.job.path / PLAN_FILE).write_text("{}")
    with pytest.raises(HostError, match="did not begin") as met:
        send_off(run, prepared)
    assert PLAN_FILE in str(met.value.detail)
    assert load_job(run.job.path.parent, run.job.record.id).record.state is JobState.FAILED


def test_a_failed_run_is_taken_up_again(run, prepared):
    send_off(run, prepared)
    job = load_job(run.job.path.parent, run.job.record.id)
    before = len(events(job))
    after = resume(job, load_settings())
    assert after == before - 1
    looking = load_job(run.job.path.parent, run.job.record.id)
    told = [item.event for item in follow(looking, after=after) if isinstance(item, Happened)]
    assert told[0] == {"event": "notice", "text": "taken up again"}
    assert told[-1]["event"] == "ended"
    assert len(looking.record.attempts) == 2
    assert all(attempt.ended for attempt in looking.record.attempts)


@pytest.mark.parametrize("state", [JobState.DONE, JobState.REFUSED])
def test_what_is_done_or_was_refused_is_not_taken_up(run, state):
    run.job.finish(state)
    with pytest.raises(ConfigError, match=f"is {state}"):
        resume(load_job(run.job.path.parent, run.job.record.id), load_settings())


def test_a_run_has_one_process_at_a_time(run):
    job = load_job(run.job.path.parent, run.job.record.id)
    with pytest.raises(ConfigError, match="is running"):
        resume(job, load_settings())
    with pytest.raises(ConfigError, match="another process"):
        job.hold(patience_seconds=0.05)
    assert job.record.state is JobState.RUNNING


def test_a_run_from_before_plans_is_refused_and_stays_what_it_was(run):
    (run.job.path / PLAN_FILE).unlink()
    run.job.finish(JobState.INTERRUPTED)
    with pytest.raises(ConfigError, match="cannot be taken up again"):
        resume(load_job(run.job.path.parent, run.job.record.id), load_settings())
    assert load_job(run.job.path.parent, run.job.record.id).record.state is JobState.INTERRUPTED


def test_nobody_holds_a_run_whose_supervisor_was_killed(run, prepared):
    """Killed at any moment after it began: lost, or over; and it can be held again."""
    for delay in (0.0, 0.05, 0.2):
        made = recorded_run(prepared, PLAN, load_settings())
        send_off(made, prepared)
        job = JobDir(made.job.path, made.job.record)
        job.reread()
        time.sleep(delay)
        with suppress(ProcessLookupError):
            os.kill(job.record.pid, signal.SIGKILL)
        end = time.monotonic() + 20
        while job.record.state is JobState.RUNNING and time.monotonic() < end:
            time.sleep(0.02)
            job.reread()
        assert job.record.state in (JobState.LOST, JobState.FAILED)
        job.hold()
        job.finish(JobState.INTERRUPTED)
