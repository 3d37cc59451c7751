# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Bring the declared outputs home: streamed, capped, checked against their digests, whole or not at all.

Zone: flows. Names, sizes and digests come from the guest; the caps and the list of names are the owner's manifest.
A connection that is cut leaves a part, which the next one goes on with: the guest sends the same bytes again from any offset.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cvmtool.errors import ConfigError, FormatError, VerificationError
from cvmtool.flows.reporter import Reporter
from cvmtool.formats.age import SUFFIX, sealed_size
from cvmtool.formats.control import Op
from cvmtool.formats.job import MAX_FILES, JobManifest, OutputKind, refuse_clash
from cvmtool.formats.wire import JsonObject, canonical_json, natural, parse_hex, typed
from cvmtool.host.channel import AgentChannel

_LONGEST_NAME = 1_100  # characters: a declared one has fewer


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """Bytes that the guest announced."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """An output that the guest has ready, allowed by the manifest and within its caps."""

    name: str
    size: int
    sha256: str
    sealed: Content | None
    """The age file as which it leaves, if the job has recipients."""

    @property
    def leaving(self) -> Content:
        """What is fetched."""
        return self.sealed or Content(size=self.size, sha256=self.sha256)

    @property
    def file(self) -> str:
        """Its path below the results: for an age file with that ending."""
        return self.name + SUFFIX if self.sealed else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """An output that came home."""

    name: str
    path: Path
    size: int
    sha256: str
    sealed: Content | None
    """What is at `path`, if that is an age file; size and digest above are always the content's, as in the receipt."""

    def to_json(self) -> JsonObject:
        """Return the row of `cvmtool/train/v1`."""
        row: JsonObject = {"name": self.name, "path": str(self.path), "size": self.size, "sha256": self.sha256}
        return row | {"sealed": asdict(self.sealed) if self.sealed else None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the guest says about the end of a job."""

    exit_code: int
    cause: str
    """exited, timeout, memory or runtime."""
    outputs: tuple[Announced, ...]
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
    listed = [_object(item, "results.outputs") for item in typed(answer, "outputs", list, what=what)]
    outputs = tuple(_announced(item, manifest) for item in listed)
    refused = []
    for item in typed(answer, "refused", list, what=what):
        name = typed(_object(item, "results.refused"), "name", str, what=what)
        refused.append((name[:_LONGEST_NAME], typed(item, "reason", str, what=what)[:400]))
    _account_for(manifest, [output.name for output in outputs], [name for name, _ in refused])
    _check_sums(manifest, outputs)
    log = typed(answer, "log", dict, what=what)
    parse_hex(log.get("sha256"), 32, what="results.log.sha256")
    return Outcome(
        exit_code=natural(answer, "exit_code", what=what, most=255),
        cause=typed(answer, "cause", str, what=what)[:32],
        outputs=outputs,
        refused=tuple(refused),
        log_size=natural(log, "size", what="results.log"),
        log_sha256=str(log["sha256"]),
        receipt=canonical_json(typed(answer, "receipt", dict, what=what)),
    )


def _object(item: object, what: str) -> JsonObject:
    if not isinstance(item, dict):
        raise FormatError(f"{what} holds a {type(item).__name__}; an object is required")
    return item


def _announced(item: JsonObject, manifest: JobManifest) -> Announced:
    name = typed(item, "name", str, what="results.outputs")
    allowed = manifest.allowing(name)
    if allowed is None:
        raise FormatError(f"results.outputs holds {name[:64]!r}, which the job does not declare")
    content = _content(item, f"output {name}", most=allowed.max_bytes)
    sealed = None
    if manifest.recipients:
        sealed = _content(typed(item, "sealed", dict, what=f"output {name}"), f"sealed output {name}")
        required = sealed_size(content.size, len(manifest.recipients))
        if sealed.size != required:
            raise FormatError(f"sealed output {name} has {sealed.size} bytes; {required} are required")
    elif "sealed" in item:
        raise FormatError(f"output {name} is sealed; the job names no recipients")
    return Announced(name=name, size=content.size, sha256=content.sha256, sealed=sealed)


def _content(item: JsonObject, what: str, *, most: int = (1 << 63) - 1) -> Content:
    digest = parse_hex(item.get("sha256"), 32, what=f"{what}: sha256").hex()
    return Content(size=natural(item, "size", what=what, most=most), sha256=digest)


def _account_for(manifest: JobManifest, delivered: list[str], refused: list[str]) -> None:
    """Check that every declared output is delivered or refused, once, and of a directory at least one file or the whole.

    (A refusal may also name what was not declared.)
    """
    times = Counter(delivered) + Counter(refused)
    for output in manifest.outputs:
        if output.kind is OutputKind.DIRECTORY:
            below = any(name.startswith(f"{output.name}/") for name in times)
            if times[output.name] + below != 1:
                raise FormatError(
                    f"results names the declared directory {output.name!r} and files below it, or neither"
                )
        elif times[output.name] != 1:
            raise FormatError(
                f"results names the declared output {output.name!r} {times[output.name]} times; once is required"
            )
    twice = next((name for name in delivered if times[name] > 1), None)
    if twice is not None:
        raise FormatError(f"results names the output {twice!r} {times[twice]} times; once is required")
    refuse_clash(delivered, what="results.outputs")


def _check_sums(manifest: JobManifest, outputs: tuple[Announced, ...]) -> None:
    """Check how much leaves: of each directory, and in all."""
    sums = [
        (
            f"directory {declared.name}",
            declared.max_bytes,
            [o.size for o in outputs if o.name.startswith(declared.name + "/")],
        )
        for declared in manifest.outputs
        if declared.kind is OutputKind.DIRECTORY
    ]
    for what, most, sizes in (
        *sums,
        ("results", manifest.limits.outputs_mib << 20, [output.size for output in outputs]),
    ):
        if sum(sizes) > most:
            raise FormatError(f"{what} has {sum(sizes)} bytes; at most {most} are allowed")
    if len(outputs) > MAX_FILES:
        raise FormatError(f"results has {len(outputs)} outputs; at most {MAX_FILES} are allowed")


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
    """Fetch every output into `folder`; what is there already, whole or in part, is not fetched again.

    Raises:
        VerificationError: what arrived is not what the guest announced.
        ConfigError: the folder cannot be written.
        HostError: the connection broke; what is complete stays, what is not waits in a hidden part.
    """
    total = sum(output.leaving.size for output in outcome.outputs)
    done = 0
    fetched = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made", detail=str(error)) from error
    for output in outcome.outputs:
        # A name that the manifest allows is a relative path of plain names (formats/job.py), so it stays below the folder.
        path = folder / output.file

        def progress(received: int, before: int = done) -> None:
            reporter.progress(before + received, total)

        try:
            if _is_there(path, output.leaving):
                progress(output.leaving.size)
            else:
                _fetch(channel, path, output, progress)
        except OSError as error:
            raise ConfigError(f"output {path} cannot be written", detail=str(error)) from error
        done += output.leaving.size
        fetched.append(
            Fetched(name=output.name, path=path, size=output.size, sha256=output.sha256, sealed=output.sealed)
        )
    return tuple(fetched)


def _is_there(path: Path, content: Content) -> bool:
    if not path.is_file() or path.is_symlink() or path.stat().st_size != content.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == content.sha256


def _fetch(channel: AgentChannel, path: Path, output: Announced, progress: Callable[[int], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # By its digest: a guest that was started again seals anew, and may have made something else.
    part = path.with_name(f".{path.name[:128]}.{output.leaving.sha256[:16]}.part")
    goes_on = part.is_file() and not part.is_symlink() and part.stat().st_size <= output.leaving.size
    try:
        wrong = _go_on(channel, part, output, progress) if goes_on else "there was nothing"
        if wrong is not None:  # or this machine lost some of it since: once more from the beginning
            part.unlink(missing_ok=True)
            wrong = _go_on(channel, part, output, progress)
        if wrong is None:
            part.replace(path)
            return
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    part.unlink()
    raise VerificationError(wrong)


def _go_on(channel: AgentChannel, part: Path, output: Announced, progress: Callable[[int], None]) -> str | None:
    """Fetch what `part` lacks; return what is wrong with the whole, None if nothing is."""
    required = output.leaving
    with part.open("a+b") as file:
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256")
        received = file.tell()
        for piece in channel.stream(Op.FETCH, name=output.name, offset=received):
            received += len(piece)
            if received > required.size:
                return f"output {output.name} is longer than the {required.size} bytes that were announced"
            digest.update(piece)
            file.write(piece)
            progress(received)
        file.flush()
        os.fsync(file.fileno())
    if (received, digest.hexdigest()) == (required.size, required.sha256):
        return None
    return (
        f"output {output.name} is {received} bytes of sha256:{digest.hexdigest()}; "
        f"{required.size} bytes of sha256:{required.sha256} were announced"
    )
