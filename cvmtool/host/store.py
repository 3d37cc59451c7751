# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What a host keeps of public artefacts and ciphertext, by content: sent once, used by every machine.

Zone: host. An object is `MACHINES/.store/sha256/HEX`. A machine has a hard link to each object that it uses, so the file system
itself counts who uses what: taking an object's name away never takes it from a machine. An upload goes to a `.part` of this
uploader's own, which is linked to its machine before it gets the object's name; a cut one goes on where it stopped.

A host's digests are claims. They find damage early; what protects a guest is its measurement, dm-verity and its own SHA-256.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cvmtool.errors import HostError
from cvmtool.host.files import HostFiles, Progress

STORE_DIR = ".store"  # below the machines' directory, so on one file system with them; no machine can have the name
_OBJECT = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{12}\.part")
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """A file of the owner's that a machine needs: public, or ciphertext."""

    path: Path
    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """Something that `Store.collect` took away, or would."""

    name: str
    size: int
    why: str


class Store:
    """The store of one host."""

    def __init__(self, files: HostFiles, machines: str, *, uploader: str, locks: Path) -> None:
        """Name the store; nothing is made yet.

        Args:
            files: the host's files.
            machines: its directory of machines.
            uploader: 12 hex digits that no other account or computer has.
            locks: a directory on this computer, for the uploader's processes to wait for one another.
        """
        self._files = files
        self._folder = f"{machines}/{STORE_DIR}/sha256"
        self._uploader = uploader
        self._locks = locks

    def place(self, artefact: Artefact, target: str, progress: Progress) -> bool:
        """Give the host's `target` the content of an artefact; say whether anything had to be sent.

        Args:
            artefact: what to place.
            target: a name that is free, below the machines' directory.
            progress: told how far sending is.

        Raises:
            HostError: no room, the connection is gone, or what arrived is not what was sent.
        """
        if self._link(artefact, target):
            return False
        with _alone(self._locks / f"{artefact.sha256}.lock"):
            # Whoever held the lock may have sent it meanwhile.
            if self._link(artefact, target):
                return False
            self._send(artefact, target, progress)
        return True

    def has(self, artefact: Artefact) -> bool:
        """Whether the host has it already.

        Raises:
            HostError: the host cannot be asked.
        """
        # A host that went down in the middle of writing leaves a short object.
        return self._files.size(f"{self._folder}/{artefact.sha256}") == artefact.size

    def _link(self, artefact: Artefact, target: str) -> bool:
        return self.has(artefact) and self._files.link(f"{self._folder}/{artefact.sha256}", target)

    def _send(self, artefact: Artefact, target: str, progress: Progress) -> None:
        name = f"{self._folder}/{artefact.sha256}"
        part = f"{name}.{self._uploader}.part"
        self._files.make_dir(self._folder)
        arrived = self._files.size(part) or 0
        if not 0 < arrived <= artefact.size or self._files.digest(part) != _prefix_digest(artefact.path, arrived):
            arrived = 0
        self._files.append(artefact.path, part, start=arrived, progress=progress)
        digest = self._files.digest(part)
        if digest != artefact.sha256:
            self._files.remove(part)
            raise HostError(
                f"what arrived of {artefact.path.name} has sha256:{digest}; sha256:{artefact.sha256} was sent",
                hint="the host damages what it is given, or the file changed under way; try again",
            )
        if not self._files.link(part, target):
            raise HostError(f"the host's {target} cannot be linked to what was sent")
        self._files.rename(part, name)

    def collect(self, *, verify: bool = False, dry_run: bool = False) -> Iterator[Removed]:
        """Remove what no machine uses and uploads given up a day ago; with `verify`, what the host says is damaged as well.

        Raises:
            HostError: the host cannot be asked.
        """
        for entry in sorted(self._files.entries(self._folder), key=lambda entry: entry.name):
            why = self._why(entry.name, links=entry.links, stale=entry.stale, verify=verify)
            if why is not None:
                if not dry_run:
                    self._files.remove(f"{self._folder}/{entry.name}")
                yield Removed(name=entry.name, size=entry.size, why=why)

    def _why(self, name: str, *, links: int, stale: bool, verify: bool) -> str | None:
        if _PART.fullmatch(name):
            return "an upload that was given up" if stale and links == 1 else None
        if not _OBJECT.fullmatch(name):
            return None  # not ours
        if links == 1:
            return "no machine uses it"
        if verify and self._files.digest(f"{self._folder}/{name}") != name:
            return "damaged"
        return None


def _prefix_digest(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (piece := file.read(min(size, _PIECE))):
            digest.update(piece)
            size -= len(piece)
    return digest.hexdigest()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock file of this computer while the block runs; it is removed afterwards."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
                yield
                path.unlink(missing_ok=True)
                return
        finally:
            os.close(descriptor)
