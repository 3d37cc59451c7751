# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Volumes: LUKS2 with authenticated sectors, btrfs on top, and the owner's mark that tells the newest state from older ones.

Zone: guest (measured).
Spec: docs/protocol.md section 12; ADR-0021 says why btrfs, and what each layer stops.

Each sector is authenticated by itself, so the host can still give back an older sector in its place. btrfs never writes in
place: every node is named by the one above it with its generation, every block of data with its SHA-256, up to the superblock.
So whatever is turned back is either a read error, or everything at once; and that the owner's mark tells.
"""

from __future__ import annotations

import fcntl
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from cvmtool.errors import FormatError
from cvmtool.formats.control import ControlError
from cvmtool.formats.pack import HEADER_SIZE, PACK_CIPHER, VOLUME_KEY_SIZE
from cvmtool.formats.release import VolumeSecret
from cvmtool.formats.volume import MAX_EPOCH, SECTOR, Epoch, Volume, parse_epoch
from cvmtool.guest.disks import MemoryFile, find_disks, open_luks, read_header, size_of
from cvmtool.guest.kernellog import KERNEL_LOG, read_log
from cvmtool.guest.lukshdr import check_volume_header
from cvmtool.guest.programs import run
from cvmtool.guest.refusal import RefusedError
from cvmtool.guest.shell import OWNER_ID

_MODULES = ("dm_integrity", "dm_crypt", "authenc", "xts", "aesni_intel", "sha256_ssse3", "btrfs")
_OPTIONS = "nosuid,nodev,noatime"
_FORMAT_SECONDS = 900.0  # the journal of a large disk is written once; nothing else is
_BTRFS_IOC_SYNC = 0x9408
_WRONG_PASSPHRASE = 2  # cryptsetup's exit code
_UNAUTHENTIC = re.compile(rb"crypt: dm-([0-9]{1,6}): INTEGRITY AEAD ERROR")
_EPOCH_FILE = "epoch"
_DATA = "data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the kernel shows disks and this module puts mounts; tests point elsewhere."""

    blocks: Path = Path("/sys/block")
    dev: Path = Path("/dev")
    btrfs: Path = Path("/sys/fs/btrfs")
    kernel_log: Path = KERNEL_LOG
    whole: Path = Path("/run/cvmtool/whole")
    """File systems with their marks, for the agent alone."""
    volumes: Path = Path("/run/cvmtool/volumes")
    """What the owner sees of them."""
    user: int = OWNER_ID
    """uid and gid of whoever writes what they hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A volume that is open."""

    volume: Volume
    epoch: Epoch
    created: bool
    errors: dict[str, int]
    """What had been counted when it was mounted, by kind; btrfs keeps count over mounts."""


def load_modules() -> None:
    """Load what opening a volume takes. What is missing shows when it is used, with a better message."""
    run("modprobe", "-a", "-q", *_MODULES)


def open_volume(volume: Volume, secret: VolumeSecret, places: Places) -> Opened:
    """Open a volume, or make it on a blank disk, mount it and mark it with `secret.next`.

    If it fails everything is closed again.

    Raises:
        RefusedError: with the volume's name. `volume-missing`: no such disk; `volume-header`: its header is not a volume's, or
            the disk is blank and must not be made one; `volume-key`: another passphrase; `volume-integrity`: its content is
            not what was written; `volume-rolled-back`: a state that the owner does not take.
    """
    device = _find(volume, places)
    passphrase = bytearray(secret.passphrase)
    try:
        header = read_header(device)
        created = not any(header)
        if created:
            _require_new(volume, secret)
            header = _format(volume, device, passphrase, places)
        else:
            _unlock(volume, device, header, passphrase, places)
        opened = Opened(volume=volume, epoch=secret.next, created=created, errors=_errors(volume, places))
        if not created:
            _require_accepted(volume, secret, places)
            _mount(volume, "-o", f"remount,rw,{_OPTIONS}", places=places)
        commit(opened, secret.next, places)
        if created:
            # Last, and its first block after the others: a disk is a volume or blank, and nothing in between.
            _write_header(device, header)
        _show(volume, places)
    except OSError as error:
        close_volume(volume, places)
        raise _damaged(volume, f"{error.strerror}") from error
    except RefusedError:
        close_volume(volume, places)
        raise
    finally:
        passphrase[:] = bytes(len(passphrase))
    return opened


