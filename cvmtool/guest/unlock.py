# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Open the job's packs: disk, dm-verity, checked header, LUKS2, read-only mount.

Zone: guest (measured). The only door to veritysetup.
Spec: docs/protocol.md section 10.

Every parameter of dm-verity comes from the manifest; the superblock on the disk, which the host could rewrite
(algorithm, salt, sizes), is not read. The LUKS header is read through verity into memory, and cryptsetup is shown that
copy only: what was checked is what is used.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cvmtool.errors import FormatError
from cvmtool.formats.control import ControlError
from cvmtool.formats.job import JobManifest
from cvmtool.formats.pack import BLOCK, PackDescriptor
from cvmtool.guest.disks import find_disks, open_luks, read_header
from cvmtool.guest.kernellog import KERNEL_LOG, read_log
from cvmtool.guest.lukshdr import check_header
from cvmtool.guest.programs import run
from cvmtool.guest.refusal import RefusedError

_READ_ERROR = b"SQUASHFS error"
_MODULES = ("dm_verity", "dm_crypt", "xts", "aesni_intel", "squashfs", "overlay")


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the kernel shows disks and this module puts mounts; tests point elsewhere."""

    blocks: Path = Path("/sys/block")
    dev: Path = Path("/dev")
    packs: Path = Path("/run/cvmtool/packs")
    kernel_log: Path = KERNEL_LOG

    def mount_point(self, pack: PackDescriptor) -> Path:
        """Return where a pack is mounted."""
        return self.packs / pack.name


def open_packs(packs: Sequence[PackDescriptor], passphrases: dict[str, bytearray], places: Places) -> dict[str, int]:
    """Open and mount every one of these packs; return the milliseconds that each took, by its name.

    `passphrases` (32 bytes each, by root hash) are wiped as they are used. If one pack fails, all of these are closed again.

    Raises:
        RefusedError: `pack-missing`, `pack-integrity`, `pack-header` or `pack-key`, with the pack's name.
    """
    timings = {}
    load_modules()
    try:
        for pack in packs:
            began = time.monotonic_ns()
            _open(pack, passphrases.get(pack.root_hash), places)
            timings[pack.name] = (time.monotonic_ns() - began) // 1_000_000
    except RefusedError:
        close_packs(packs, places)
        raise
    finally:
        for passphrase in passphrases.values():
            passphrase[:] = bytes(len(passphrase))
    return timings


def load_modules() -> None:
    """Load what opening a pack takes. What is missing shows when it is used, with a better message."""
    run("modprobe", "-a", "-q", *_MODULES)


def close_packs(packs: Sequence[PackDescriptor], places: Places) -> None:
    """Unmount and close what is open of these, so that the kernel forgets the volume keys."""
    for pack in reversed(packs):
        run("umount", "-l", str(places.mount_point(pack)))
        run("cryptsetup", "close", _crypt_name(pack))
        run("veritysetup", "close", _verity_name(pack))


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """What the host did to a pack under the running job. `pack` is its name, or None if that is not known."""

    pack: str | None
    detail: str


def find_damage(manifest: JobManifest, places: Places) -> Damage | None:
    """Look for a block that is not the owner's, or that the host would not give.

    The container met an error where it read such a block; whether it took notice is not for us to guess.
    """
    for pack in manifest.packs:
        status = run("veritysetup", "status", _verity_name(pack))
        if status.code != 0 or "verified" not in status.output or "corrupted" in status.output:
            return Damage(pack=pack.name, detail="a block of the pack is not the owner's")
    # dm-verity keeps no account of reads that failed outright. The file system on top says so in the kernel's log.
    if any(_READ_ERROR in record for record in read_log(places.kernel_log)):
        return Damage(pack=None, detail="the host failed to give a block of a pack")
    return None


def _verity_name(pack: PackDescriptor) -> str:
    return f"verity-{pack.serial}"


def _crypt_name(pack: PackDescriptor) -> str:
    return f"pack-{pack.serial}"


def _open(pack: PackDescriptor, passphrase: bytearray | None, places: Places) -> None:
    if passphrase is None:
        raise RefusedError(ControlError.PACK_KEY, "the secrets hold no key for this pack", pack=pack.name)
    device = _open_verity(pack, places)
    try:
        header = read_header(device)
    except OSError as error:
        raise RefusedError(ControlError.PACK_INTEGRITY, f"the header: {error.strerror}", pack=pack.name) from error
    try:
        check_header(header, pack)
    except FormatError as error:
        raise RefusedError(ControlError.PACK_HEADER, error.message, pack=pack.name) from error
    opened = open_luks(device, _crypt_name(pack), header, passphrase, "--readonly")
    if opened.code != 0:
        raise RefusedError(ControlError.PACK_KEY, opened.complaint, pack=pack.name)
    point = places.mount_point(pack)
    point.mkdir(parents=True, exist_ok=True)
    source = places.dev / "mapper" / _crypt_name(pack)
    mounted = run("mount", "-t", "squashfs", "-o", "ro,nosuid,nodev", str(source), str(point))
    if mounted.code != 0:
        raise RefusedError(ControlError.PACK_INTEGRITY, mounted.complaint, pack=pack.name)


def _open_verity(pack: PackDescriptor, places: Places) -> Path:
    """Open dm-verity over the disk whose serial hints at this pack; return the device. Reading it verifies it."""
    disks = find_disks(pack.serial, places.blocks)
    if len(disks) != 1:
        raise RefusedError(
            ControlError.PACK_MISSING,
            f"{len(disks)} disks have the serial {pack.serial}; 1 is required",
            pack=pack.name,
        )
    disk = str(places.dev / disks[0])
    opened = run(
        "veritysetup",
        "open",
        "--no-superblock",
        "--format=1",
        "--hash=sha256",
        f"--data-block-size={BLOCK}",
        f"--hash-block-size={BLOCK}",
        f"--data-blocks={pack.data_blocks}",
        f"--hash-offset={pack.hash_offset + BLOCK}",  # behind the superblock
        f"--salt={pack.salt}",
        disk,
        _verity_name(pack),
        disk,
        pack.root_hash,
    )
    if opened.code != 0:
        raise RefusedError(ControlError.PACK_INTEGRITY, opened.complaint, pack=pack.name)
    return places.dev / "mapper" / _verity_name(pack)
