# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The one door to the programs that packing needs: squashfs-tools and cryptsetup.

Zone: data. Arguments are lists; secrets travel through pipes and memory files, never through arguments or
the environment.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from cvmtool.errors import BuildError, ConfigError

_PACKAGES = {
    "mksquashfs": "squashfs-tools",
    "unsquashfs": "squashfs-tools",
    "cryptsetup": "cryptsetup-bin",
}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find(program: str) -> str:
    """Return the path of `program`; the system directories count even when PATH lacks them.

    Raises:
        ConfigError: it is not installed; the hint names the package.
    """
    path = shutil.which(program, path=f"{os.environ.get('PATH', '')}:{_PATH}")
    if path is None:
        raise ConfigError(f"{program} is not installed", hint=f"apt-get install {_PACKAGES[program]}")
    return path


class Running:
    """A program at work."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._paused = False

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def pause(self) -> None:
        """Make it wait. Idempotent."""
        if not self._paused:
            self._process.send_signal(signal.SIGSTOP)
            self._paused = True

    def resume(self) -> None:
        """Let it go on. Idempotent."""
        if self._paused:
            self._process.send_signal(signal.SIGCONT)
            self._paused = False


def run(
    arguments: Sequence[str],
    *,
    stdin: bytes | Iterable[bytes] = b"",
    pass_fds: Sequence[int] = (),
    beside: Callable[[Running], None] | None = None,
    what: str,
) -> str:
    """Run a program to its end and return what it printed.

    Args:
        arguments: program (looked up) and its arguments.
        stdin: bytes, or pieces of bytes that are fed as the program takes them.
        pass_fds: descriptors that it inherits.
        beside: called in a thread of its own with the running program; it returns when that has ended.
        what: the step, for the error.

    Raises:
        BuildError: it failed; what it printed is the detail.
    """
    with (
        subprocess.Popen(
            [find(arguments[0]), *arguments[1:]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=pass_fds,
            env={"PATH": _PATH, "LC_ALL": "C", "TZ": "UTC"},
        ) as process,
        ThreadPoolExecutor(2) as threads,
    ):
        if process.stdin is None or process.stdout is None:
            raise BuildError(f"{what}: no pipe to {arguments[0]}")
        # Read beside writing: a program that has filled its output pipe takes no more input.
        output = threads.submit(process.stdout.read)
        besides = threads.submit(_beside, beside, process) if beside is not None else None
        try:
            for piece in [stdin] if isinstance(stdin, bytes) else stdin:
                process.stdin.write(piece)
        except BrokenPipeError:
            pass  # it does not want all of it; its exit code and output say why
        except BaseException:
            process.kill()
            raise
        finally:
            with suppress(BrokenPipeError):
                process.stdin.close()
        printed = output.result().decode("utf-8", "replace")
        code = process.wait()
        if besides is not None:
            besides.result()
    if code != 0:
        raise BuildError(f"{what} failed: {arguments[0]} ended with {code}", detail=printed.strip()[-2000:])
    return printed


def _beside(beside: Callable[[Running], None], process: subprocess.Popen[bytes]) -> None:
    try:
        beside(Running(process))
    except BaseException:
        process.kill()  # it would wait for ever, or write for nothing
        raise
