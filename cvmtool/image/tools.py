# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The programs that make an image, taken from its own lock and run with their own C library.

Zone: image. Starts processes.

A squashfs or a zstd frame differs from one version of its compressor to the next. So the compressor is an input of the
image like any other: a locked package, started through its own dynamic linker. An image built on Debian 12 is then the
image built on Debian 13, and the machine that builds needs none of these programs installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cvmtool.image.libraries import LINKER
from cvmtool.image.run import feed, run


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """Programs unpacked below one folder."""

    root: Path
    time: int
    """The time stamp (SOURCE_DATE_EPOCH) they are given."""

    def argv(self, program: str, *args: str | Path, name: str = "") -> list[str | Path]:
        """Return the command that starts `program` (a path below the root), under another name if one is given."""
        library = self.root / "usr/lib/x86_64-linux-gnu"
        called = ["--argv0", name] if name else []
        return [self.root / LINKER, "--library-path", library, *called, self.root / program, *args]

    def env(self) -> dict[str, str]:
        """Return the variables that keep them deterministic."""
        return {"SOURCE_DATE_EPOCH": str(self.time), "PYTHONHOME": str(self.root / "usr"), "PYTHONHASHSEED": "0"}

    def zstd(self, data: bytes) -> bytes:
        """Return `data` compressed as one zstd frame that the kernel accepts as an initrd."""
        return run(self.argv("usr/bin/zstd", "-q", "-c", "-19", "-T1"), stdin=data, env=self.env())

    def unzstd(self, data: bytes) -> bytes:
        """Return what a zstd frame holds."""
        return run(self.argv("usr/bin/zstd", "-q", "-d", "-c"), stdin=data, env=self.env())

    def depmod(self, root: Path, release: str) -> None:
        """Write modules.dep and its companions for root/lib/modules/release."""
        run(self.argv("usr/bin/kmod", "-b", root, release, name="depmod"), env=self.env())

    def compile_python(self, folder: Path) -> None:
        """Compile every module below `folder` to byte code that is never checked against its source."""
        run(
            self.argv(
                "usr/bin/python3.13", "-I", "-m", "compileall", "-q", "-j1", "--invalidation-mode", "unchecked-hash",
                "-s", folder, "-p", "/", folder,
            ),
            env=self.env(),
        )  # fmt: skip

    @contextmanager
    def squashfs(self, out: Path) -> Iterator[IO[bytes]]:
        """Yield a pipe that takes a tar archive and becomes a squashfs (lz4, 128 KiB blocks) at `out`."""
        argv = self.argv(
            "usr/bin/sqfstar", "-quiet", "-no-progress", "-reproducible", "-comp", "lz4", "-Xhc", "-b", "131072",
            "-processors", "2", "-no-xattrs", "-root-mode", "755", "-root-uid", "0", "-root-gid", "0",
            "-root-time", str(self.time), out,
        )  # fmt: skip
        with feed(argv, env=self.env()) as pipe:
            yield pipe
