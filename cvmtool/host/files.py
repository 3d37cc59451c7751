# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The files of a host: what can be done with them, and how on this very machine.

Zone: host. Paths are the host's, absolute, as POSIX text. Nothing secret is ever written there, and every byte, size and
digest that is read back is the host's claim.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cvmtool.errors import HostError

Progress = Callable[[int, int], None]
"""Called with the bytes that are done and those there are."""
PUBLIC_FILE = 0o644
PRIVATE_FILE = 0o600
PUBLIC_DIR = 0o755  # QEMU runs as another user
STALE_MINUTES = 1440
_PIECE = 1 << 20
_MISSING = (FileNotFoundError, NotADirectoryError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file in a directory of the host."""

    name: str
    size: int
    links: int
    """How many names the file has."""
    stale: bool
    """Not written to for a day, by the host's clock."""


class HostFiles(Protocol):
    """What cvmtool does with a host's files. Every method raises HostError when the host cannot."""

    def read(self, path: str, most: int) -> bytes:
        """Return the first `most` bytes of a file."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Make a small public file (0644); one that is there is replaced, never written into."""
        ...

    def make_dir(self, path: str) -> None:
        """Make a public directory (0755) and those above it, where they are missing."""
        ...

    def make_new_dir(self, path: str) -> bool:
        """Make a public directory in one that is there; False if there is anything of that name."""
        ...

    def size(self, path: str) -> int | None:
        """Return the size in bytes of a file (some number, of a directory); None if there is nothing."""
        ...

    def entries(self, path: str) -> list[Entry]:
        """List the regular files right below a directory; nothing if it is missing."""
        ...

    def append(self, source: Path, path: str, *, start: int, progress: Progress) -> None:
        """Send `source` from byte `start` on to the same place of a file, cut off there first. 0 makes it anew."""
        ...

    def digest(self, path: str) -> str:
        """Return a file's SHA-256, 64 hex digits."""
        ...

    def link(self, path: str, name: str) -> bool:
        """Give a file a second name, which must be free; False if there is no such file or this account may not."""
        ...

    def make_sparse(self, path: str, size: int) -> bool:
        """Make a private file (0600) of `size` zero bytes that take no room yet; False if there is anything of that name."""
        ...

    def rename(self, path: str, name: str) -> None:
        """Rename a file; one that has the name is replaced."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file. Idempotent."""
        ...

    def remove_tree(self, path: str) -> None:
        """Remove a directory and what is in it, links not followed. Idempotent."""
        ...

    def close(self) -> None:
        """Close what was opened."""
        ...


class LocalFiles:
    """The files of this machine, when it is its own host."""

    def read(self, path: str, most: int) -> bytes:
        """Return the first `most` bytes of a file."""
        try:
            with Path(path).open("rb") as file:
                return file.read(most)
        except OSError as error:
            raise _failure(path, "be read", error) from error

    def write(self, path: str, data: bytes) -> None:
        """Make or replace a small public file."""
        target = Path(path)
        try:
            handle, name = tempfile.mkstemp(prefix=".", dir=target.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    os.fchmod(handle, PUBLIC_FILE)
                    file.write(data)
                Path(name).replace(target)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise _failure(path, "be written", error) from error

    def make_dir(self, path: str) -> None:
        """Make a public directory and those above it."""
        try:
            for folder in reversed([Path(path), *Path(path).parents]):
                if not folder.is_dir():
                    folder.mkdir(exist_ok=True)
                    folder.chmod(PUBLIC_DIR)  # whatever the umask says
        except OSError as error:
            raise _failure(path, "be made", error) from error

    def make_new_dir(self, path: str) -> bool:
        """Make a public directory; False if the name is taken."""
        try:
            Path(path).mkdir()
            Path(path).chmod(PUBLIC_DIR)
        except FileExistsError:
            return False
        except OSError as error:
            raise _failure(path, "be made", error) from error
        return True

    def size(self, path: str) -> int | None:
        """Return a file's size; None if there is nothing."""
        try:
            return Path(path).stat().st_size
        except _MISSING:
            return None
        except OSError as error:
            raise _failure(path, "be looked at", error) from error

    def entries(self, path: str) -> list[Entry]:
        """List the regular files right below a directory."""
        found = []
        try:
            for item in Path(path).iterdir():
                with suppress(FileNotFoundError):
                    status = item.lstat()
                    if stat.S_ISREG(status.st_mode):
                        stale = time.time() - status.st_mtime > 60 * STALE_MINUTES
                        found.append(Entry(name=item.name, size=status.st_size, links=status.st_nlink, stale=stale))
        except _MISSING:
            return []
        except OSError as error:
            raise _failure(path, "be listed", error) from error
        return found

    def append(self, source: Path, path: str, *, start: int, progress: Progress) -> None:
        """Copy `source` from byte `start` on."""
        try:
            with source.open("rb") as file, Path(path).open("r+b" if start else "wb") as target:
                os.fchmod(target.fileno(), PUBLIC_FILE)
                total = os.fstat(file.fileno()).st_size
                file.seek(start)
                target.seek(start)
                target.truncate()
                while piece := file.read(_PIECE):
                    target.write(piece)
                    progress(file.tell(), total)
        except OSError as error:
            raise HostError(f"{source} cannot be copied to the host's {path}", detail=str(error)) from error

    def digest(self, path: str) -> str:
        """Return a file's SHA-256."""
        try:
            with Path(path).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise _failure(path, "be read", error) from error

    def link(self, path: str, name: str) -> bool:
        """Give a file a second name."""
        try:
            Path(name).hardlink_to(path)
        except (FileNotFoundError, PermissionError):
            return False
        except OSError as error:
            raise _failure(name, "be linked", error) from error
        return True

    def make_sparse(self, path: str, size: int) -> bool:
        """Make a private file of zeroes."""
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE)
        except FileExistsError:
            return False
        except OSError as error:
            raise _failure(path, "be made", error) from error
        try:
            os.ftruncate(descriptor, size)
        except OSError as error:
            Path(path).unlink(missing_ok=True)
            raise _failure(path, "be made", error) from error
        finally:
            os.close(descriptor)
        return True

    def rename(self, path: str, name: str) -> None:
        """Rename a file."""
        try:
            Path(path).replace(name)
        except OSError as error:
            raise _failure(path, "be renamed", error) from error

    def remove(self, path: str) -> None:
        """Remove a file."""
        try:
            with suppress(*_MISSING):
                Path(path).unlink()
        except OSError as error:
            raise _failure(path, "be removed", error) from error

    def remove_tree(self, path: str) -> None:
        """Remove a directory and what is in it."""
        try:
            with suppress(*_MISSING):
                shutil.rmtree(path)
        except OSError as error:
            raise _failure(path, "be removed", error) from error

    def close(self) -> None:
        """Nothing is open."""


def _failure(path: str, action: str, error: OSError) -> HostError:
    return HostError(f"the host's {path} cannot {action}", detail=str(error))
