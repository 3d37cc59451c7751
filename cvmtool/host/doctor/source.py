# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""How the doctor looks at a host: a few files and a few fixed commands, through an interface of four methods.

Zone: host. Every answer is a claim, and hostile: bounded here, decoded by `cvmtool.host.doctor.texts`, escaped where it is
shown. Nothing is written or installed on the host, so the same probe serves this machine, one behind SSH and a directory
of recorded answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from cvmtool.errors import FormatError

MAX_TEXT_BYTES = 4 << 20
"""Of the largest answer that is looked at: a kernel log."""
MAX_ENTRIES = 4096
"""Of a directory."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class FileKind(StrEnum):
    """What a name stands for."""

    FILE = "file"
    DIRECTORY = "directory"
    DEVICE = "character device"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStat:
    """`mode` holds the twelve permission bits; `uid` and `gid` are the host's numbers."""

    kind: FileKind
    mode: int
    uid: int
    gid: int

    def open_to(self, uid: int, groups: frozenset[int]) -> bool:
        """Whether a user may read and write it, access control lists aside."""
        if uid == 0:
            return True
        shift = 6 if uid == self.uid else 3 if self.gid in groups else 0
        return self.mode >> shift & 0o6 == 0o6


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A program with fixed arguments, what it reads on standard input, and how long it may take."""

    argv: tuple[str, ...]
    stdin: bytes = b""
    seconds: float = 10.0


class HostView(Protocol):
    """A host, seen from outside. Each method raises OSError, of the subclass that fits, when there is no answer."""

    def read(self, path: str, *, limit: int, offset: int = 0) -> bytes:
        """Return at most `limit` bytes of a file, from `offset` on."""
        ...

    def list(self, path: str) -> list[str]:
        """Return the names in a directory."""
        ...

    def stat(self, path: str) -> FileStat:
        """Say what a name stands for; links are followed."""
        ...

    def run(self, command: Command) -> bytes:
        """Run a command to its end and return its standard output; another exit code than 0 is an OSError."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim(Generic[T_co]):
    """What the host says, and where it says so; or why nothing is known."""

    source: str
    value: T_co | None = None
    problem: str = ""
    missing: bool = False
    """Whether the host says that there is no such thing, which is an answer, too."""

    @property
    def evidence(self) -> str:
        """Why there is no value, in words."""
        return f"{self.source}: {self.problem}"


def claim(source: str, look: Callable[[], T]) -> Claim[T]:
    """Call `look` and keep what it returns, or why it could not."""
    try:
        return Claim(source=source, value=look())
    except (FileNotFoundError, NotADirectoryError):
        return Claim(source=source, problem="does not exist", missing=True)
    except PermissionError:
        return Claim(source=source, problem="this user may not look at it")
    except FormatError as error:
        return Claim(source=source, problem=f"not understood: {error.message}")
    except OSError as error:
        return Claim(source=source, problem=error.strerror or str(error))


def text(data: bytes) -> str:
    """Decode what a host wrote; what is not UTF-8 is replaced."""
    return data[:MAX_TEXT_BYTES].decode("utf-8", "replace")
