# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Runs in the background: looked on at, ended, and taken up again when the process that carried them out was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cvmtool.config import Settings
from cvmtool.flows.jobrecord import JobState
from cvmtool.flows.jobs import JobDir, load_job
from cvmtool.flows.records import load_record
from cvmtool.image.bundle import Bundle
from tests.processes import qemus

pytestmark = [pytest.mark.vm, pytest.mark.image]

# It says how far it is, and waits in the middle until the test, which cannot speak to it, has had time to kill its owner.
WORK = """
import json, pathlib, time
for epoch in range(1, 6):
    print(json.dumps({"epoch": epoch, "epochs": 5, "loss": 1 / epoch}), flush=True)
    time.sleep(WAIT)
pathlib.Path("/outputs/out").write_text("done")
"""


@pytest.fixture(scope="module")
def job_file(example: Path, bundle: Bundle, place: Path) -> Callable[[float], Path]:
    folder = place / "detached"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "file").write_bytes(b"what goes in" * 512)
    head = example.read_text().split("\ncommand:")[0]
    head = head.replace("oci-archive:container.oci.tar", f"oci-archive:{example.parent / 'container.oci.tar'}")

    def make(wait: float) -> Path:
        job = folder / f"job-{wait}.yaml"
        command = json.dumps(["python3", "-c", WORK.replace("WAIT", str(wait))])
        job.write_text(
            f"{head}\ncommand: {command}\ninputs: {{data: data}}\n"
            "outputs: {out: {kind: file, max: 1MiB}}\nresources: {vcpus: 1, memory: 768MiB}\n"
        )
        return job

    return make


@pytest.fixture
def cvmtool(environment: dict[str, str]) -> Callable[..., tuple[int, list[dict]]]:
    def run(*words: str) -> tuple[int, list[dict]]:
        command = [sys.executable, "-P", "-m", "cvmtool", *words, "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]

    return run


def until(condition: Callable[[], bool], job: JobDir) -> None:
    end = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)
        job.reread()


def test_a_run_survives_the_death_of_its_supervisor(
    job_file: Callable[[float], Path], cvmtool: Callable, settings: Settings, tmp_path: Path
) -> None:
    code, said = cvmtool("train", str(job_file(2)), "--dry-run", "-d", "--results", str(tmp_path / "out"))
    assert (code, said[-1]["schema"]) == (0, "cvmtool/train-detached/v1"), said[-1]
    job = load_job(settings.jobs_dir, said[-1]["job"])
    assert job.record.state is JobState.RUNNING
    assert os.getsid(job.record.pid) == job.record.pid
    until(lambda: bool(job.database.metrics(job.record.id)), job)
    os.kill(job.record.pid, signal.SIGKILL)
    until(lambda: job.record.state is JobState.LOST, job)
    assert len(qemus(job.record.machine)) == 1

    code, said = cvmtool("jobs", "resume", job.record.id)
    assert (code, said[-1]["schema"]) == (0, "cvmtool/train/v1"), said[-3:]
    assert (tmp_path / "out" / "out").read_text() == "done"
    job.reread()
    assert (job.record.state, job.record.exit_code) == (JobState.DONE, 0)
    (attempt,) = job.record.attempts
    assert len(attempt.sessions) == 2
    assert len({session.boot for session in attempt.sessions}) == 1
    assert [session.released for session in attempt.sessions] == [True, False]
    assert [item.values["epoch"] for item in job.database.metrics(job.record.id)] == [1, 2, 3, 4, 5]
    assert qemus(job.record.machine) == []
    assert load_record(settings.records_dir, job.record.machine) is None
    # The whole of it is on record, for whoever looks on later.
    code, said = cvmtool("jobs", "attach", job.record.id)
    assert code == 0
    assert [line["text"] for line in said if line.get("event") == "notice"][-2:] == [
        "taken up again",
        f"{job.record.machine} still runs; going on with it",
    ]
    assert "".join(line["text"] for line in said if line.get("event") == "log").count('"epochs": 5') == 5
    code, said = cvmtool("jobs", "results", job.record.id, "--out", str(tmp_path / "copy"))
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["out", "receipt.json"]


def test_a_run_is_looked_at_ended_and_begun_again(
    job_file: Callable[[float], Path],
    cvmtool: Callable,
    environment: dict[str, str],
    settings: Settings,
    tmp_path: Path,
) -> None:
    code, said = cvmtool("train", str(job_file(0)), "--dry-run", "-d", "--results", str(tmp_path / "out"))
    assert code == 0
    job = load_job(settings.jobs_dir, said[-1]["job"])
    attach = [sys.executable, "-P", "-m", "cvmtool", "jobs", "attach", job.record.id]
    with subprocess.Popen(
        attach,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as looking:
        until(lambda: any(event.get("stage") == "boot" for _, _, event in job.database.events(job.record.id)), job)
        looking.send_signal(signal.SIGINT)
        _, told = looking.communicate(timeout=60)
    assert looking.returncode == 130
    assert f"cvmtool jobs cancel {job.record.id}" in told
    job.reread()
    assert job.record.state is JobState.RUNNING
    assert cvmtool("jobs", "cancel", job.record.id) == (
        0,
        [{"schema": "cvmtool/jobs-cancel/v1", "id": job.record.id, "state": "interrupted"}],
    )
    assert qemus(job.record.machine) == []
    assert not (tmp_path / "out").exists()

    assert cvmtool("jobs", "resume", "-d", job.record.id)[0] == 0
    code, said = cvmtool("jobs", "attach", job.record.id)
    assert code == 0, said[-3:]
    job.reread()
    assert [len(attempt.sessions) for attempt in job.record.attempts] == [0, 1]
    assert (tmp_path / "out" / "out").read_text() == "done"
