# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import os
import signal
import stat

import pytest

from cvmtool.errors import ConfigError
from cvmtool.flows.jobrecord import JobState
from cvmtool.flows.jobs import JobDir, load_job, load_jobs
from cvmtool.host.storage import VM_NAME


@pytest.fixture
def jobs(tmp_path):
    """A function that makes a job with a given id, created at a given second."""

    def make(job_id, name=None, second=0):
        job = JobDir.create(tmp_path / "jobs", name or job_id, simulated=True)
        job.path = job.path.rename(tmp_path / "jobs" / job_id)
        job.record.id, job.record.created = job_id, f"2026-01-01T00:00:{second:02}+00:00"
        job.save()
        return job

    make.folder = tmp_path / "jobs"
    return make


def test_a_new_run_is_recorded_for_its_owner_alone(tmp_path):
    job = JobDir.create(tmp_path / "state/jobs", "digits", simulated=True)
    assert job.path.name == job.record.id == job.record.machine
    assert job.record.id.startswith("digits-")
    assert (job.record.state, job.record.simulated) == (JobState.RUNNING, True)
    assert stat.S_IMODE(job.path.stat().st_mode) == 0o700
    assert job.record.pid == os.getpid()
    assert [found.record for found in load_jobs(tmp_path / "state/jobs")] == [job.record]


@pytest.mark.parametrize("name", ["a", "digits", "a.b-c_d", "x" * 64, "x" * 39 + ".y"])
def test_the_id_of_a_run_can_be_the_name_of_its_machine(tmp_path, name):
    assert VM_NAME.fullmatch(JobDir.create(tmp_path, name, simulated=True).record.machine)


def test_two_runs_of_one_job_differ(tmp_path):
    one, two = (JobDir.create(tmp_path, "digits", simulated=True) for _ in range(2))
    assert one.record.id != two.record.id


@pytest.mark.parametrize("state", [state for state in JobState if state is not JobState.RUNNING])
def test_how_a_run_ended_is_kept(jobs, state):
    job = jobs("digits-1")
    job.record.stages["boot"] = 1.25
    job.finish(state, error="why", exit_code=3)
    kept = load_job(jobs.folder, "digits-1").record
    assert kept == job.record
    assert (kept.state, kept.error, kept.exit_code, kept.stages) == (state, "why", 3, {"boot": 1.25})
    assert kept.finished


def test_a_run_whose_process_was_killed_is_lost(tmp_path):
    pid = os.fork()
    if pid == 0:
        JobDir.create(tmp_path, "digits", simulated=True)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert [job.record.state for job in load_jobs(tmp_path)] == [JobState.LOST]
    alive = JobDir.create(tmp_path, "other", simulated=True)
    assert load_job(tmp_path, "other").record.state is JobState.RUNNING
    alive.finish(JobState.DONE)
    assert load_job(tmp_path, "other").record.state is JobState.DONE


def test_ending_without_a_code_keeps_the_one_there_was(jobs):
    job = jobs("digits-1")
    job.record.exit_code = 3
    job.finish(JobState.FAILED)
    assert job.record.exit_code == 3
    job.finish(JobState.DONE, exit_code=0)
    assert job.record.exit_code == 0


def test_a_run_is_found_by_id_beginning_or_name(jobs):
    jobs("digits-1120-aa", "digits", 1)
    jobs("digits-1121-bb", "digits", 2)
    jobs("other-1121-cc", "other", 3)

    def found(reference):
        return load_job(jobs.folder, reference).record.id

    assert found("digits-1120-aa") == "digits-1120-aa"
    assert found("digits-1120") == "digits-1120-aa"
    assert found("o") == "other-1121-cc"
    assert found("digits") == "digits-1121-bb"
    for reference, message in (
        ("digits-11", "2 jobs"),
        ("d", "2 jobs"),
        ("x", "no job"),
        ("", "no job"),
        ("gits", "no job"),
    ):
        with pytest.raises(ConfigError, match=message) as refusal:
            load_job(jobs.folder, reference)
        assert "cvmtool jobs list" in refusal.value.hint


def test_an_id_goes_before_a_beginning_of_others(jobs):
    jobs("digits-1")
    jobs("digits-12")
    assert load_job(jobs.folder, "digits-1").record.id == "digits-1"


def test_a_name_goes_before_a_beginning(jobs):
    jobs("digits-1", "digits", 1)
    jobs("digits-big-1", "digits-big", 2)
    assert load_job(jobs.folder, "digits").record.id == "digits-1"


def test_a_long_name_is_found_although_the_id_has_less_of_it(tmp_path):
    name = "n" * 64
    job = JobDir.create(tmp_path, name, simulated=True)
    assert load_job(tmp_path, name).record.id == job.record.id


def test_runs_come_oldest_first(jobs):
    for job_id, second in (("c", 1), ("a", 2), ("b", 0)):
        jobs(job_id, second=second)
    assert [job.record.id for job in load_jobs(jobs.folder)] == ["b", "c", "a"]


def test_no_runs_at_all(tmp_path):
    assert list(load_jobs(tmp_path / "missing")) == []


def test_a_run_whose_directory_was_deleted_is_forgotten(jobs):
    jobs("gone").path.rmdir()
    jobs("kept")
    assert [job.record.id for job in load_jobs(jobs.folder)] == ["kept"]


def test_a_runs_files_are_written_whole(jobs):
    job = jobs("digits-1")
    job.write("evidence.bin", b"one")
    job.write("evidence.bin", b"two")
    assert (job.path / "evidence.bin").read_bytes() == b"two"
    assert sorted(path.name for path in job.path.iterdir()) == ["evidence.bin"]
