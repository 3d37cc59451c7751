# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import json
import re
import shutil

import pytest
from typer.testing import CliRunner

from cvmtool.cli.app import app
from cvmtool.config import load_settings
from cvmtool.errors import ConfigError, FormatError
from cvmtool.flows.jobevents import USAGE
from cvmtool.flows.jobrecord import JobState
from cvmtool.flows.jobs import LOG_FILE, JobDir
from cvmtool.formats.control import LogRecord, Stream

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def jobs(*arguments):
    return CliRunner().invoke(app, ["jobs", *arguments])


@pytest.fixture
def job():
    made = JobDir.create(load_settings().jobs_dir, "digits", simulated=True)
    made.record.stages = {"boot": 1.5, "train": 2.25}
    made.record.results = "/somewhere"
    made.finish(JobState.DONE, exit_code=0)
    return made


def test_no_jobs_yet_is_no_data_and_a_hint():
    result = jobs("list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "cvmtool train" in result.stderr
    assert json.loads(jobs("list", "--json").stdout)["jobs"] == []


def test_a_run_is_listed_as_what_it_was(job):
    result = jobs("list")
    assert result.stderr == ""
    assert "SIMULATED" in result.stdout
    assert "done" in result.stdout
    document = json.loads(jobs("list", "--json").stdout)
    assert document["schema"].startswith("cvmtool/")
    assert [item["id"] for item in document["jobs"]] == [job.record.id]
    assert document["jobs"][0]["simulated"] is True


@pytest.mark.parametrize("reference", [lambda job: job.record.id, lambda job: job.record.id[:-1], lambda job: "digits"])
def test_a_run_is_shown(job, reference):
    result = jobs("show", reference(job))
    assert result.exit_code == 0
    assert "boot              1.5 s" in result.stdout
    assert "/somewhere" in result.stdout
    document = json.loads(jobs("show", reference(job), "--json").stdout)
    assert document["id"] == job.record.id
    assert document["stages"] == {"boot": 1.5, "train": 2.25}
    assert document["state"] == "done"


def test_a_run_without_metrics_says_so(job):
    result = jobs("show", "--metrics", job.record.id)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "has printed no metrics" in result.stderr


def test_a_run_that_was_ended_is_told_once(job):
    job.finish(JobState.INTERRUPTED, error="ended by its owner")
    result = jobs("attach", job.record.id)
    assert result.exit_code == 130
    assert result.stderr.count("cvmtool:") == 1


def test_what_a_run_used_is_shown(job):
    used = {"memory_bytes": 1, "memory_peak_bytes": 7 << 20, "cpu_microseconds": 3_400_000, "outputs_bytes": 2 << 20}
    job.database.put_latest(job.record.id, USAGE, used)
    shown = jobs("show", job.record.id).stdout
    assert "used         3 s of CPU, at most 7 MiB of memory, 2 MiB of outputs" in shown
    assert json.loads(jobs("show", job.record.id, "--json").stdout)["usage"] == used


@pytest.mark.parametrize("command", ["show", "logs"])
def test_a_run_that_is_not_there(command):
    result = jobs(command, "nothing")
    assert isinstance(result.exception, ConfigError)
    assert result.stdout == ""


def test_a_hostile_error_in_a_record_cannot_draw(job):
    job.finish(JobState.FAILED, error="it \x1b[2Jfailed\x07")
    result = jobs("show", job.record.id)
    assert "it \\x1b[2Jfailed\\x07" in result.stdout
    assert CONTROL.search(result.stdout) is None


RECORDS = [
    LogRecord(stream=Stream.STDOUT, microseconds=1, data=b"epoch 1\nepo"),
    LogRecord(stream=Stream.STDERR, microseconds=2, data=b"warning \x1b[31m\n"),
    LogRecord(stream=Stream.STDOUT, microseconds=3, data=b"ch 2"),
]


def test_a_log_is_printed_stream_by_stream(job):
    job.write(LOG_FILE, b"".join(record.encode() for record in RECORDS))
    result = jobs("logs", job.record.id)
    assert result.exit_code == 0
    assert result.stdout == "epoch 1\nepoch 2\n"
    assert result.stderr == "warning \\x1b[31m\n"


def test_a_log_as_json_lines(job):
    job.write(LOG_FILE, b"".join(record.encode() for record in RECORDS))
    lines = [json.loads(line) for line in jobs("logs", job.record.id, "--json").stdout.splitlines()]
    assert [(line["stream"], line["microseconds"], line["text"]) for line in lines] == [
        ("stdout", 1, "epoch 1\nepo"),
        ("stderr", 2, "warning \x1b[31m\n"),
        ("stdout", 3, "ch 2"),
    ]


def test_a_long_log_is_read_in_pieces(job):
    record = LogRecord(stream=Stream.STDOUT, microseconds=0, data=b"x" * 99 + b"\n")
    job.write(LOG_FILE, record.encode() * 2_000)
    assert jobs("logs", job.record.id).stdout == ("x" * 99 + "\n") * 2_000


def test_a_run_whose_container_never_started_has_no_log(job):
    result = jobs("logs", job.record.id)
    assert isinstance(result.exception, ConfigError)
    assert "has not started" in result.exception.message


def test_a_damaged_log_is_a_format_error(job):
    job.write(LOG_FILE, b"\xff" * 100)
    assert isinstance(jobs("logs", job.record.id).exception, FormatError)


def test_a_run_that_was_deleted_is_gone(job):
    shutil.rmtree(job.path)
    assert isinstance(jobs("show", job.record.id).exception, ConfigError)
