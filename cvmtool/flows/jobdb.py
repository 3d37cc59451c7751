# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The database of an owner's runs: one SQLite file beside their directories. The only door to sqlite3.

Zone: flows (owner's machine). Any number of processes work with it at once. What is written is on disk when the call returns
(WAL, synchronous=FULL), whole or not at all, however a process or the machine dies. Each call has a connection of its own, so
that nothing is held open across threads or forks.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from cvmtool.config import private_dir
from cvmtool.errors import ConfigError, FormatError
from cvmtool.flows.attempts import Attempt, SessionNote
from cvmtool.flows.jobimport import old_records
from cvmtool.flows.jobmetrics import Metrics
from cvmtool.flows.jobrecord import JobRecord, JobState

DATABASE_FILE = "jobs.db"
Document = dict[str, Any]
"""A JSON object."""
_PATIENCE_SECONDS = 30.0  # while another process writes
_AGAIN_SECONDS = 0.01


def _records(db: sqlite3.Connection, folder: Path) -> None:
    for statement in (
        """CREATE TABLE jobs (
            id TEXT PRIMARY KEY NOT NULL, name TEXT NOT NULL, simulated INTEGER NOT NULL, state TEXT NOT NULL,
            created TEXT NOT NULL, machine TEXT NOT NULL, pid INTEGER, finished TEXT, exit_code INTEGER, error TEXT,
            results TEXT) STRICT""",
        """CREATE TABLE stages (
            job TEXT NOT NULL REFERENCES jobs ON DELETE CASCADE, position INTEGER NOT NULL, stage TEXT NOT NULL,
            seconds REAL NOT NULL, PRIMARY KEY (job, position)) STRICT, WITHOUT ROWID""",
        """CREATE TABLE attempts (
            job TEXT NOT NULL REFERENCES jobs ON DELETE CASCADE, number INTEGER NOT NULL, started TEXT NOT NULL,
            ended TEXT, cause TEXT, PRIMARY KEY (job, number)) STRICT, WITHOUT ROWID""",
        """CREATE TABLE sessions (
            job TEXT NOT NULL, attempt INTEGER NOT NULL, number INTEGER NOT NULL, nonce TEXT NOT NULL,
            boot TEXT NOT NULL, released INTEGER NOT NULL, PRIMARY KEY (job, attempt, number),
            FOREIGN KEY (job, attempt) REFERENCES attempts ON DELETE CASCADE) STRICT, WITHOUT ROWID""",
    ):
        db.execute(statement)
    for record in old_records(folder):
        _save(db, record)


def _happenings(db: sqlite3.Connection, _folder: Path) -> None:
    for statement in (
        """CREATE TABLE events (
            job TEXT NOT NULL REFERENCES jobs ON DELETE CASCADE, number INTEGER NOT NULL, at TEXT NOT NULL,
            event TEXT NOT NULL, PRIMARY KEY (job, number)) STRICT, WITHOUT ROWID""",
        """CREATE TABLE latest (
            job TEXT NOT NULL REFERENCES jobs ON DELETE CASCADE, what TEXT NOT NULL, value TEXT NOT NULL,
            PRIMARY KEY (job, what)) STRICT, WITHOUT ROWID""",
        """CREATE TABLE metrics (
            job TEXT NOT NULL REFERENCES jobs ON DELETE CASCADE, number INTEGER NOT NULL,
            microseconds INTEGER NOT NULL, metrics TEXT NOT NULL, PRIMARY KEY (job, number)) STRICT, WITHOUT ROWID""",
    ):
        db.execute(statement)


_MIGRATIONS: tuple[Callable[[sqlite3.Connection, Path], None], ...] = (_records, _happenings)
"""Each makes of the schema before it the next one, in one transaction. What was released is never changed."""
SCHEMA_VERSION = len(_MIGRATIONS)


class JobsDatabase:
    """The database of one directory of runs; made, or brought up to date, when it is first used.

    Every method raises ConfigError where the database cannot be used (disk full, no permission, made by a newer cvmtool), and
    FormatError where it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.path = folder / DATABASE_FILE

    def save(self, record: JobRecord) -> None:
        """Write one run's record."""
        with self._transaction() as db:
            _save(db, record)

    def load(self, job: str | None = None) -> list[JobRecord]:
        """Return every record, oldest first, or that of one `job` alone."""
        if not self._folder.is_dir():
            return []
        with self._connection() as db:
            db.execute("BEGIN")  # all tables as of one moment
            try:
                return _load(db, job)
            except (LookupError, TypeError) as error:  # rows that do not belong together
                raise self._damaged(error) from error

    def add_event(self, job: str, at: str, event: Document) -> None:
        """Append to what happened in a run."""
        with self._transaction() as db:
            db.execute(_APPEND.format(table="events"), (job, at, _text(event), job))

    def events(self, job: str, *, after: int = -1) -> list[tuple[int, str, Document]]:
        """Return what happened in a run: number, time and event of each with a higher number than `after`."""
        query = "SELECT number, at, event FROM events WHERE job = ? AND number > ? ORDER BY number"
        with self._connection() as db:
            return [(number, at, self._document(event)) for number, at, event in db.execute(query, (job, after))]

    def put_latest(self, job: str, what: str, value: Document) -> None:
        """Replace what was last known of something that changes all the time."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO latest VALUES (?, ?, ?)", (job, what, _text(value)))

    def latest(self, job: str) -> dict[str, Document]:
        """Return what is last known of everything of that kind, by its name."""
        with self._connection() as db:
            found = db.execute("SELECT what, value FROM latest WHERE job = ?", (job,))
            return {what: self._document(value) for what, value in found}

    def add_metrics(self, job: str, metrics: Iterable[Metrics]) -> None:
        """Append metrics."""
        with self._transaction() as db:
            rows = [(job, item.microseconds, _text(item.values), job) for item in metrics]
            db.executemany(_APPEND.format(table="metrics"), rows)

    def clear_metrics(self, job: str) -> None:
        """Drop a run's metrics: its container begins anew, or is heard from its beginning."""
        with self._transaction() as db:
            db.execute("DELETE FROM metrics WHERE job = ?", (job,))

    def metrics(self, job: str) -> list[Metrics]:
        """Return a run's metrics in order."""
        query = "SELECT microseconds, metrics FROM metrics WHERE job = ? ORDER BY number"
        with self._connection() as db:
            rows = db.execute(query, (job,)).fetchall()
            return [Metrics(microseconds=at, values=self._document(text)) for at, text in rows]

    def _document(self, text: str) -> Document:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._damaged(error) from error
        if not isinstance(value, dict):
            raise self._damaged(ValueError(text[:80]))
        return value

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        private_dir(self._folder)
        with self._connection() as db:
            db.execute("BEGIN IMMEDIATE")
            with db:  # commits, or rolls back
                yield db

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            # The files that SQLite puts beside it get its mode.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            with closing(self._open()) as db:
                yield db
        except (sqlite3.OperationalError, OSError) as error:
            raise ConfigError(f"the database of runs {self.path} cannot be used", detail=str(error)) from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise self._damaged(error) from error

    def _open(self) -> sqlite3.Connection:
        """Return a connection to the database as it shall be.

        Whoever makes a new file a WAL reads it and then wants to write, where SQLite does not wait for the others that do the
        same (it might be for ever) but gives up at once. So this begins again; no work was done yet.
        """
        end = time.monotonic() + _PATIENCE_SECONDS
        while True:
            db = sqlite3.connect(self.path, timeout=_PATIENCE_SECONDS, isolation_level=None)
            try:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")
                db.execute("PRAGMA foreign_keys = ON")
                self._migrate(db)
            except BaseException as error:
                db.close()
                if not _is_busy(error) or time.monotonic() > end:
                    raise
            else:
                return db
            time.sleep(_AGAIN_SECONDS)

    def _damaged(self, error: Exception) -> FormatError:
        return FormatError(
            f"the database of runs {self.path} is damaged",
            detail=str(error),
            hint="move it away: receipts, evidence, logs and outputs are files in the directories beside it",
        )

    def _migrate(self, db: sqlite3.Connection) -> None:
        version = _version(db)
        if version > SCHEMA_VERSION:
            raise ConfigError(
                f"the database of runs {self.path} has schema {version}; this cvmtool knows {SCHEMA_VERSION}",
                hint="it was used by a newer cvmtool: use that one",
            )
        if version == SCHEMA_VERSION:
            return
        db.execute("BEGIN EXCLUSIVE")
        with db:
            for number in range(_version(db), SCHEMA_VERSION):  # another process may have been faster
                _MIGRATIONS[number](db, self._folder)
                db.execute(f"PRAGMA user_version = {number + 1}")


_APPEND = "INSERT INTO {table} SELECT ?, COALESCE(MAX(number) + 1, 0), ?, ? FROM {table} WHERE job = ?"


def _text(document: Mapping[str, object]) -> str:
    return json.dumps(document)


def _is_busy(error: BaseException) -> bool:
    # An extended code has the plain one in its lowest byte.
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


_COLUMNS = (
    "id",
    "name",
    "simulated",
    "state",
    "created",
    "machine",
    "pid",
    "finished",
    "exit_code",
    "error",
    "results",
)
_SAVE = (
    f"INSERT INTO jobs ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))}) "  # noqa: S608 - constants
    f"ON CONFLICT (id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _COLUMNS[1:])}"
)


def _save(db: sqlite3.Connection, record: JobRecord) -> None:
    job = record.id
    db.execute(_SAVE, [_storable(getattr(record, name)) for name in _COLUMNS])
    db.execute("DELETE FROM stages WHERE job = ?", (job,))
    db.execute("DELETE FROM attempts WHERE job = ?", (job,))  # and their sessions
    db.executemany(
        "INSERT INTO stages VALUES (?, ?, ?, ?)",
        [(job, position, stage, seconds) for position, (stage, seconds) in enumerate(record.stages.items())],
    )
    for number, attempt in enumerate(record.attempts):
        db.execute(
            "INSERT INTO attempts VALUES (?, ?, ?, ?, ?)",
            (job, number, attempt.started, attempt.ended, _storable(attempt.cause)),
        )
        db.executemany(
            "INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?)",
            [(job, number, index, note.nonce, note.boot, note.released) for index, note in enumerate(attempt.sessions)],
        )


def _storable(value: object) -> object:
    """Return a value as SQLite takes it: bytes of a file's name that are no UTF-8 have no place in its texts."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(value, str) else value


def _load(db: sqlite3.Connection, job: str | None) -> list[JobRecord]:
    found: dict[str, JobRecord] = {}
    one, wanted = ("" if job is None else "WHERE {} = ?"), () if job is None else (job,)

    def rows(columns: str, table: str, *, key: str, order: str) -> sqlite3.Cursor:
        # Constants of this module alone.
        return db.execute(f"SELECT {columns} FROM {table} {one.format(key)} ORDER BY {order}", wanted)  # noqa: S608

    for row in rows(", ".join(_COLUMNS), "jobs", key="id", order="created, id"):
        values = dict(zip(_COLUMNS, row, strict=True))
        values |= {"simulated": bool(values["simulated"]), "state": _state(values["state"])}
        found[values["id"]] = JobRecord(**values)
    for name, stage, seconds in rows("job, stage, seconds", "stages", key="job", order="job, position"):
        found[name].stages[stage] = seconds
    for name, *attempt in rows("job, started, ended, cause", "attempts", key="job", order="job, number"):
        found[name].attempts.append(Attempt(**dict(zip(("started", "ended", "cause"), attempt, strict=True))))
    columns = "job, attempt, nonce, boot, released"
    for name, number, nonce, boot, released in rows(columns, "sessions", key="job", order="job, attempt, number"):
        found[name].attempts[number].sessions.append(SessionNote(nonce=nonce, boot=boot, released=bool(released)))
    return list(found.values())


def _state(value: str) -> JobState:
    try:
        return JobState(value)
    except ValueError as error:
        raise FormatError(f"a run's state is {str(value)[:32]!r}; one of {', '.join(JobState)} is required") from error
