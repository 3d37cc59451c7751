# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The dm-verity hash tree of a file, appended to it.

Zone: image. Writes one file.
Spec: Linux Documentation/admin-guide/device-mapper/verity.rst, hash type 1, SHA-256, 4096-byte blocks.

There is no superblock: the measured command line carries everything that one would say, and the kernel reads none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cvmtool.errors import BuildError
from cvmtool.formats.verity import BLOCK, block_digests, levels_above

_PIECE = 1 << 20  # bytes read at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Verity:
    """What opens a file with its tree."""

    blocks: int
    """Data blocks of 4096 bytes; the tree begins at this block."""
    root: str
    """Root hash, 64 hex digits."""
    salt: str
    """64 hex digits."""

    def word(self) -> str:
        """Return the word for the measured command line: blocks, first block of the tree, root hash, salt."""
        return f"cvmtool.verity={self.blocks}:{self.blocks}:{self.root}:{self.salt}"


def append_tree(path: Path, *, salt: bytes) -> Verity:
    """Pad a file to whole blocks and append its hash tree, top level first.

    `salt` has 32 bytes.

    Raises:
        BuildError: the file is empty.
    """
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        file.truncate(-(-size // BLOCK) * BLOCK)
        blocks = -(-size // BLOCK)
        if not blocks:
            raise BuildError(f"{path.name} is empty; a hash tree needs at least one byte")
        file.seek(0)
        digests = b"".join(block_digests(piece, salt) for piece in iter(lambda: file.read(_PIECE), b""))
        levels, root = levels_above(digests, salt)
        for level in levels:
            file.write(level)
    return Verity(blocks=blocks, root=root.hex(), salt=salt.hex())
