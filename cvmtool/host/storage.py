# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What a host holds of a machine: its copies of the public artefacts and disks, and the console it writes.

Zone: host. Nothing secret ever enters this directory: the disks are measured, or ciphertext.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from cvmtool.errors import ConfigError, HostError

VM_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")
# Names in a machine's directory.
RECORD_FILE = "machine.json"  # what cvmtool needs to find the domain again
HASH_TABLE_FILE = "hashes.bin"  # dry run: the table that QEMU loads
CONSOLE_FILE = "console.log"  # stage words, and what the kernel has to say
LIBVIRT_LOG_FILE = "libvirt.log"
_WORDS = re.compile(rb"CVM-(?:STAGE|FAIL) [a-z-]{1,32}")
MAX_CONSOLE = 1 << 20  # bytes of a console that are looked at; a hostile host may write for ever


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineRecord:
    """How to find a machine again."""

    name: str
    job: str
    uri: str
    pid: int
    """The process that started it; an embedded driver belongs to it while it lives."""


class MachineDir:
    """One machine's directory."""

    def __init__(self, machines_dir: Path, name: str) -> None:
        """Name the directory; nothing is made yet.

        Raises:
            ConfigError: the name cannot be a machine's. It becomes a path, and `remove` deletes what is there.
        """
        if not VM_NAME.fullmatch(name):
            raise ConfigError(
                f"machine name is {name[:80]!r}; lower-case letters, digits, '.', '_' and '-' are required",
                hint="cvmtool vm list",
            )
        self.path = machines_dir / name

    @property
    def console(self) -> Path:
        """The serial console's file."""
        return self.path / CONSOLE_FILE

    def refuse_existing(self) -> None:
        """Make sure that there is no such machine yet.

        Raises:
            HostError: there is.
        """
        if self.path.exists():
            raise HostError(f"the machine {self.path.name} exists already", hint=f"cvmtool vm destroy {self.path.name}")

    def create(self) -> None:
        """Make the directory. Its parents are made passable: QEMU runs as another user.

        Raises:
            HostError: it exists, or cannot be made.
        """
        try:
            self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            self.refuse_existing()
            self.path.mkdir(mode=0o755)
            # QEMU, or libvirt for it, creates the console; an existing file keeps our rights to read it.
            self.console.touch(mode=0o644)
        except OSError as error:
            raise HostError(
                f"{self.path} cannot be made",
                detail=str(error),
                hint="set CVMTOOL_MACHINES_DIR to a place you may write",
            ) from error

    def place(self, source: Path, name: str) -> Path:
        """Copy a file in under `name`; return its path.

        Raises:
            HostError: no room, or not readable.
        """
        target = self.path / name
        try:
            shutil.copyfile(source, target)
            target.chmod(0o644)
        except OSError as error:
            raise HostError(f"{source} cannot be copied to the host's store", detail=str(error)) from error
        return target

    def write(self, name: str, data: bytes) -> Path:
        """Write a small public file; return its path.

        Raises:
            HostError: no room.
        """
        target = self.path / name
        try:
            target.write_bytes(data)
            target.chmod(0o644)
        except OSError as error:
            raise HostError(f"{target} cannot be written", detail=str(error)) from error
        return target

    def save(self, record: MachineRecord) -> None:
        """Write the machine's record."""
        self.write(RECORD_FILE, json.dumps(asdict(record), indent=1).encode("utf-8"))

    def read_console(self) -> bytes:
        """Return the first MiB of the console, or nothing when there is none. Hostile bytes."""
        try:
            with self.console.open("rb") as file:
                return file.read(MAX_CONSOLE)
        except OSError:
            return b""

    def remove(self) -> None:
        """Delete the directory. Idempotent."""
        shutil.rmtree(self.path, ignore_errors=True)


def records(machines_dir: Path) -> Iterator[MachineRecord]:
    """Yield the records of the machines that this user started."""
    for path in sorted(machines_dir.glob(f"*/{RECORD_FILE}")):
        try:
            value = json.loads(path.read_text("utf-8"))
            pid = int(value["pid"])
            if pid < 1 or not VM_NAME.fullmatch(path.parent.name):
                continue
            yield MachineRecord(name=path.parent.name, job=str(value["job"]), uri=str(value["uri"]), pid=pid)
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            continue  # half-written by a process that died; `vm destroy NAME` still removes it


def process_lives(pid: int) -> bool:
    """Say whether a process with this number exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    except OverflowError:
        return False  # no process has such a number
    return True


def stage_words(console: bytes) -> list[str]:
    """Return the stage and failure words on a console, in order."""
    return [word.decode("ascii") for word in _WORDS.findall(console)]
