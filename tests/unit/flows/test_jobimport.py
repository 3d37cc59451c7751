# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.flows.attempts import Attempt, SessionNote
from cvmtool.flows.jobdb import JobsDatabase
from cvmtool.flows.jobimport import MAX_RECORD, OLD_RECORD, SCHEMA, parse_old_record
from cvmtool.flows.jobrecord import JobRecord, JobState
from cvmtool.flows.jobs import load_jobs
from tests.unit.formats.test_wire import JSON

RECORD = JobRecord(
    id="digits-1120-101010-aaaa",
    name="digits",
    simulated=True,
    state=JobState.FAILED,
    created="2026-11-20T10:10:10+00:00",
    machine="digits-1120-101010-aaaa",
    finished="2026-11-20T10:11:10+00:00",
    exit_code=3,
    error="why",
    stages={"boot": 1.25, "train": 2.0},
    attempts=[Attempt(started="now", sessions=[SessionNote(nonce="aa", boot="bb", released=True)], cause="died")],
)


def document(record=RECORD):
    fields = asdict(record)
    del fields["pid"]
    return {"schema": SCHEMA, **fields}


def put(folder, document):
    path = folder / document["id"]
    path.mkdir(parents=True)
    (path / OLD_RECORD).write_text(json.dumps(document))


def test_old_records_are_taken_in_once(tmp_path):
    put(tmp_path, document())
    assert [job.record for job in load_jobs(tmp_path)] == [RECORD]
    put(tmp_path, {**document(), "id": "late"})
    assert [job.record for job in load_jobs(tmp_path)] == [RECORD]


def test_what_was_taken_in_can_be_written(tmp_path):
    put(tmp_path, document())
    (job,) = load_jobs(tmp_path)
    job.finish(JobState.DONE, exit_code=0)
    assert [found.record.state for found in load_jobs(tmp_path)] == [JobState.DONE]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"1", b"null", b"\xff", b"[" * 100_000, b'{"schema": "other"}'])
def test_a_record_that_cannot_be_read_hides_no_other(tmp_path, content):
    put(tmp_path, document())
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / OLD_RECORD).write_bytes(content)
    assert [job.record.id for job in load_jobs(tmp_path)] == [RECORD.id]


def test_a_record_of_another_directory_is_passed_over(tmp_path):
    put(tmp_path, document())
    (tmp_path / RECORD.id).rename(tmp_path / "other")
    assert JobsDatabase(tmp_path).load() == []


def test_a_record_beyond_its_bound_is_refused():
    data = json.dumps(document()).encode()
    assert parse_old_record(data + b" " * (MAX_RECORD - len(data))) == RECORD
    with pytest.raises(FormatError):
        parse_old_record(data + b" " * (MAX_RECORD - len(data) + 1))


FIELDS = sorted({*document(), "more", "pid"})


@given(st.sampled_from(FIELDS), JSON)
def test_any_record_is_taken_in_or_passed_over(tmp_path_factory, key, value):
    folder = tmp_path_factory.mktemp("jobs")
    changed = {**document(), key: value}
    (folder / RECORD.id).mkdir()
    (folder / RECORD.id / OLD_RECORD).write_text(json.dumps(changed))
    for found in load_jobs(folder):
        assert found.record.id == RECORD.id
        assert sum(found.record.stages.values()) >= 0 or found.record.stages
        assert key in RECORD.__slots__
