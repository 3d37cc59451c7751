# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What a host holds of a machine: its names of the public artefacts and disks, and the console it writes.

Zone: host. Nothing secret ever enters this directory: the disks are measured, or ciphertext.
"""

from __future__ import annotations

import re

from cvmtool.errors import ConfigError, HostError
from cvmtool.host.files import HostFiles

VM_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")
# Names in a machine's directory.
HASH_TABLE_FILE = "hashes.bin"  # dry run: the table that QEMU loads
CONSOLE_FILE = "console.log"  # stage words, and what the kernel has to say
_WORDS = re.compile(rb"CVM-(?:STAGE|FAIL) [a-z-]{1,32}")
MAX_CONSOLE = 1 << 20  # bytes of a console that are looked at; a hostile host may write for ever


class MachineDir:
    """One machine's directory on its host."""

    def __init__(self, files: HostFiles, machines: str, name: str) -> None:
        """Name the directory; nothing is made yet.

        Args:
            files: the host's files.
            machines: the directory of all machines there.
            name: the machine's.

        Raises:
            ConfigError: the name cannot be a machine's. It becomes a path, and `remove` deletes what is there.
        """
        self.files = files
        self.machines = machines
        self.name = checked_name(name)

    def path(self, name: str) -> str:
        """Return the path of a file in it."""
        return f"{self.machines}/{self.name}/{name}"

    @property
    def console(self) -> str:
        """The serial console's file."""
        return self.path(CONSOLE_FILE)

    def create(self) -> None:
        """Make the directory, and those above it.

        Raises:
            HostError: it exists, or cannot be made.
        """
        try:
            self.files.make_dir(self.machines)
        except HostError as error:
            hint = "another place: machines_dir (CVMTOOL_MACHINES_DIR), on a named host its machines"
            raise HostError(error.message, detail=error.detail, hint=hint) from error
        if not self.files.make_new_dir(f"{self.machines}/{self.name}"):
            raise HostError(
                f"the host has a machine {self.name} already", hint=f"cvmtool vm destroy {self.name}, if it is yours"
            )
        try:
            # QEMU, or libvirt for it, writes the console; an existing file keeps our rights to read it.
            self.files.write(self.console, b"")
        except BaseException:
            self.remove()
            raise

    def read_console(self) -> bytes:
        """Return the first MiB of the console, or nothing when it cannot be read. Hostile bytes."""
        try:
            return self.files.read(self.console, MAX_CONSOLE)
        except HostError:
            return b""

    def remove(self) -> bool:
        """Delete the directory; False if there was none. Idempotent.

        Raises:
            HostError: the host does not do it.
        """
        folder = f"{self.machines}/{self.name}"
        found = self.files.size(folder) is not None
        self.files.remove_tree(folder)
        return found


def checked_name(name: str) -> str:
    """Return a machine's name.

    Raises:
        ConfigError: no machine can have it.
    """
    if not VM_NAME.fullmatch(name):
        raise ConfigError(
            f"machine name is {name[:80]!r}; lower-case letters, digits, '.', '_' and '-' are required",
            hint="cvmtool vm list",
        )
    return name


def stage_words(console: bytes) -> list[str]:
    """Return the stage and failure words on a console, in order."""
    return [word.decode("ascii") for word in _WORDS.findall(console)]