def commit(opened: Opened, epoch: Epoch, places: Places) -> Opened:
    """Write everything to the disk, and the mark after it. When this returns, the owner may forget the state before.

    Raises:
        RefusedError: `volume-integrity`: something was not written, or a block was read since that is not what was written.
    """
    volume = opened.volume
    whole = places.whole / volume.name
    try:
        _sync(whole)
        _require_sound(opened, places)
        new = whole / f"{_EPOCH_FILE}.new"
        new.write_bytes(epoch.encode())
        new.replace(whole / _EPOCH_FILE)
        _sync(whole)
    except OSError as error:
        raise _damaged(volume, f"{error.strerror}") from error
    _require_sound(opened, places)
    return replace(opened, epoch=epoch)


def is_damaged(opened: Opened, places: Places) -> bool:
    """Say whether a block was met since the volume was opened that is not what was written: the host's doing, or its disk's."""
    try:
        return bool(_new_errors(opened, places))
    except OSError:
        return True


def close_volume(volume: Volume, places: Places) -> None:
    """Unmount and close what is open, so that the kernel forgets the volume key. What was written is on the disk then."""
    run("umount", str(places.volumes / volume.name))
    run("umount", str(places.whole / volume.name))
    run("cryptsetup", "close", _name(volume))


def _find(volume: Volume, places: Places) -> Path:
    disks = find_disks(volume.serial, places.blocks)
    if len(disks) != 1:
        raise _refused(
            ControlError.VOLUME_MISSING, volume, f"{len(disks)} disks have the serial {volume.serial}; 1 is required"
        )
    size = size_of(disks[0], places.blocks)
    if size != volume.size:
        raise _refused(
            ControlError.VOLUME_MISSING, volume, f"the disk has {size} bytes; the manifest requires {volume.size}"
        )
    return places.dev / disks[0]


def _require_new(volume: Volume, secret: VolumeSecret) -> None:
    if not secret.blank:
        raise _refused(ControlError.VOLUME_ROLLED_BACK, volume, "the disk is blank; the owner knows a later state")
    if not volume.create:
        raise _refused(ControlError.VOLUME_HEADER, volume, "the disk is blank; the manifest does not say create")


def _format(volume: Volume, device: Path, passphrase: bytearray, places: Places) -> bytes:
    """Make the volume on everything of the disk but its header, and mount it; return the header."""
    with MemoryFile(bytes(HEADER_SIZE)) as copy:
        _try(
            volume,
            "cryptsetup",
            "luksFormat",
            "--batch-mode",
            "--type=luks2",
            f"--uuid={volume.luks_uuid}",
            f"--cipher={PACK_CIPHER}",
            f"--key-size={8 * VOLUME_KEY_SIZE}",
            "--integrity=hmac-sha256",
            # Sectors that were never written do not authenticate. btrfs reads none of those; to write them all takes
            # minutes for each ten gigabytes.
            "--integrity-no-wipe",
            f"--sector-size={SECTOR}",
            "--hash=sha256",
            "--pbkdf=pbkdf2",
            "--pbkdf-force-iterations=1000",  # the passphrase is 256 bits of randomness
            f"--offset={HEADER_SIZE // 512}",
            f"--header={copy.path}",
            "--key-file=-",
            str(device),
            stdin=passphrase,
        )
        header = copy.read()
    _open(volume, device, header, passphrase)
    mapped = str(places.dev / "mapper" / _name(volume))
    layout = ("--csum=sha256", "--metadata=single", "--data=single")
    _try(volume, "mkfs.btrfs", "-q", "-f", "-K", *layout, f"--uuid={volume.luks_uuid}", mapped)
    _mount(volume, "-t", "btrfs", "-o", _OPTIONS, mapped, places=places)
    data = places.whole / volume.name / _DATA
    data.mkdir(mode=0o700)
    os.chown(data, places.user, places.user)
    return header


def _unlock(volume: Volume, device: Path, header: bytes, passphrase: bytearray, places: Places) -> None:
    """Open what is there and mount it read-only: a state that is refused stays as it is."""
    _open(volume, device, header, passphrase)
    mapped = str(places.dev / "mapper" / _name(volume))
    _mount(volume, "-t", "btrfs", "-o", f"ro,{_OPTIONS}", mapped, places=places)


