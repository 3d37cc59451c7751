# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The words that a guest says on its serial console, which the host reads. There is no way to say anything else.

Zone: guest (measured).
Spec: docs/protocol.md section 9.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

CONSOLE = Path("/dev/console")


class Word(StrEnum):
    """How far the guest has come, as far as the host may know."""

    AGENT = "agent"
    ATTESTED = "attested"
    UNLOCKED = "unlocked"
    RUNNING = "running"
    DONE = "done"


class Console:
    """Says each word once."""

    def __init__(self, path: Path = CONSOLE) -> None:
        self._path = path
        self._said: set[Word] = set()

    def say(self, word: Word) -> None:
        """Write the stage line for `word` once. A console that is gone is no reason to stop."""
        if word in self._said:
            return
        self._said.add(word)
        try:
            with self._path.open("wb", buffering=0) as console:
                console.write(f"CVM-STAGE {word.value}\n".encode("ascii"))
        except OSError:
            return
