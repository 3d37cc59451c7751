# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""An exchange directory: where the coordinator and the parties of a job leave files for each other.

Zone: flows (an owner's machine). Whatever shares files will do. Whoever can write there can stop a job and do no more: each file is
read as a stranger's, bounded and through no link, and what matters in it is signed or verified by who reads it.
Spec: docs/protocol.md section 16.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cvmtool.config import write_atomic
from cvmtool.errors import ConfigError, CvmError
from cvmtool.formats.evidence import MAX_EVIDENCE, Evidence, parse_evidence
from cvmtool.formats.exchange import (
    MAX_ANSWER,
    MAX_INVITATION,
    MAX_ROUNDS,
    Answer,
    PooledJob,
    parse_answer,
    parse_pooled_job,
)
from cvmtool.formats.job import JobManifest

JOB_FILE = "job.json"
OVER_FILE = "over"  # the coordinator's run has ended
_ID_DIGITS = 16
_SHARED = 0o644


class Part(StrEnum):
    """What is said in one round between the coordinator and one party."""

    CONSENT = "consent"
    EVIDENCE = "evidence"
    RELEASE = "release"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One job's directory in an exchange directory."""

    folder: Path

    @property
    def id(self) -> str:
        """What people call the job here: the first 16 hex digits of its manifest's SHA-256."""
        return self.folder.name

    def publish(self, job: PooledJob) -> None:
        """Ask the parties. Again is fine.

        Raises:
            ConfigError: the directory cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / OVER_FILE).unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(f"the exchange {self.folder} cannot be written", detail=str(error)) from error
        self._write(JOB_FILE, job.encode())

    def job(self) -> PooledJob:
        """Return what the coordinator asks.

        Raises:
            ConfigError: there is nothing, or it cannot be read.
            FormatError: it is no such thing, or another job than the directory is named after.
        """
        data = self._read(JOB_FILE, MAX_INVITATION)
        if data is None:
            raise ConfigError(f"{self.folder} holds no {JOB_FILE}", hint="cvmtool train --exchange writes it")
        return parse_pooled_job(data)

    @property
    def over(self) -> bool:
        """Whether the coordinator says that its run has ended."""
        return (self.folder / OVER_FILE).exists()

    def close(self) -> None:
        """Say that the run has ended: nobody needs to wait any more."""
        self._write(OVER_FILE, b"")

    def answer(self, name: str, number: int, part: Part) -> Answer | None:
        """Return a party's answer, unverified; None if there is none yet.

        Raises:
            ConfigError: it cannot be read.
            FormatError: it is none.
        """
        data = self._read(_file(name, number, part), MAX_ANSWER)
        return None if data is None else parse_answer(data)

    def put_answer(self, name: str, part: Part, answer: Answer) -> None:
        """Leave a party's answer."""
        self._write(_file(name, answer.round, part), answer.encode())

    def evidence(self, name: str, number: int) -> Evidence | None:
        """Return what a guest showed for the nonce of a party, unverified; None if there is nothing yet.

        Raises:
            ConfigError: it cannot be read.
            FormatError: it is no evidence.
        """
        data = self._read(_file(name, number, Part.EVIDENCE), MAX_EVIDENCE)
        return None if data is None else parse_evidence(data)

    def put_evidence(self, name: str, number: int, evidence: Evidence) -> None:
        """Hand a party what the guest showed for its nonce."""
        self._write(_file(name, number, Part.EVIDENCE), evidence.encode())

    def round_without(self, name: str, part: Part) -> int:
        """Return the first round of a party that lacks a part.

        Raises:
            ConfigError: there were too many.
        """
        for number in range(1, MAX_ROUNDS + 1):
            if not os.path.lexists(self.folder / _file(name, number, part)):
                return number
        raise ConfigError(f"{self.folder} has seen {MAX_ROUNDS} rounds", hint="prepare the job anew: cvmtool train")

    def _write(self, name: str, data: bytes) -> None:
        if self.folder.is_symlink():
            raise ConfigError(f"the exchange {self.folder} is a link; a directory is required")
        try:
            write_atomic(self.folder / name, data, mode=_SHARED)
        except OSError as error:
            raise ConfigError(f"the exchange {self.folder} cannot be written", detail=str(error)) from error

    def _read(self, name: str, limit: int) -> bytes | None:
        """Return a file of at most `limit` bytes and one more; None if there is none."""
        path = self.folder / name
        try:
            # Whoever shares the directory may have put a link or a pipe there.
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(handle, "rb") as file:
                if not stat.S_ISREG(os.fstat(handle).st_mode):
                    raise ConfigError(f"{path} is no regular file")
                return file.read(limit + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"{path} cannot be read", detail=str(error)) from error


def exchange_of(folder: Path, manifest: JobManifest) -> Exchange:
    """Return where a job is in an exchange directory."""
    return Exchange(folder=folder / manifest.sha256.hex()[:_ID_DIGITS])


def open_exchanges(folder: Path) -> Iterator[tuple[Exchange, PooledJob]]:
    """Yield the jobs in an exchange directory that are not over. What is no job is passed over.

    Raises:
        ConfigError: the directory cannot be read.
    """
    try:
        below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    except OSError as error:
        raise ConfigError(f"the exchange {folder} cannot be read", detail=str(error)) from error
    for path in below:
        exchange = Exchange(folder=path)
        try:
            pooled = exchange.job()
        except CvmError:
            continue
        if exchange_of(folder, pooled.manifest) == exchange and not exchange.over:
            yield exchange, pooled


def _file(name: str, number: int, part: Part) -> str:
    return f"{name}.{number}.{part}"
