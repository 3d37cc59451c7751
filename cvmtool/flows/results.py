# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Bring the declared outputs home: streamed, capped, checked against their digests, whole or not at all.

Zone: flows. Names, sizes and digests come from the guest; the caps and the list of names are the owner's manifest.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvmtool.errors import ConfigError, FormatError, VerificationError
from cvmtool.flows.reporter import Reporter
from cvmtool.formats.control import Op
from cvmtool.formats.job import JobManifest, Output
from cvmtool.formats.wire import canonical_json, natural, parse_hex, typed
from cvmtool.host.channel import AgentChannel


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """An output that came home."""

    name: str
    path: Path
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the guest says about the end of a job."""

    exit_code: int
    cause: str
    """exited, timeout, memory or runtime."""
    outputs: tuple[tuple[str, int, str], ...]
    """(name, size, sha256), all of them declared in the manifest and within its caps."""
    refused: tuple[tuple[str, str], ...]
    """(name, reason) of declared outputs that may not leave the guest."""
    log_size: int
    log_sha256: str
    receipt: bytes


def read_outcome(answer: dict[str, Any], manifest: JobManifest) -> Outcome:
    """Read the guest's answer to `results`.

    Raises:
        FormatError: malformed, or an output that the manifest does not declare, or over its cap.
    """
    what = "results"
    declared = {output.name: output for output in manifest.outputs}
    outputs = []
    for item in typed(answer, "outputs", list, what=what):
        if not isinstance(item, dict):
            raise FormatError(f"results.outputs holds a {type(item).__name__}; an object is required")
        name = typed(item, "name", str, what="results.outputs")
        if name not in declared:
            raise FormatError(f"results.outputs holds {name[:64]!r}, which the job does not declare")
        size = natural(item, "size", what=f"output {name}", most=declared[name].max_bytes)
        parse_hex(item.get("sha256"), 32, what=f"output {name}: sha256")
        outputs.append((name, size, str(item["sha256"])))
    refused = []
    for item in typed(answer, "refused", list, what=what):
        if not isinstance(item, dict):
            raise FormatError(f"results.refused holds a {type(item).__name__}; an object is required")
        name = typed(item, "name", str, what=what)
        refused.append((name if name in declared else name[:160], typed(item, "reason", str, what=what)[:400]))
    _account_for(declared, [name for name, _, _ in outputs], [name for name, _ in refused])
    log = typed(answer, "log", dict, what=what)
    parse_hex(log.get("sha256"), 32, what="results.log.sha256")
    return Outcome(
        exit_code=natural(answer, "exit_code", what=what, most=255),
        cause=typed(answer, "cause", str, what=what)[:32],
        outputs=tuple(outputs),
        refused=tuple(refused),
        log_size=natural(log, "size", what="results.log"),
        log_sha256=str(log["sha256"]),
        receipt=canonical_json(typed(answer, "receipt", dict, what=what)),
    )


def _account_for(declared: Mapping[str, Output], delivered: list[str], refused: list[str]) -> None:
    """Check that every declared output is delivered or refused, once. (A refusal may also name what was not declared.)"""
    for name in declared:
        times = delivered.count(name) + refused.count(name)
        if times != 1:
            raise FormatError(f"results names the declared output {name!r} {times} times; once is required")


def check_room(folder: Path, manifest: JobManifest, reporter: Reporter) -> None:
    """See before a long run whether its results will have a place.

    Raises:
        ConfigError: the folder cannot be made or written.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.access(path, os.F_OK))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(
            f"results cannot be written to {folder}: {there} is not a directory of yours", hint="--results DIR"
        )
    most = min(sum(output.max_bytes for output in manifest.outputs), manifest.limits.outputs_mib << 20)
    free = shutil.disk_usage(there).free
    if free < most:
        reporter.notice(f"{folder} has room for {free >> 20} MiB; the job may bring home {most >> 20} MiB")


def bring_home(
    channel: AgentChannel, outcome: Outcome, folder: Path, *, rescue: Path, reporter: Reporter
) -> tuple[Path, tuple[Fetched, ...]]:
    """Fetch every output into `folder`, or into `rescue` where that cannot take them: the guest ends with the run.

    Returns:
        The directory that was used, and the outputs.

    Raises:
        VerificationError, ConfigError, HostError: as `fetch_outputs`.
    """
    try:
        return folder, fetch_outputs(channel, outcome, folder, reporter)
    except ConfigError as error:
        reporter.notice(f"{error.message} ({error.detail}); the outputs go to {rescue} instead")
        return rescue, fetch_outputs(channel, outcome, rescue, reporter)


def fetch_outputs(channel: AgentChannel, outcome: Outcome, folder: Path, reporter: Reporter) -> tuple[Fetched, ...]:
    """Fetch every output into `folder`.

    Raises:
        VerificationError: what arrived is not what the guest announced.
        ConfigError: the folder cannot be written.
        HostError: the connection broke; what is complete stays, what is not has no name yet.
    """
    total = sum(size for _, size, _ in outcome.outputs)
    done = 0
    fetched = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made", detail=str(error)) from error
    for name, size, sha256 in outcome.outputs:
        # A declared name is a relative path of plain names (formats/job.py), so it stays below the folder.
        path = folder / name

        def progress(received: int, before: int = done) -> None:
            reporter.progress(before + received, total)

        try:
            _fetch(channel, path, (name, size, sha256), progress)
        except OSError as error:
            raise ConfigError(f"output {path} cannot be written", detail=str(error)) from error
        done += size
        fetched.append(Fetched(name=name, path=path, size=size, sha256=sha256))
    return tuple(fetched)


def _fetch(channel: AgentChannel, path: Path, announced: tuple[str, int, str], progress: Callable[[int], None]) -> None:
    name, size, sha256 = announced
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    digest = hashlib.sha256()
    received = 0
    try:
        with part.open("wb") as file:
            for piece in channel.stream(Op.FETCH, name=name, offset=0):
                received += len(piece)
                if received > size:
                    raise VerificationError(f"output {name} is longer than the {size} bytes that were announced")
                digest.update(piece)
                file.write(piece)
                progress(received)
            file.flush()
            os.fsync(file.fileno())
        if received != size or digest.hexdigest() != sha256:
            raise VerificationError(
                f"output {name} is {received} bytes of sha256:{digest.hexdigest()}; "
                f"{size} bytes of sha256:{sha256} were announced"
            )
        part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
