# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import os
import shutil
import threading
from contextlib import suppress

import pytest

from cvmtool.errors import ConfigError, FormatError, HostError
from cvmtool.flows import jobfollow
from cvmtool.flows.jobevents import Recorder
from cvmtool.flows.jobfollow import Happened, Latest, LogTail, follow
from cvmtool.flows.jobrecord import JobState
from cvmtool.flows.jobs import JobDir, load_job
from cvmtool.flows.reporter import Stage
from cvmtool.formats.control import LogRecord, Stream

RECORDS = [LogRecord(stream=Stream.STDOUT, microseconds=number, data=b"line %d\n" % number) for number in range(4)]


def log(job, *records):
    with (job.path / "log").open("ab") as file:
        file.writelines(record.encode() for record in records)


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setattr(jobfollow, "POLL_SECONDS", 0.01)
    return JobDir.create(tmp_path / "jobs", "digits", simulated=True)


@pytest.fixture
def recorder(job):
    return Recorder(job.database, job.record.id, None)


def told(items):
    shown = []
    for item in items:
        if isinstance(item, Happened):
            shown.append(item.event.get("state") or item.event["event"])
        elif isinstance(item, LogRecord):
            shown.append(item.data.decode().strip())
        else:
            shown.append(item.values)
    return shown


def test_a_run_that_is_over_is_told_in_order(job, recorder):
    with recorder.stage(Stage.TRAIN, "training"):
        log(job, *RECORDS[:2])
    with recorder.stage(Stage.RESULTS, "fetching"):
        recorder.progress(2, 2)
    job.finish(JobState.DONE, exit_code=0)
    looking = load_job(job.path.parent, "digits")
    assert told(follow(looking)) == [
        *("begun", "line 0", "line 1", "done", "begun", "done"),
        {"progress": {"done": 2, "total": 2}},
    ]
    assert looking.record.state is JobState.DONE
    numbers = [item.number for item in follow(looking) if isinstance(item, Happened)]
    assert numbers == [0, 1, 2, 3]
    assert [item.number for item in follow(looking, after=2) if isinstance(item, Happened)] == [3]


def test_it_is_followed_while_it_runs(job, recorder):
    looking = load_job(job.path.parent, "digits")
    heard = []
    follower = threading.Thread(target=lambda: heard.extend(told(follow(looking))))
    follower.start()
    with recorder.stage(Stage.TRAIN, "training"):
        for record in RECORDS:
            log(job, record)
    recorder.notice("last words")
    job.finish(JobState.FAILED, error="why")
    follower.join(20)
    assert heard == ["begun", "line 0", "line 1", "line 2", "line 3", "done", "notice"]
    assert looking.record.error == "why"


def test_a_run_whose_process_died_ends_too(job, recorder):
    recorder.notice("alive")
    os.close(job._lock)  # as the kernel does
    looking = load_job(job.path.parent, "digits")
    assert told(follow(looking)) == ["notice"]
    assert looking.record.state is JobState.LOST


def test_a_run_that_is_deleted_meanwhile(job):
    looking = load_job(job.path.parent, "digits")
    shutil.rmtree(job.path)
    with pytest.raises(ConfigError, match="not there any more"):
        list(follow(looking))


def test_what_changes_all_the_time_is_told_when_it_changes(job, recorder):
    job.finish(JobState.DONE)
    job.database.put_latest(job.record.id, "usage", {"memory_bytes": 5})
    assert list(follow(job)) == [Latest(values={"usage": {"memory_bytes": 5}})]


@pytest.mark.parametrize("cut", [0, 1, 13, 20, 30])
def test_a_tail_takes_whole_records(job, cut):
    data = b"".join(record.encode() for record in RECORDS)
    path = job.path / "log"
    tail = LogTail(job.path)
    assert list(tail.read()) == []
    path.write_bytes(data[:cut])
    heard = list(tail.read())
    with path.open("ab") as file:
        file.write(data[cut:])
    assert heard + list(tail.read()) == RECORDS


def test_a_tail_begins_anew_with_another_log(job):
    log(job, *RECORDS[:3])
    tail = LogTail(job.path)
    assert len(list(tail.read())) == 3
    (job.path / "log").rename(job.path / "log.1")
    log(job, RECORDS[3])
    assert list(tail.read()) == RECORDS[3:]


def test_a_log_that_is_none_is_refused(job):
    (job.path / "log").write_bytes(b"\xff" * 64)
    with pytest.raises(FormatError):
        list(LogTail(job.path).read())


def test_a_stage_that_failed_ends_the_log_as_well(job, recorder):
    with suppress(HostError), recorder.stage(Stage.TRAIN, "training"):
        log(job, RECORDS[0])
        raise HostError("gone")
    job.finish(JobState.FAILED)
    assert told(follow(job)) == ["begun", "line 0", "failed"]
