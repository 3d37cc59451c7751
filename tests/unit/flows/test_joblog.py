# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import stat

import pytest

from cvmtool.errors import FormatError
from cvmtool.flows.attempts import Attempt, SessionNote
from cvmtool.flows.joblog import JobLog
from cvmtool.flows.jobs import JobDir
from cvmtool.formats.control import LogRecord, Stream

RECORDS = [LogRecord(stream=Stream.STDOUT, microseconds=number, data=b"line %d\n" % number) for number in range(5)]
DATA = b"".join(record.encode() for record in RECORDS)


class Listener:
    def __init__(self):
        self.records = []

    def log(self, record):
        self.records.append(record)


@pytest.fixture
def job(tmp_path):
    made = JobDir.create(tmp_path, "digits", simulated=True)
    made.record.attempts.append(Attempt(started="now"))
    return made


@pytest.mark.parametrize("cut", [0, 1, 13, 20, 21, len(DATA) - 1, len(DATA)])
def test_a_log_goes_on_where_the_connection_was_lost(job, cut):
    listener = Listener()
    log = JobLog(job, listener)
    assert log.begin() == 0
    log.follow([DATA[:cut]])
    assert log.begin() == cut
    log.follow([DATA[cut:]])
    assert listener.records == RECORDS
    assert (job.path / "log").read_bytes() == DATA
    assert stat.S_IMODE((job.path / "log").stat().st_mode) == 0o600


def test_a_new_launch_begins_a_new_log(job):
    listener = Listener()
    log = JobLog(job, listener)
    log.begin()
    log.follow([DATA[:20]])
    job.record.attempts.append(Attempt(started="later"))
    assert log.begin() == 0
    log.follow([DATA])
    assert (job.path / "log.1").read_bytes() == DATA[:20]
    assert (job.path / "log").read_bytes() == DATA
    assert listener.records[-5:] == RECORDS


def test_what_is_no_log_is_refused(job):
    log = JobLog(job, Listener())
    log.begin()
    with pytest.raises(FormatError):
        log.follow([b"\xff" * 64])


def note(released):
    return SessionNote(nonce="n", boot="b", released=released)


def test_a_process_that_takes_a_run_up_again_hears_its_guest_from_the_beginning(job):
    job.record.attempts[-1].sessions = [note(True)]
    first = JobLog(job, Listener())
    first.begin()
    first.follow([DATA[:25]])  # and it was killed in the middle of a record
    job.record.attempts[-1].sessions.append(note(False))
    listener = Listener()
    again = JobLog(job, listener)
    assert again.begin() == 0
    again.follow([DATA])
    assert listener.records == RECORDS
    assert (job.path / "log").read_bytes() == DATA
    assert sorted(path.name for path in job.path.iterdir()) == ["log"]


def test_a_process_that_launches_anew_keeps_the_log_there_was(job):
    JobLog(job, Listener()).begin()
    (job.path / "log").write_bytes(DATA[:20])
    job.record.attempts.append(Attempt(started="later", sessions=[note(True)]))
    assert JobLog(job, Listener()).begin() == 0
    assert (job.path / "log.1").read_bytes() == DATA[:20]
    assert (job.path / "log").read_bytes() == b""


METRICS = [
    LogRecord(stream=Stream.STDOUT, microseconds=number, data=b'{"epoch": %d, "epochs": 9}\n' % number)
    for number in range(4)
]


def test_metrics_are_kept_as_they_come_and_begin_anew_with_the_log(job):
    data = b"".join(record.encode() for record in METRICS)
    log = JobLog(job, Listener())
    log.begin()
    log.follow([data[:50], data[50:]])
    assert [item.values["epoch"] for item in job.database.metrics(job.record.id)] == [0, 1, 2, 3]
    job.record.attempts.append(Attempt(started="later"))
    log.begin()
    log.follow([METRICS[2].encode()])
    assert [item.values["epoch"] for item in job.database.metrics(job.record.id)] == [2]
