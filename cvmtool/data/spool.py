# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Bytes put aside until their number is known: a few in memory, more of them encrypted in a file without a name.

Zone: data (the owner's machine). The key (AES-256-CTR) is random, used for one spool, and never leaves this process.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

IN_MEMORY = 2 << 20  # bytes
_PIECE = 1 << 20


class Spool:
    """Written first, then read once from its beginning."""

    def __init__(self, folder: Path) -> None:
        """Put what memory does not hold into `folder`, which must be on a disk with room for it."""
        self._folder = folder
        self._memory = bytearray()
        self._file: BinaryIO | None = None
        self._cipher = Cipher(algorithms.AES256(secrets.token_bytes(32)), modes.CTR(bytes(16)))
        self._encryptor = self._cipher.encryptor()
        self.size = 0

    def write(self, data: bytes) -> None:
        """Put aside some more bytes.

        Raises:
            OSError: the disk has no room for them.
        """
        self._memory += data
        self.size += len(data)
        if len(self._memory) > IN_MEMORY:
            self._spill()

    def read(self) -> Iterator[bytes]:
        """Yield all of them, piece by piece, and let go of them."""
        if self._file is not None:
            self._file.seek(0)
            decryptor = self._cipher.decryptor()
            while piece := self._file.read(_PIECE):
                yield decryptor.update(piece)
        yield bytes(self._memory)
        self.close()

    def close(self) -> None:
        """Let go of the bytes, read or not. Idempotent."""
        self._memory = bytearray()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - `close` does
        self._file.write(self._encryptor.update(self._memory))
        self._memory = bytearray()
