# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace

import pytest

from cvmtool.errors import ConfigError, FormatError
from cvmtool.flows.attempts import Attempt, SessionNote
from cvmtool.flows.jobdb import DATABASE_FILE, SCHEMA_VERSION, JobsDatabase
from cvmtool.flows.jobmetrics import Metrics
from cvmtool.flows.jobrecord import JobRecord, JobState


def record(number=0, **changes):
    made = JobRecord(
        id=f"digits-{number}",
        name="digits",
        simulated=True,
        state=JobState.RUNNING,
        created=f"2026-01-01T00:00:{number:02}+00:00",
        machine=f"digits-{number}",
        pid=7,
    )
    return replace(made, **changes)


def attempts(count):
    return [
        Attempt(
            started=str(number),
            ended="later",
            cause="it died",
            sessions=[
                SessionNote(nonce=f"{number}{index}", boot=str(number), released=index % 2 == 0) for index in range(3)
            ],
        )
        for number in range(count)
    ]


def sql(folder, statement):
    with closing(sqlite3.connect(folder / DATABASE_FILE, isolation_level=None)) as db:
        return db.execute(statement).fetchall()


def test_a_record_comes_back_as_it_was(tmp_path):
    kept = record(stages={"train": 2.0, "boot": 1.25}, attempts=attempts(2), exit_code=3, error="why", results="/r")
    JobsDatabase(tmp_path).save(kept)
    (loaded,) = JobsDatabase(tmp_path).load()
    assert loaded == kept
    assert list(loaded.stages) == ["train", "boot"]


def test_what_is_saved_again_replaces_what_was(tmp_path):
    database = JobsDatabase(tmp_path)
    database.save(record(stages={"boot": 1.0}, attempts=attempts(3)))
    database.save(record(1, attempts=attempts(1)))
    database.save(record(stages={"train": 2.0}, attempts=attempts(1), state=JobState.DONE))
    assert database.load() == [
        record(stages={"train": 2.0}, attempts=attempts(1), state=JobState.DONE),
        record(1, attempts=attempts(1)),
    ]
    assert len(sql(tmp_path, "SELECT * FROM sessions")) == 6


def test_records_come_oldest_first(tmp_path):
    database = JobsDatabase(tmp_path)
    for number, second in ((2, 1), (1, 2), (3, 0), (0, 0)):
        database.save(record(number, created=f"2026-01-01T00:00:{second:02}+00:00"))
    assert [found.id for found in database.load()] == ["digits-0", "digits-3", "digits-2", "digits-1"]


def test_the_database_and_what_lies_beside_it_is_the_owners_alone(tmp_path):
    folder = tmp_path / "jobs"
    old = os.umask(0)
    try:
        JobsDatabase(folder).save(record())
        with closing(sqlite3.connect(folder / DATABASE_FILE)) as db:
            db.execute("SELECT * FROM jobs").fetchall()  # keeps -wal and -shm there
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    finally:
        os.umask(old)
    assert modes == {f"{DATABASE_FILE}{suffix}": 0o600 for suffix in ("", "-wal", "-shm")}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_it_is_written_ahead(tmp_path):
    JobsDatabase(tmp_path).save(record())
    assert sql(tmp_path, "PRAGMA journal_mode") == [("wal",)]
    assert sql(tmp_path, "PRAGMA user_version") == [(SCHEMA_VERSION,)]


def test_nothing_is_made_by_reading_where_nothing_is(tmp_path):
    assert JobsDatabase(tmp_path / "missing").load() == []
    assert list(tmp_path.iterdir()) == []


