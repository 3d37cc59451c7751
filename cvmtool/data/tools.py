# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The one door to the programs that packing needs: squashfs-tools, cryptsetup, veritysetup.

Zone: data. Arguments are lists; secrets travel through pipes and memory files, never through arguments or
the environment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from cvmtool.errors import BuildError, ConfigError

_PACKAGES = {
    "mksquashfs": "squashfs-tools",
    "sqfstar": "squashfs-tools",
    "cryptsetup": "cryptsetup-bin",
    "veritysetup": "cryptsetup-bin",
    "unshare": "util-linux",
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


def run(
    arguments: Sequence[str], *, stdin: bytes | Iterable[bytes] = b"", pass_fds: Sequence[int] = (), what: str
) -> str:
    """Run a program to its end and return what it printed.

    Args:
        arguments: program (looked up) and its arguments.
        stdin: bytes, or pieces of bytes that are fed as the program takes them.
        pass_fds: descriptors that it inherits.
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
        ThreadPoolExecutor(1) as reader,
    ):
        if process.stdin is None or process.stdout is None:
            raise BuildError(f"{what}: no pipe to {arguments[0]}")
        # Read beside writing: a program that has filled its output pipe takes no more input.
        output = reader.submit(process.stdout.read)
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
    if code != 0:
        raise BuildError(f"{what} failed: {arguments[0]} ended with {code}", detail=printed.strip()[-2000:])
    return printed
