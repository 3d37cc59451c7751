# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Make a sealed pack of a file tree: squashfs, straight into the seal.

Zone: data (the owner's machine).
Spec: docs/protocol.md section 10. The plaintext file system exists in memory only, the source aside, and a few MiB at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from cvmtool.data.sealed import Progress, memory_file, seal_payload
from cvmtool.data.tools import run
from cvmtool.data.window import Take, Window
from cvmtool.errors import ConfigError
from cvmtool.formats.pack import BLOCK, PackDescriptor, Role

_ZSTD = ["-comp", "zstd", "-Xcompression-level", "3"]  # 15, its default, takes twenty times as long for a seventh less
# A container's libraries are read at every start, page by page: two fifths larger, and importing PyTorch cold takes 27 s
# under TCG instead of 49.
_LZ4 = ["-comp", "lz4"]
# The owner's umask says nothing about who may read inside the guest.
_READABLE = ["-action", "chmod(a+rX)@true"]
# Without a search for duplicates nothing that was written is read again (cvmtool.data.window); its queues are bounded.
_SQUASHFS = [
    "-noappend",
    "-b",
    "131072",
    "-no-duplicates",
    "-mem",
    "48M",
    "-no-progress",
    "-quiet",
    "-reproducible",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeSource:
    """A directory or a single file, packed as root's, with fixed times."""

    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class TarSource:
    """A tar stream, packed with the owners and modes it names."""

    pieces: Iterable[bytes]


def make_pack(
    source: TreeSource | TarSource,
    out: Path,
    *,
    name: str,
    role: Role,
    passphrase_for: Callable[[str], bytes],
    progress: Progress = lambda _done, _all: None,
) -> PackDescriptor:
    """Write the pack of `source` to `out`, whole or not at all, and return what may be known of it.

    `name`, `role`, `passphrase_for` and `progress` are those of `seal_payload`.

    Raises:
        ConfigError: the source cannot be read, `out` not written, the name is none, or a tool is missing.
        BuildError: a tool failed.
    """
    with memory_file("squashfs") as plain:
        return seal_payload(
            out,
            lambda take: _squash(source, plain, take),
            name=name,
            role=role,
            passphrase_for=passphrase_for,
            progress=progress,
            guess=_size_of(source),
        )


def _squash(source: TreeSource | TarSource, plain: int, take: Take) -> int:
    """Build the squashfs in the memory file and pass it on piece by piece; return its size, a multiple of a block."""
    window = Window(plain, take)
    path = f"/proc/self/fd/{plain}"
    if isinstance(source, TarSource):
        # Not sqfstar, its other name for the same: that takes no compression level (4.5) and no owner for the root.
        command = ["mksquashfs", "-", path, "-tar", "-root-uid", "0", "-root-gid", "0", "-root-mode", "755", *_LZ4]
        stdin, what = source.pieces, "packing a tar stream"
    else:
        path_in = _existing(source.path)
        fixed = ["-all-root", "-all-time", "0", "-mkfs-time", "0", *_READABLE, *_ZSTD]
        command = ["mksquashfs", str(path_in), path, *fixed]
        command += ["-root-mode", "755"] if path_in.is_dir() else []
        stdin, what = [], f"packing {source.path}"
    run([*command, *_SQUASHFS], stdin=stdin, pass_fds=[plain], beside=window.drain, what=what)
    return window.finish(multiple=BLOCK)


def _size_of(source: TreeSource | TarSource) -> int:
    """Return the bytes of a tree's files, for people to know how far it is; 0 if that is not known."""
    if isinstance(source, TarSource):
        return 0
    path = source.path
    if not path.is_dir():
        return path.stat().st_size if path.exists() else 0
    return sum(Path(folder, name).lstat().st_size for folder, _, names in os.walk(path) for name in names)


def _existing(path: Path) -> Path:
    """Return what is packed for `path`.

    Raises:
        ConfigError: there is nothing, or a link to a file, which mksquashfs would pack as a link.
    """
    if not path.exists():
        raise ConfigError(f"{path} does not exist", hint="check the path under inputs: in the job file")
    if not path.is_symlink():
        return path
    found = path.resolve()
    if not found.is_dir():
        raise ConfigError(f"{path} is a link to a file", hint=f"name the file itself: {found}")
    return found
