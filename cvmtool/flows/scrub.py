# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""From a source in clear to a pack of what a scrubbing pipeline leaves of it: nothing in between stands on a disk in clear.

Zone: flows (owner's machine).
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from cvmtool.data.pack import TarSource, make_pack
from cvmtool.data.presidio import finders
from cvmtool.data.scrub import Scrubbing
from cvmtool.data.sealed import Progress
from cvmtool.errors import ConfigError
from cvmtool.flows.packfile import PROGRAM, is_pack, refuse_existing, write_header
from cvmtool.formats.pack import Role
from cvmtool.formats.packheader import Action, Content, ContentKind, Metadata, PackHeader, Step, moment
from cvmtool.formats.scrubbing import Pipeline, Report
from cvmtool.owner.keystore import OwnerKeys
from cvmtool.owner.scrubfile import parse_pipeline


def read_pipeline(path: Path) -> Pipeline:
    """Read a file with a pipeline.

    Raises:
        ConfigError: it cannot be read or holds none.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read", detail=str(error)) from error
    try:
        return parse_pipeline(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", detail=error.detail, hint=error.hint) from error


def look_through(
    source: Path, pipeline: Pipeline, *, keys: OwnerKeys, progress: Progress = lambda _done, _all: None
) -> Report:
    """Say what a pipeline would change, and keep nothing.

    Raises:
        FormatError, ConfigError: as `scrub_to_file`.
    """
    return _scrubbing(source, pipeline, keys, progress).look()


def scrub_to_file(
    source: Path,
    pipeline: Pipeline,
    out: Path,
    *,
    name: str,
    metadata: Metadata,
    keys: OwnerKeys,
    force: bool = False,
    progress: Progress = lambda _done, _all: None,
) -> tuple[PackHeader, Report]:
    """Seal what a pipeline leaves of `source` into the file `out`, with its signed header beside it.

    Raises:
        ConfigError: the source cannot be read, has what the pipeline does not name, or lacks what it names; `out` exists.
        FormatError: a file does not follow its format, or a rule refuses something in it.
    """
    refuse_existing(out, force=force)
    scrubbing = _scrubbing(source, pipeline, keys, progress)
    descriptor = make_pack(
        TarSource(pieces=scrubbing.tar(out.parent)),
        out,
        name=name,
        role=Role.INPUT,
        passphrase_for=keys.pack_passphrase,
    )
    report = scrubbing.report
    at = moment(datetime.now(UTC))
    scrubbed = Step(action=Action.SCRUBBED, at=at, by=PROGRAM, pipeline=pipeline.digest, counts=report.counts)
    steps = (scrubbed, Step(action=Action.PACKED, at=at, by=PROGRAM))
    content = Content(kind=ContentKind.TREE, digest=report.digest)
    return write_header(out, descriptor, content, metadata, steps, keys=keys), report


def _scrubbing(source: Path, pipeline: Pipeline, keys: OwnerKeys, progress: Progress) -> Scrubbing:
    if is_pack(source):
        raise ConfigError(f"{source} is a pack; a source in clear is required", hint=f"cvmtool data open {source}")
    return Scrubbing(
        source,
        pipeline,
        keys.scrub_key(pipeline.key),
        recogniser=lru_cache(finders),
        progress=progress,
    )
