# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Packs by content: what was sealed once is not sealed again.

Zone: flows (owner's machine). A pack is found by the digest of its source and of the owner's key.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cvmtool.config import Settings, private_dir, write_atomic
from cvmtool.data.oci import OciImage
from cvmtool.data.pack import TarSource, TreeSource, make_pack
from cvmtool.data.sealed import Progress
from cvmtool.errors import ConfigError, FormatError
from cvmtool.formats.pack import PackDescriptor, Role, parse_pack_descriptor
from cvmtool.formats.packheader import PackHeader, tree_content
from cvmtool.formats.wire import lp, parse_json
from cvmtool.owner.keystore import OwnerKeys

CONTAINER = "container"
"""What the pack of a job's container is called."""
PACK_FILE = "pack.img"
DESCRIPTOR_FILE = "pack.json"
_LABEL = b"cvmtool/v1/pack-source"
MAX_DESCRIPTOR = 65_536  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedPack:
    """A pack and where it is."""

    descriptor: PackDescriptor
    path: Path
    reused: bool
    header: PackHeader | None = None
    """What its owner says of it; None if it was sealed for a job alone."""


def seal_tree(path: Path, name: str, *, settings: Settings, keys: OwnerKeys, progress: Progress) -> SealedPack:
    """Seal a directory or file as the input `name`, or find it sealed.

    Raises:
        ConfigError: it cannot be read.
    """
    source = lp(b"tree", tree_digest(path))
    return _seal(
        source,
        name,
        role=Role.INPUT,
        settings=settings,
        keys=keys,
        open_source=lambda: TreeSource(path=path),
        progress=progress,
    )


def seal_container(image: OciImage, *, settings: Settings, keys: OwnerKeys, progress: Progress) -> SealedPack:
    """Seal a container image's root file system, or find it sealed."""
    source = lp(b"container", image.digest.encode("ascii"))
    return _seal(
        source,
        CONTAINER,
        role=Role.CONTAINER,
        settings=settings,
        keys=keys,
        open_source=lambda: TarSource(pieces=image.rootfs()),
        progress=progress,
    )


def find_tree(path: Path, name: str, *, settings: Settings, keys: OwnerKeys) -> SealedPack | None:
    """Find a directory or file sealed as an input; every byte of it is read, to know what it is.

    Raises:
        ConfigError: it cannot be read.
    """
    folder = _folder(lp(b"tree", tree_digest(path)), settings, keys)
    return _kept(folder, name, Role.INPUT)


def find_container(image: OciImage, *, settings: Settings, keys: OwnerKeys) -> SealedPack | None:
    """Find a container image's root file system sealed."""
    folder = _folder(lp(b"container", image.digest.encode("ascii")), settings, keys)
    return _kept(folder, "container", Role.CONTAINER)


def _folder(source: bytes, settings: Settings, keys: OwnerKeys) -> Path:
    return settings.packs_dir / hashlib.sha256(lp(_LABEL, keys.public, source)).hexdigest()[:32]


def _kept(folder: Path, name: str, role: Role) -> SealedPack | None:
    """Return the pack of a folder; None if it was never sealed, or its sealing was interrupted."""
    image = folder / PACK_FILE
    try:
        kept = read_descriptor(folder / DESCRIPTOR_FILE)
        if image.stat().st_size == kept.size:
            return SealedPack(descriptor=replace(kept, name=name, role=role), path=image, reused=True)
    except (OSError, FormatError):
        pass
    return None


def _seal(
    source: bytes,
    name: str,
    *,
    role: Role,
    settings: Settings,
    keys: OwnerKeys,
    open_source: Callable[[], TreeSource | TarSource],
    progress: Progress,
) -> SealedPack:
    private_dir(settings.packs_dir)
    folder = private_dir(_folder(source, settings, keys))
    kept = _kept(folder, name, role)
    if kept is not None:
        return kept
    image = folder / PACK_FILE
    descriptor = make_pack(
        open_source(), image, name=name, role=role, passphrase_for=keys.pack_passphrase, progress=progress
    )
    write_atomic(folder / DESCRIPTOR_FILE, encode_descriptor(descriptor))
    return SealedPack(descriptor=descriptor, path=image, reused=False)


def encode_descriptor(descriptor: PackDescriptor) -> bytes:
    """Return a descriptor as the JSON file that stands beside its pack."""
    return (
        json.dumps({"schema": "cvmtool/pack/v1", **descriptor.to_json()}, indent=1, sort_keys=True).encode("utf-8")
        + b"\n"
    )


def read_descriptor(path: Path) -> PackDescriptor:
    """Read the JSON file beside a pack.

    Raises:
        FormatError: it is not one.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        value = parse_json(file.read(MAX_DESCRIPTOR + 1), what=str(path), limit=MAX_DESCRIPTOR)
    if value.pop("schema", None) != "cvmtool/pack/v1":
        raise FormatError(f"{path}: schema is not cvmtool/pack/v1")
    return parse_pack_descriptor(value)


def tree_digest(path: Path) -> bytes:
    """Return the SHA-256 of a tree: every path, kind, executable bit and content, in order of their names.

    Raises:
        ConfigError: something in it is neither file, directory nor link, or cannot be read.
    """
    if not path.exists():
        raise ConfigError(f"{path} does not exist", hint="check the paths under inputs: in the job file")
    if path.is_symlink() and not path.is_dir():
        raise ConfigError(f"{path} is a link to a file", hint=f"name the file itself: {path.resolve()}")
    contents = []
    for entry in _below(path) if path.is_dir() else [path]:
        name = os.fsencode(entry.relative_to(path) if entry != path else Path(entry.name))
        try:
            if entry.is_symlink():
                kind, content = b"l", os.fsencode(entry.readlink())
            elif entry.is_dir():
                kind, content = b"d", b""
            elif entry.is_file():
                kind = b"x" if entry.stat().st_mode & 0o111 else b"f"
                with entry.open("rb") as file:
                    content = hashlib.file_digest(file, "sha256").digest()
            else:
                raise ConfigError(f"{entry} is neither a file nor a directory nor a link")
        except OSError as error:
            raise ConfigError(f"{entry} cannot be read", detail=str(error)) from error
        contents.append((kind, name, content))
    if not contents:
        raise ConfigError(f"{path} is empty; an input needs at least one file")
    return tree_content(contents)


def _below(folder: Path) -> Iterator[Path]:
    """Yield what is below a directory, links not followed. Path.rglob would pass over a directory that cannot be read."""
    try:
        with os.scandir(folder) as entries:
            found = [(Path(entry.path), entry.is_dir(follow_symlinks=False)) for entry in entries]
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read", detail=str(error)) from error
    for path, is_dir in found:
        yield path
        if is_dir:
            yield from _below(path)
