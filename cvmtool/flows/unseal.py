# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Open results that were sealed to recipients: whole or not at all.

Zone: flows (a recipient's machine). Needs no host, and no job's record: the files came from whoever ran the job.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cvmtool.errors import ConfigError, CvmError
from cvmtool.formats.age import SUFFIX
from cvmtool.formats.wire import JsonObject
from cvmtool.owner.age import Identity, parse_identities
from cvmtool.owner.ageopen import open_age

_MAX_IDENTITIES = 1 << 20  # bytes of an identity file


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsealed:
    """A file that was opened."""

    source: Path
    path: Path
    size: int
    sha256: str

    def to_json(self) -> JsonObject:
        """Return the row of `cvmtool/unseal/v1`."""
        return {"source": str(self.source), "path": str(self.path), "size": self.size, "sha256": self.sha256}


def read_identities(path: Path) -> list[Identity]:
    """Read an identity file.

    Raises:
        ConfigError: it cannot be read.
        FormatError: it is none.
    """
    try:
        with path.open("rb") as file:
            return parse_identities(file.read(_MAX_IDENTITIES).decode("utf-8", "replace"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read", detail=str(error)) from error


def unseal(
    source: Path, out: Path | None, identities: list[Identity], *, step: Callable[[str], None]
) -> tuple[Unsealed, ...]:
    """Open an age file, or every one below a directory, into `out`; None means beside each.

    Raises:
        ConfigError: there is none, or a file cannot be read or written, or is there already.
        FormatError: a file is no age file.
        VerificationError: a file is sealed to others, or was changed or cut short.
    """
    found = sorted(source.rglob(f"*{SUFFIX}")) if source.is_dir() else [source]
    if not found:
        raise ConfigError(
            f"{source} holds no file that ends in {SUFFIX}", hint="results that are not sealed need no key"
        )
    base = source if source.is_dir() else source.parent
    opened = []
    for path in found:
        target = (out or base) / path.relative_to(base).with_suffix("" if path.suffix == SUFFIX else ".opened")
        step(str(target))
        opened.append(_unseal(path, target, identities))
    return tuple(opened)


def _unseal(source: Path, target: Path, identities: list[Identity]) -> Unsealed:
    if os.path.lexists(target):
        raise ConfigError(f"{target} exists; it is not replaced", hint="name another --out")
    part = target.with_name(f".{target.name}.part")
    digest, size = hashlib.sha256(), 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as file, part.open("wb") as clear:
            for piece in _said_of(source, open_age(file.read, identities)):
                digest.update(piece)
                size += clear.write(piece)
            clear.flush()
            os.fsync(clear.fileno())
        part.replace(target)
    except OSError as error:
        raise ConfigError(f"{source} cannot be opened into {target}", detail=str(error)) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return Unsealed(source=source, path=target, size=size, sha256=digest.hexdigest())


def _said_of(source: Path, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Pass on what is opened; a refusal names the file."""
    try:
        yield from pieces
    except CvmError as error:
        error.message = f"{source}: {error.message}"
        raise
