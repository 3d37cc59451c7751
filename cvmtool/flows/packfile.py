# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Packs as files of their owner: made, shown, checked, sealed anew, opened. Beside each stands its signed header.

Zone: flows (owner's machine). `FILE` is the pack, `FILE.json` the header; a host gets the first, and never sees the second.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cvmtool import __version__
from cvmtool.config import Settings, write_atomic
from cvmtool.data.model import check_model
from cvmtool.data.oci import OciImage
from cvmtool.data.opening import extract_pack, reseal_pack
from cvmtool.data.pack import TarSource, TreeSource, make_pack
from cvmtool.data.sealed import Progress, verify_pack
from cvmtool.errors import ConfigError, VerificationError
from cvmtool.flows.packs import CONTAINER, SealedPack, encode_descriptor, read_descriptor, seal_tree, tree_digest
from cvmtool.formats.pack import PackDescriptor, Role
from cvmtool.formats.packheader import (
    MAX_HEADER,
    SCHEMA,
    Action,
    Content,
    ContentKind,
    Metadata,
    PackHeader,
    Step,
    encode_header,
    moment,
    parse_metadata,
    parse_pack_header,
)
from cvmtool.formats.wire import parse_json
from cvmtool.owner.keystore import OwnerKeys
from cvmtool.owner.packsign import sign_header, verify_header
from cvmtool.owner.toml import load_table

PROGRAM = f"cvmtool {__version__}"
_LUKS = b"LUKS\xba\xbe"
_METADATA_TEXTS = ("owner", "sensitivity", "origin", "handling", "licence")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackFile:
    """A pack, and what its owner says of it: nothing, if an older version made it."""

    path: Path
    descriptor: PackDescriptor
    header: PackHeader | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is packed: a directory or file, or an OCI image by reference and digest."""

    reference: str
    kind: ContentKind
    digest: str | None = None


def pack_to_file(
    source: Source,
    out: Path,
    *,
    name: str,
    metadata: Metadata,
    made_from: Sequence[PackHeader] = (),
    keys: OwnerKeys,
    force: bool = False,
    progress: Progress = lambda _done, _all: None,
) -> PackHeader:
    """Seal a source into the file `out`, with its signed header beside it.

    Raises:
        ConfigError: the source cannot be read or is not of its kind, or `out` exists and is not to be replaced.
        FormatError: a model or an image does not follow its format.
        VerificationError: the image is not the one of `digest`.
    """
    refuse_existing(out, force=force)
    opened, content = _open_source(source)
    role = Role.CONTAINER if source.kind is ContentKind.CONTAINER else Role.INPUT
    descriptor = make_pack(opened, out, name=name, role=role, passphrase_for=keys.pack_passphrase, progress=progress)
    step = Step(
        action=Action.PACKED, at=moment(datetime.now(UTC)), by=PROGRAM, sources=tuple(made.source for made in made_from)
    )
    return write_header(out, descriptor, content, metadata, (step,), keys=keys)


def write_header(
    out: Path,
    descriptor: PackDescriptor,
    content: Content,
    metadata: Metadata,
    lineage: tuple[Step, ...],
    *,
    keys: OwnerKeys,
) -> PackHeader:
    """Sign what is said of the pack `out` and write it beside the pack."""
    said = replace(metadata, created=metadata.created or lineage[-1].at)
    header = PackHeader(
        pack=descriptor, content=content, metadata=said, lineage=lineage, owner_key=keys.public.hex(), signature=""
    )
    signed = sign_header(header, keys)
    write_atomic(sidecar_of(out), encode_header(signed))
    return signed


def read_pack(path: Path) -> PackFile:
    """Read what stands beside a pack, and verify its signature; the pack itself is measured for its size alone.

    Raises:
        ConfigError: there is no pack, or nothing beside it.
        FormatError: what stands beside it is no header.
        VerificationError: the header is not signed by the key that it names, or the pack has another size.
    """
    sidecar = sidecar_of(path)
    try:
        size = path.stat().st_size
        with sidecar.open("rb") as file:
            data = file.read(MAX_HEADER + 1)
        if parse_json(data, what=str(sidecar), limit=MAX_HEADER).get("schema") == SCHEMA:
            header = parse_pack_header(data)
            verify_header(header)
            found = PackFile(path=path, descriptor=header.pack, header=header)
        else:
            found = PackFile(path=path, descriptor=read_descriptor(sidecar), header=None)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read, or its header {sidecar}", detail=str(error)) from error
    if size != found.descriptor.size:
        raise VerificationError(f"pack {path} has {size} bytes; {found.descriptor.size} are required")
    return found


def check_pack(path: Path, *, progress: Progress = lambda _done, _all: None) -> PackFile:
    """Check every block of a pack, and the signature of what is said of it.

    Raises:
        ConfigError: it cannot be read.
        VerificationError: the pack is not the one described, or the description not signed.
    """
    found = read_pack(path)
    try:
        verify_pack(path, found.descriptor, progress=progress)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read", detail=str(error)) from error
    return found


def rekey_pack(path: Path, *, keys: OwnerKeys, progress: Progress = lambda _done, _all: None) -> PackFile:
    """Seal a pack anew in its place: another volume key, another passphrase. The old one stays until the new one is whole.

    Raises:
        ConfigError: a file cannot be read or written, or an earlier try was interrupted.
        VerificationError: the pack is not the one described, or another owner's.
    """
    found = _own(read_pack(path), keys)
    new, old = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new"), path.with_name(path.name + ".old")
    if old.exists() or sidecar_of(old).exists():
        raise ConfigError(
            f"{old} is left of a rekey that was interrupted",
            hint=f"cvmtool data verify {path}; if that holds, remove {old} and {sidecar_of(old)}, else move them back",
        )
    try:
        descriptor = reseal_pack(path, found.descriptor, new, passphrase_for=keys.pack_passphrase, progress=progress)
        header = _rekeyed(found.header, descriptor, keys) if found.header else None
        # Two files cannot be replaced at once: until both are, the old pair stands whole under names of its own.
        old.hardlink_to(path)
        sidecar_of(old).hardlink_to(sidecar_of(path))
        write_atomic(sidecar_of(path), encode_header(header) if header else encode_descriptor(descriptor))
        new.replace(path)
        old.unlink()
        sidecar_of(old).unlink()
    except OSError as error:
        raise ConfigError(f"pack {path} cannot be replaced", detail=str(error)) from error
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)
    return PackFile(path=path, descriptor=descriptor, header=header)


def open_pack(
    path: Path, target: Path, *, keys: OwnerKeys, progress: Progress = lambda _done, _all: None
) -> tuple[PackFile, bool]:
    """Write a pack's files in clear to the new directory `target`; return the pack, and whether no image touched a disk.

    Raises:
        ConfigError: `target` exists, or a file cannot be read or written.
        VerificationError: the pack is not the one described, or another owner's.
    """
    if os.path.lexists(target):
        raise ConfigError(f"{target} exists; a new directory is required", hint="name another one with --out")
    found = _own(read_pack(path), keys)
    passphrase = keys.pack_passphrase(found.descriptor.luks_uuid)
    return found, extract_pack(path, found.descriptor, target, passphrase=passphrase, progress=progress)


def is_pack(path: Path) -> bool:
    """Whether a file is a pack, by its first bytes."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(_LUKS)) == _LUKS
    except OSError:
        return False  # who seals it says what is wrong


def seal_input(
    path: Path,
    name: str,
    *,
    settings: Settings,
    keys: OwnerKeys,
    progress: Progress,
    parties: Collection[str] = (),
) -> SealedPack:
    """Take a pack as the input `name` of a job, as it is; seal a directory or any other file, or find it sealed.

    `parties`: keys (as hex) of other owners who release their packs themselves.

    Raises:
        ConfigError: it cannot be read, or is a container's.
        VerificationError: it is the pack of somebody else, whose key nobody here can release, or not the one described.
    """
    if not is_pack(path):
        return seal_tree(path, name, settings=settings, keys=keys, progress=progress)
    found = _own(read_pack(path), keys, parties)
    if found.descriptor.role is not Role.INPUT:
        raise ConfigError(f"pack {path} is a {found.descriptor.role.value}; an input is required")
    return SealedPack(
        descriptor=replace(found.descriptor, name=name), path=path.resolve(), reused=True, header=found.header
    )


def take_container(path: Path, digest: str, *, keys: OwnerKeys, parties: Collection[str] = ()) -> SealedPack:
    """Take a pack as a job's container: who signed its header says that it holds the image with this manifest digest.

    Raises:
        ConfigError: it cannot be read, or is no container's.
        VerificationError: it is the pack of somebody else than us and `parties`, or of another image.
    """
    found = _own(read_pack(path), keys, parties)
    content = found.header.content if found.header else None
    if content is None or content.kind is not ContentKind.CONTAINER:
        raise ConfigError(
            f"pack {path} is of no container", hint="cvmtool data pack oci-archive:FILE --digest ... makes one"
        )
    if content.digest != digest:
        raise VerificationError(f"pack {path} is of the image {content.digest}; the job's, {digest}, is required")
    return SealedPack(
        descriptor=replace(found.descriptor, name=CONTAINER), path=path.resolve(), reused=True, header=found.header
    )


def read_metadata(path: Path | None, options: dict[str, str]) -> Metadata:
    """Merge what a TOML file and options say of a pack; an option wins.

    Raises:
        ConfigError: the file cannot be read or says something else.
        FormatError: an entry is none.
    """
    said: dict[str, str] = {}
    if path is not None:
        try:
            table = load_table(path.read_text("utf-8"), "metadata")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read", detail=str(error)) from error
        said = {key: table.text(key) for key in _METADATA_TEXTS if table.has(key)}
        if table.has("created"):
            said["created"] = moment(table.moment("created"))
        table.finish()
    return parse_metadata(said | options)


def sidecar_of(pack: Path) -> Path:
    """Return where the header of a pack stands."""
    return pack.with_name(pack.name + ".json")


def refuse_existing(out: Path, *, force: bool) -> None:
    """Raise ConfigError if a pack or its header is there already and may not be replaced."""
    for path in (out, sidecar_of(out)):
        if os.path.lexists(path) and not force:
            raise ConfigError(f"{path} exists; it is not replaced", hint="name another --out, or say --force")
    if out.is_dir():
        raise ConfigError(f"{out} is a directory; the name of a pack file is required", hint=f"--out {out}/NAME.pack")


def _open_source(source: Source) -> tuple[TreeSource | TarSource, Content]:
    if source.kind is ContentKind.CONTAINER:
        if source.digest is None:
            raise ConfigError(
                f"the digest of {source.reference} is missing; an image is pinned by that of its manifest",
                hint="--digest sha256:...; skopeo inspect --format '{{.Digest}}' shows it",
            )
        image = OciImage(source.reference, source.digest, base=Path.cwd())
        return TarSource(pieces=image.rootfs()), Content(kind=source.kind, digest=image.digest)
    path = Path(source.reference)
    if not path.exists():
        raise ConfigError(
            f"{path} does not exist", hint="name a directory, a file, oci:DIR or oci-archive:FILE before --out"
        )
    if is_pack(path):
        raise ConfigError(f"{path} is a pack already", hint=f"cvmtool data show {path}")
    if source.kind is ContentKind.MODEL:
        check_model(path)
    return TreeSource(path=path), Content(kind=source.kind, digest=f"sha256:{tree_digest(path).hex()}")


def _own(pack: PackFile, keys: OwnerKeys, others: Collection[str] = ()) -> PackFile:
    if pack.header is not None and pack.header.owner_key not in {keys.public.hex(), *others}:
        raise VerificationError(
            f"pack {pack.path} is signed by the key {pack.header.owner_key[:16]}...; "
            f"yours, {keys.public.hex()[:16]}..., is required",
            hint="only the owner who made a pack can open it; a job takes packs of the owners under its parties:, too",
        )
    return pack


def _rekeyed(header: PackHeader, descriptor: PackDescriptor, keys: OwnerKeys) -> PackHeader:
    step = Step(action=Action.REKEYED, at=moment(datetime.now(UTC)), by=PROGRAM, sources=(header.source,))
    made = tuple(step for step in header.lineage if step.action is not Action.REKEYED)
    return sign_header(replace(header, pack=descriptor, lineage=(*made, step)), keys)
