# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The host's disks: found by serial, their headers read into memory, LUKS2 opened with that copy.

Zone: guest (measured).
Spec: docs/protocol.md sections 10 and 12.

The serial is the host's to choose: a hint for finding a disk, never a reason to trust it. cryptsetup is shown a header that
lies in memory and was checked there, so what was checked is what is used.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from cvmtool.formats.pack import HEADER_SIZE
from cvmtool.guest.programs import Ended, run

_SECTOR = 512  # bytes, the unit of /sys/block/*/size


def find_disks(serial: str, blocks: Path) -> list[str]:
    """Return the kernel's name of every disk with that virtio serial; `blocks` is /sys/block."""
    return [
        disk.name
        for disk in sorted(blocks.glob("vd*"))
        if (disk / "serial").read_text("ascii", "replace").strip() == serial
    ]


def size_of(name: str, blocks: Path) -> int:
    """Return the size of a disk, in bytes."""
    return int((blocks / name / "size").read_text("ascii")) * _SECTOR


def read_header(device: Path) -> bytes:
    """Return the first `HEADER_SIZE` bytes of a device, or as many as it has.

    Raises:
        OSError: it cannot be read.
    """
    data = bytearray()
    with device.open("rb", buffering=0) as blocks:
        while len(data) < HEADER_SIZE:
            piece = blocks.read(HEADER_SIZE - len(data))
            if not piece:
                break  # the header's size is checked by its reader
            data += piece
    return bytes(data)


def open_luks(device: Path, name: str, header: bytes, passphrase: bytes | bytearray, *options: str) -> Ended:
    """Open a LUKS2 device as /dev/mapper/NAME, by a header that was checked. Code 2: the passphrase is another."""
    with MemoryFile(header) as copy:
        return run(
            "cryptsetup",
            "open",
            "--type=luks2",
            "--disable-keyring",
            "--disable-external-tokens",
            *options,
            f"--header={copy.path}",
            "--key-file=-",
            str(device),
            name,
            stdin=passphrase,
        )


class MemoryFile:
    """Bytes that have a path and lie in memory only."""

    def __init__(self, data: bytes) -> None:
        self._file = os.memfd_create("header")
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    @property
    def path(self) -> str:
        """Where another program finds it."""
        return f"/proc/{os.getpid()}/fd/{self._file}"

    def read(self) -> bytes:
        """Return what it holds now."""
        return Path(self.path).read_bytes()
