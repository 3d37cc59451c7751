# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Runs ended from another process. (With a machine: tests/scenario/test_detach.py, test_checkpoints.py.)"""

import os
import subprocess
import sys
import uuid
from dataclasses import replace

import pytest

from cvmtool.config import load_settings
from cvmtool.errors import ConfigError, HostError
from cvmtool.flows.jobcontrol import cancel
from cvmtool.flows.jobrecord import JobState
from cvmtool.flows.jobs import MANIFEST_FILE, JobDir, load_job
from cvmtool.flows.volumes import VolumeRecord, Volumes
from cvmtool.formats.jobterms import CHECKPOINT, Checkpoint
from cvmtool.formats.volume import MIN_VOLUME, Volume
from cvmtool.owner.epochs import History
from tests import samples

# Stands for whoever carries the run out: it holds the run, and ends in order when it is told.
HOLDER = """
import signal, sys, time
from pathlib import Path
from cvmtool.flows.jobrecord import JobState
from cvmtool.flows.jobs import JobDir
job = JobDir.inherit(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
def end(*_):
    time.sleep(float(sys.argv[4]))
    job.finish(JobState.INTERRUPTED, error="KeyboardInterrupt")
    sys.exit(130)
signal.signal(signal.SIGTERM, end)
print("holds it", flush=True)
signal.pause()
"""


@pytest.fixture
def held():
    """Make a run that another process holds, which takes so many seconds to end it."""
    started = []

    def make(seconds, manifest=None):
        job = JobDir.create(load_settings().jobs_dir, "digits", simulated=True)
        if manifest is not None:
            job.write(MANIFEST_FILE, manifest.encode())
        words = [sys.executable, "-c", HOLDER, str(job.path.parent), job.record.id, str(job.lock), str(seconds)]
        process = subprocess.Popen(words, pass_fds=(job.lock,), stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"holds it\n"
        job.let_go()
        started.append(process)
        return load_job(load_settings().jobs_dir, job.record.id), process

    yield make
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def with_checkpoint(grace_seconds):
    volume = Volume(name=CHECKPOINT, luks_uuid=str(uuid.uuid4()), size=MIN_VOLUME, create=True)
    return replace(samples.manifest(), checkpoint=Checkpoint(volume=volume, grace_seconds=grace_seconds))


def test_the_process_that_runs_it_ends_it(held):
    job, process = held(0)
    cancel(job, load_settings(), notice=pytest.fail)
    assert (job.record.state, process.wait(20)) == (JobState.INTERRUPTED, 130)


def test_a_process_that_does_not_end_is_named(held):
    job, process = held(60)
    with pytest.raises(HostError, match=f"the process {process.pid} that runs") as refusal:
        cancel(job, load_settings(), notice=pytest.fail, patience_seconds=0.5)
    assert f"kill -9 {process.pid}" in refusal.value.hint
    assert job.record.state is JobState.RUNNING


def test_a_container_with_checkpoints_is_given_its_grace(held):
    job, _ = held(1, with_checkpoint(grace_seconds=60))
    cancel(job, load_settings(), notice=pytest.fail, patience_seconds=0)
    assert job.record.state is JobState.INTERRUPTED


def test_a_damaged_manifest_keeps_no_run_from_being_ended(held):
    job, _ = held(0)
    (job.path / MANIFEST_FILE).write_bytes(b"{")
    cancel(job, load_settings(), notice=pytest.fail)
    assert job.record.state is JobState.INTERRUPTED


def test_what_is_over_cannot_be_ended(held):
    job, _ = held(0)
    cancel(job, load_settings(), notice=pytest.fail)
    with pytest.raises(ConfigError, match="is over: interrupted"):
        cancel(job, load_settings(), notice=pytest.fail)


def test_checkpoints_of_a_run_whose_process_was_killed_are_kept(held, tmp_path):
    manifest = with_checkpoint(grace_seconds=30)
    job, process = held(0, manifest)
    process.kill()
    process.wait()
    written = VolumeRecord(
        luks_uuid=manifest.checkpoint.volume.luks_uuid,
        name=CHECKPOINT,
        size=MIN_VOLUME,
        host="lab",
        path=str(tmp_path / "volume"),
        machine=job.record.machine,
        history=History().begin(os.urandom(32)).acknowledge(),
    )
    Volumes(load_settings().volumes_dir).save(written)
    job.reread()
    said = []
    cancel(job, load_settings(), notice=said.append)
    assert job.record.state is JobState.INTERRUPTED
    assert said[0].startswith(f"the checkpoints of {job.record.machine} are kept: cvmtool jobs resume")
    assert list(Volumes(load_settings().volumes_dir).all()) == [written]