def test_a_schema_of_the_future_is_refused_and_left_alone(tmp_path):
    database = JobsDatabase(tmp_path)
    database.save(record())
    sql(tmp_path, f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    for use in (database.load, lambda: database.save(record(1))):
        with pytest.raises(ConfigError, match=f"has schema {SCHEMA_VERSION + 1}; this cvmtool knows {SCHEMA_VERSION}"):
            use()
    assert sql(tmp_path, "SELECT id FROM jobs") == [("digits-0",)]


@pytest.mark.parametrize("content", [b"no database" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_database_is_said_to_be_one(tmp_path, content):
    (tmp_path / DATABASE_FILE).write_bytes(content)
    with pytest.raises(FormatError, match="is damaged") as refusal:
        JobsDatabase(tmp_path).load()
    assert "move it away" in refusal.value.hint


def test_every_page_may_be_damaged(tmp_path):
    """Whatever bytes are changed, there are records or a refusal; nothing else is raised."""
    database = JobsDatabase(tmp_path)
    for number in range(20):
        database.save(record(number, attempts=attempts(3), stages={"boot": 1.0}))
    whole = (tmp_path / DATABASE_FILE).read_bytes()
    dice = random.Random(1)
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(dice.choice((1, 8, 512))):
            data[dice.randrange(len(data))] = dice.randrange(256)
        (tmp_path / DATABASE_FILE).write_bytes(data)
        for suffix in ("-wal", "-shm"):
            (tmp_path / f"{DATABASE_FILE}{suffix}").unlink(missing_ok=True)
        try:
            assert all(isinstance(found, JobRecord) for found in database.load())
        except (ConfigError, FormatError):
            refused += 1
    assert refused > 50


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / DATABASE_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError):
        JobsDatabase(tmp_path / "jobs").save(record())
    assert not (tmp_path / "elsewhere").exists()


def test_text_that_is_no_unicode_is_kept_readable(tmp_path):
    JobsDatabase(tmp_path).save(record(error="no room for a\udcff"))
    assert JobsDatabase(tmp_path).load()[0].error == "no room for a\\udcff"


WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from cvmtool.flows.jobdb import JobsDatabase
from tests.unit.flows.test_jobdb import attempts, record
folder, name, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
for number in range(rounds):
    count = number % 4
    JobsDatabase(folder).save(record(name, attempts=attempts(count), exit_code=count))
"""


def writer(folder, name, rounds=1_000_000):
    started = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(name), str(rounds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert started.stdout.readline() == b"ready\n"
    return started


def go(process):
    process.stdin.write(b"\n")
    process.stdin.flush()


def test_processes_that_begin_at_once_all_get_their_turn(tmp_path):
    writers = [writer(tmp_path, name, 25) for name in range(4)]
    for process in writers:
        go(process)
    assert [process.wait(60) for process in writers] == [0] * 4
    for process in writers:
        process.stdin.close()
        process.stdout.close()
    assert [found.id for found in JobsDatabase(tmp_path).load()] == [f"digits-{name}" for name in range(4)]


def test_a_new_database_that_another_process_begins_to_write_is_waited_for(tmp_path):
    """SQLite itself gives up at once when it cannot make the file a WAL."""
    other = sqlite3.connect(tmp_path / DATABASE_FILE, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    over = threading.Timer(0.2, other.close)
    over.start()
    JobsDatabase(tmp_path).save(record())
    over.join()
    assert len(JobsDatabase(tmp_path).load()) == 1


def test_killed_at_any_write_it_is_whole(tmp_path):
    """Twenty writers killed wherever they are: each leaves a record that it wrote, whole, and the file sound."""
    dice = random.Random(2)
    JobsDatabase(tmp_path).save(record(99))
    for name in range(20):
        process = writer(tmp_path, name)
        go(process)
        time.sleep(dice.uniform(0, 0.06))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()
        found = JobsDatabase(tmp_path).load()
        assert found[-1] == record(99)
        for kept in found[:-1]:
            assert kept.attempts == attempts(kept.exit_code)
    assert len(found) > 5
    assert sql(tmp_path, "PRAGMA integrity_check") == [("ok",)]
    assert sql(tmp_path, "PRAGMA foreign_key_check") == []


def test_events_are_numbered_by_run(tmp_path):
    database = JobsDatabase(tmp_path)
    for number in range(2):
        database.save(record(number))
    for index in range(3):
        database.add_event("digits-0", f"t{index}", {"event": "notice", "text": f"a \udcff {index}"})
        database.add_event("digits-1", "t", {})
    assert [number for number, _, _ in database.events("digits-1")] == [0, 1, 2]
    assert database.events("digits-0", after=1) == [(2, "t2", {"event": "notice", "text": "a \udcff 2"})]
    assert database.events("digits-0", after=2) == database.events("missing") == []


def test_the_latest_replaces_what_was(tmp_path):
    database = JobsDatabase(tmp_path)
    database.save(record())
    for done in range(3):
        database.put_latest("digits-0", "progress", {"done": done})
    database.put_latest("digits-0", "usage", {"memory": 1})
    assert database.latest("digits-0") == {"progress": {"done": 2}, "usage": {"memory": 1}}


def test_metrics_come_in_order_until_they_are_cleared(tmp_path):
    database = JobsDatabase(tmp_path)
    database.save(record())
    kept = [Metrics(microseconds=9 - number, values={"epoch": number, "loss": 0.1}) for number in range(5)]
    database.add_metrics("digits-0", kept[:2])
    database.add_metrics("digits-0", kept[2:])
    assert database.metrics("digits-0") == kept
    database.clear_metrics("digits-0")
    assert database.metrics("digits-0") == []


def test_saving_a_record_keeps_what_happened(tmp_path):
    database = JobsDatabase(tmp_path)
    database.save(record())
    database.add_event("digits-0", "t", {"event": "step"})
    database.add_metrics("digits-0", [Metrics(microseconds=1, values={"epoch": 1})])
    database.save(record(state=JobState.DONE))
    assert len(database.events("digits-0")) == len(database.metrics("digits-0")) == 1


def test_nothing_is_kept_of_a_run_that_is_not_there(tmp_path):
    with pytest.raises(FormatError):
        JobsDatabase(tmp_path).add_event("missing", "t", {})


def test_an_older_schema_is_brought_up_to_date(tmp_path):
    """A database as the first version left it: its records are there, and what came later works."""
    database = JobsDatabase(tmp_path)
    database.save(record(attempts=attempts(2)))
    for table in ("events", "latest", "metrics"):
        sql(tmp_path, f"DROP TABLE {table}")
    sql(tmp_path, "PRAGMA user_version = 1")
    assert database.load() == [record(attempts=attempts(2))]
    database.add_event("digits-0", "t", {"event": "step"})
    assert sql(tmp_path, "PRAGMA user_version") == [(SCHEMA_VERSION,)]


def test_a_migration_that_fails_leaves_the_schema_as_it_was(tmp_path):
    database = JobsDatabase(tmp_path)
    database.save(record())
    sql(tmp_path, "DROP TABLE events")  # but not `latest`: making it again fails half-way
    sql(tmp_path, "PRAGMA user_version = 1")
    with pytest.raises(ConfigError):
        database.load()
    assert sql(tmp_path, "PRAGMA user_version") == [(1,)]
    assert sql(tmp_path, "SELECT name FROM sqlite_schema WHERE name = 'events'") == []
