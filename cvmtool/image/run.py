# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The image zone's one door to other programs.

Zone: image. Starts processes.

Every program gets a fixed environment, so that neither the user's locale nor a variable changes what is built.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from cvmtool.errors import BuildError

_TAIL = 2000  # characters of a failed program's output worth showing
_KEPT = (
    "HOME",
    "PATH",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
)


def _environment(extra: Mapping[str, str] | None, *, pip: bool) -> dict[str, str]:
    kept = {key: os.environ[key] for key in _KEPT if key in os.environ}
    if pip:
        kept |= {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
    path = kept.get("PATH") or os.defpath
    return {**kept, "PATH": f"{path}:/usr/sbin:/sbin", "LC_ALL": "C.UTF-8", "TZ": "UTC", **(extra or {})}


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: bytes = b"",
    pip: bool = False,
) -> bytes:
    """Run a program to its end and return its standard output.

    `pip` lets the user's PIP_* settings through, which choose the package index.

    Raises:
        BuildError: the program is not there, or ends with another code than 0.
    """
    try:
        done = subprocess.run(
            [str(arg) for arg in argv],
            input=stdin,
            capture_output=True,
            check=False,
            cwd=cwd,
            env=_environment(env, pip=pip),
        )
    except OSError as error:
        raise missing(str(argv[0]), error) from error
    if done.returncode != 0:
        tail = (done.stderr + b"\n" + done.stdout).decode("utf-8", "replace").strip()[-_TAIL:]
        raise BuildError(f"{Path(str(argv[0])).name} ended with code {done.returncode}; 0 is required", detail=tail)
    return done.stdout


@contextmanager
def feed(argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> Iterator[IO[bytes]]:
    """Run a program while the caller writes its standard input.

    Raises:
        BuildError: the program is not there, stops reading, or ends with another code than 0.
    """
    with _started(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        pipe = _required(process.stdin)
        try:
            yield pipe
            pipe.close()
        except BrokenPipeError:
            pass  # the exit code below says what happened


@contextmanager
def drain(argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> Iterator[IO[bytes]]:
    """Run a program while the caller reads its standard output, to the end.

    Raises:
        BuildError: the program is not there, or ends with another code than 0.
    """
    with _started(argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        pipe = _required(process.stdout)
        yield pipe
        while pipe.read(1 << 16):
            pass  # an archive's padding; a program that could not write it would fail


@contextmanager
def _started(
    argv: Sequence[str | Path], *, env: Mapping[str, str] | None, stdin: int, stdout: int
) -> Iterator[subprocess.Popen[bytes]]:
    # A file for its complaints: a pipe that nobody reads meanwhile would block it.
    with tempfile.TemporaryFile() as complaints:
        try:
            process = subprocess.Popen(
                [str(arg) for arg in argv],
                stdin=stdin,
                stdout=stdout,
                stderr=complaints,
                env=_environment(env, pip=False),
            )
        except OSError as error:
            raise missing(str(argv[0]), error) from error
        try:
            yield process
            code = process.wait()
        except BaseException:
            process.kill()
            raise
        finally:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None and not pipe.closed:
                    with suppress(BrokenPipeError):
                        pipe.close()
            process.wait()
        complaints.seek(0)
        tail = complaints.read()
    if code != 0:
        text = tail.decode("utf-8", "replace").strip()[-_TAIL:]
        raise BuildError(f"{Path(str(argv[0])).name} ended with code {code}; 0 is required", detail=text)


def _required(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise RuntimeError("the pipe was asked for")
    return pipe


def missing(program: str, error: OSError) -> BuildError:
    """Return the error for a program that cannot be started."""
    return BuildError(f"{program} cannot be started: {error.strerror or error}", hint="sh tools/setup.sh")
