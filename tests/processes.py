# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The processes of this machine, as tests look for what was left behind."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def commands() -> dict[int, list[bytes]]:
    """Return the command line of each process. Others end while this looks, and are not there."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found[int(path.parent.name)] = path.read_bytes().split(b"\0")
    return found


def qemus(machine: str) -> list[int]:
    """Return the processes that run a machine."""
    mark = f"guest={machine},".encode()
    return [
        number
        for number, words in commands().items()
        if b"qemu" in words[0] and any(word.startswith(mark) for word in words)
    ]


def naming(text: str) -> list[list[bytes]]:
    """Return the command lines that name something."""
    return [words for words in commands().values() if any(text.encode() in word for word in words)]
