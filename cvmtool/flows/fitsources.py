# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What a job would seal: how large it becomes, what of it is sealed already, and how fast this machine seals.

Zone: flows (owner's machine). Reads inputs, writes nothing of them.
"""

from __future__ import annotations

import os
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cvmtool.config import Settings, private_dir
from cvmtool.data.oci import OciImage
from cvmtool.data.pack import TreeSource, make_pack
from cvmtool.errors import ConfigError, FormatError
from cvmtool.flows.packfile import is_pack, seal_input, take_container
from cvmtool.flows.packs import SealedPack, find_container, find_tree
from cvmtool.formats.pack import HEADER_SIZE, Role
from cvmtool.formats.safetensors import read_tensors
from cvmtool.owner.fit import Weights
from cvmtool.owner.jobfile import JobFile
from cvmtool.owner.keystore import OwnerKeys

_READ_WHOLE = 256 << 20  # bytes; hashing them takes a fraction of a second
_SAMPLES = 64
_SAMPLE = 128 << 10  # bytes: a block of squashfs
_BLOCKS_PER_DIGEST_BLOCK = 127  # a digest of 32 bytes for each block of 4096, and the levels above
_TRIAL = 32 << 20  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What a job would seal. Bytes."""

    kept: tuple[SealedPack, ...]
    """Sealed already, or brought as packs."""
    new: int
    """Of the packs that will be made, as far as can be said."""
    to_seal: int
    """Of the inputs that go into them."""
    weights: Weights


def survey_sources(job: JobFile, base: Path, *, settings: Settings, keys: OwnerKeys | None, thorough: bool) -> Sources:
    """Look at a job's container and inputs.

    Args:
        job: the job file.
        base: what its paths are relative to.
        settings: where packs are kept.
        keys: the owner's; None if there are none yet, so that nothing can have been sealed.
        thorough: read large inputs, too, to know whether they were sealed before.

    Raises:
        ConfigError: an input or the container cannot be read.
        FormatError, VerificationError: the container's layout is not what the job pins.
    """
    image = OciImage(job.container_image, job.container_digest, base=base)
    parties = job.parties.values()
    container = None
    if keys and job.container_pack:
        container = take_container(base / job.container_pack, image.digest, keys=keys, parties=parties)
    elif keys:
        container = find_container(image, settings=settings, keys=keys)
    kept, new, to_seal = ([container], 0, 0) if container else ([], pack_size(image.size), 0)
    weights = Weights()
    for name, source in job.inputs.items():
        path = base / source
        if is_pack(path):
            if keys is not None:
                sealed = seal_input(path, name, settings=settings, keys=keys, progress=_silent, parties=parties)
                kept.append(sealed)
            continue
        files = dict(_files(path))
        size = sum(files.values())
        weights = _added(weights, files)
        known = size <= _READ_WHOLE or thorough
        found = find_tree(path, name, settings=settings, keys=keys) if keys and known else None
        if found is not None:
            kept.append(found)
        else:
            new += pack_size(round(size * packed_share(files)))
            to_seal += size
    return Sources(kept=tuple(kept), new=new, to_seal=to_seal, weights=weights)


def _silent(_done: int, _all: int) -> None:
    """Take what a pack that is sealed already has to say of its progress: nothing."""


def pack_size(payload: int) -> int:
    """Return the bytes of a pack around a file system of so many."""
    sealed = HEADER_SIZE + payload
    return sealed + sealed // _BLOCKS_PER_DIGEST_BLOCK


def packed_share(files: dict[Path, int]) -> float:
    """Return what is left of some files (path -> size) when they are compressed, 0 to 1, from pieces at even distances."""
    whole = sum(files.values())
    if whole == 0:
        return 1.0
    distance = max(_SAMPLE, whole // _SAMPLES)
    read = left = passed = 0
    for path, size in files.items():
        # The places at multiples of `distance` in all files one behind the other.
        for at in range(-passed % distance, size, distance):
            with path.open("rb") as file:
                file.seek(at)
                piece = file.read(_SAMPLE)
            read += len(piece)
            left += min(len(piece), len(zlib.compress(piece, 1)))
        passed += size
    return left / read if read else 1.0


def sealing_rate(settings: Settings) -> float:
    """Seal 32 MiB of random bytes where packs are kept; return bytes a second.

    Raises:
        ConfigError: nothing can be written there, or a tool is missing.
    """
    with tempfile.TemporaryDirectory(dir=private_dir(settings.packs_dir), prefix=".trial-") as name:
        source = Path(name, "source")
        source.write_bytes(os.urandom(_TRIAL))
        begun = time.monotonic()
        make_pack(
            TreeSource(path=source),
            Path(name, "pack"),
            name="trial",
            role=Role.INPUT,
            passphrase_for=lambda _: os.urandom(32),
        )
        return _TRIAL / (time.monotonic() - begun)


def _files(path: Path) -> Iterator[tuple[Path, int]]:
    """Yield the regular files of an input with their sizes; what cannot be packed is refused by whoever packs it."""
    if not path.exists():
        raise ConfigError(f"{path} does not exist", hint="check the paths under inputs: in the job file")
    names = [path] if path.is_file() else (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    for name in names:
        with suppress(OSError):
            if name.is_file() and not name.is_symlink():
                yield name, name.stat().st_size


def _added(weights: Weights, files: dict[Path, int]) -> Weights:
    size, parameters = weights.size, weights.parameters
    for path, length in files.items():
        if path.suffix == ".safetensors":
            with suppress(OSError, FormatError), path.open("rb") as file:
                parameters += sum(read_tensors(file.read, length).values())
                size += length
    return Weights(size=size, parameters=parameters)