def _open(volume: Volume, device: Path, header: bytes, passphrase: bytearray) -> None:
    try:
        check_volume_header(header, volume)
    except FormatError as error:
        raise _refused(ControlError.VOLUME_HEADER, volume, error.message) from error
    opened = open_luks(device, _name(volume), header, passphrase)
    if opened.code == _WRONG_PASSPHRASE:
        raise _refused(ControlError.VOLUME_KEY, volume, opened.complaint)
    if opened.code != 0:
        raise _damaged(volume, opened.complaint)


def _require_accepted(volume: Volume, secret: VolumeSecret, places: Places) -> None:
    with (places.whole / volume.name / _EPOCH_FILE).open("rb") as file:
        data = file.read(MAX_EPOCH + 1)
    try:
        found = parse_epoch(data)
    except FormatError as error:
        raise _damaged(volume, error.message) from error
    if found not in secret.accept:
        latest = max((epoch.counter for epoch in secret.accept), default=0)
        raise _refused(
            ControlError.VOLUME_ROLLED_BACK,
            volume,
            f"the disk holds state {found.counter} with mark {found.mark[:8]}; the owner takes {len(secret.accept)} states, "
            f"the latest of them {latest}",
        )


def _mount(volume: Volume, *arguments: str, places: Places) -> None:
    point = places.whole / volume.name
    point.mkdir(mode=0o700, parents=True, exist_ok=True)
    _try(volume, "mount", *arguments, str(point))


def _show(volume: Volume, places: Places) -> None:
    point = places.volumes / volume.name
    point.mkdir(parents=True, exist_ok=True)
    _try(volume, "mount", "-o", "bind", str(places.whole / volume.name / _DATA), str(point))


def _try(volume: Volume, *argv: str, stdin: bytearray | bytes = b"") -> None:
    ended = run(*argv, stdin=stdin, timeout_seconds=_FORMAT_SECONDS)
    if ended.code != 0:
        raise _damaged(volume, ended.complaint)


def _write_header(device: Path, header: bytes) -> None:
    with device.open("r+b", buffering=0) as disk:
        for at, end in ((SECTOR, HEADER_SIZE), (0, SECTOR)):
            while at < end:
                at += os.pwrite(disk.fileno(), header[at:end], at)  # noqa: PLW2901 - the rest of a short write
            os.fsync(disk.fileno())


def _sync(whole: Path) -> None:
    """Write what is in memory, and wait until the superblock that names it is on the disk."""
    folder = os.open(whole, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(folder, _BTRFS_IOC_SYNC)
    finally:
        os.close(folder)


def _errors(volume: Volume, places: Places) -> dict[str, int]:
    """Return what was counted: by btrfs, failed reads, writes and flushes, wrong checksums and generations; and what dm-crypt said.

    btrfs does not count a read that failed because a sector did not authenticate. The kernel's log has that, and loses the
    oldest records; so a count can fall.
    """
    stats = (places.btrfs / volume.luks_uuid / "devinfo" / "1" / "error_stats").read_text("ascii")
    counted = {name: int(count) for name, _, count in (line.partition(" ") for line in stats.splitlines())}
    mapped = places.dev / "mapper" / _name(volume)
    devices = {os.minor(path.stat().st_rdev) for path in (mapped, mapped.with_name(f"{mapped.name}_dif"))}
    said = [match for record in read_log(places.kernel_log) for match in _UNAUTHENTIC.finditer(record)]
    return counted | {"unauthentic": sum(int(match[1]) in devices for match in said)}


def _new_errors(opened: Opened, places: Places) -> dict[str, int]:
    found = _errors(opened.volume, places)
    return {name: count for name, count in found.items() if count > opened.errors.get(name, 0)}


def _require_sound(opened: Opened, places: Places) -> None:
    new = _new_errors(opened, places)
    if new:
        listed = ", ".join(f"{name} {count}" for name, count in new.items())
        raise _damaged(opened.volume, f"blocks are not what was written: {listed}")


def _damaged(volume: Volume, detail: str) -> RefusedError:
    return _refused(ControlError.VOLUME_INTEGRITY, volume, detail)


def _refused(error: ControlError, volume: Volume, detail: str) -> RefusedError:
    return RefusedError(error, detail, volume=volume.name)


def _name(volume: Volume) -> str:
    return f"volume-{volume.serial}"
