# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Seal a file tree into an input pack: squashfs inside LUKS2, under dm-verity. Without root, without device-mapper.

Zone: data (the owner's machine).
Spec: docs/protocol.md section 10. The plaintext file system exists in memory only, the source aside, and a few MiB at a time.
The volume key is random and is forgotten when the pack is made; the passphrase that opens its one key slot is random
too, so PBKDF2 runs its minimum of iterations: stretching adds nothing to 256 random bits.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import struct
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from cvmtool.data.hashtree import HashTree
from cvmtool.data.tools import run
from cvmtool.data.window import Take, Window
from cvmtool.errors import BuildError, ConfigError, VerificationError
from cvmtool.formats.pack import BLOCK, HEADER_SIZE, NAME, PACK_CIPHER, VOLUME_KEY_SIZE, PackDescriptor, Role
from cvmtool.formats.verity import DIGEST

PBKDF2_ITERATIONS = 1000  # the least that cryptsetup takes
_PIECE = 4 << 20  # bytes read at once
# The owner's umask says nothing about who may read inside the guest.
_READABLE = ["-action", "chmod(a+rX)@true"]
# Without a search for duplicates nothing that was written is read again (cvmtool.data.window); its queues are bounded.
_SQUASHFS = [
    "-comp",
    "zstd",
    "-Xcompression-level",
    "3",  # 15, its default, takes twenty times as long for a seventh less
    "-b",
    "131072",
    "-no-duplicates",
    "-mem",
    "48M",
    "-no-progress",
    "-quiet",
    "-reproducible",
]

# signature, version, hash type, UUID, algorithm, data and hash block size, data blocks, salt size, salt
_SUPERBLOCK = struct.Struct("<8sII16s32sIIQH6x256s168x")

Progress = Callable[[int, int], None]
"""Called with bytes sealed and bytes in all, which until the end are a guess: nobody knows how well the rest compresses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeSource:
    """A directory or a single file, packed as root's, with fixed times."""

    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class TarSource:
    """A tar stream, packed with the owners and modes it names."""

    pieces: Iterable[bytes]


def make_pack(
    source: TreeSource | TarSource,
    out: Path,
    *,
    name: str,
    role: Role,
    passphrase_for: Callable[[str], bytes],
    progress: Progress = lambda _done, _all: None,
) -> PackDescriptor:
    """Write the pack to `out` and return what may be known of it.

    Args:
        source: what goes in.
        out: the file to write; it appears whole or not at all.
        name: the pack's name in the job.
        role: container or input.
        passphrase_for: gives the 32-byte passphrase for a LUKS UUID (the owner's key store derives it).
        progress: told about the encryption.

    Raises:
        ConfigError: the source cannot be read, `out` not written, the name not be one, or a tool is missing.
        BuildError: a tool failed.
    """
    luks_uuid = str(uuid.uuid4())
    volume_key = bytearray(secrets.token_bytes(VOLUME_KEY_SIZE))
    if not NAME.fullmatch(name):
        raise ConfigError(f"pack name is {name[:80]!r}; lower-case letters, digits, '.', '_' and '-' are required")
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")
    salt = secrets.token_bytes(DIGEST)
    try:
        with (
            temporary.open("w+b") as file,
            _memory_file("squashfs") as plain,
            HashTree(temporary.parent, salt) as tree,
        ):
            os.fchmod(file.fileno(), 0o600)
            file.truncate(HEADER_SIZE + BLOCK)  # cryptsetup wants room for data behind the header
            _format(temporary, luks_uuid, volume_key, passphrase_for(luks_uuid))
            header = os.pread(file.fileno(), HEADER_SIZE, 0)
            tree.take(0, header)
            sealing = _Sealing(file.fileno(), volume_key, tree, progress, guess=_size_of(source))
            size = _squash(source, plain, sealing.take)
            progress(size, size)
            root, end = tree.write(file.fileno(), HEADER_SIZE + size + BLOCK)
            blocks = (HEADER_SIZE + size) // BLOCK
            descriptor = PackDescriptor(
                name=name,
                role=role,
                root_hash=root.hex(),
                salt=salt.hex(),
                data_blocks=blocks,
                hash_offset=blocks * BLOCK,
                size=end,
                luks_uuid=luks_uuid,
                volume_key_digest=_volume_key_digest(temporary),
                header_sha256=hashlib.sha256(header).hexdigest(),
            )
            os.pwrite(file.fileno(), _superblock(descriptor), descriptor.hash_offset)
            os.fsync(file.fileno())
        temporary.replace(out)
    except OSError as error:
        raise ConfigError(f"pack {out} cannot be written", detail=str(error)) from error
    finally:
        volume_key[:] = bytes(len(volume_key))
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return descriptor


def verify_pack(path: Path, descriptor: PackDescriptor, *, progress: Progress = lambda _done, _all: None) -> None:
    """Check every byte of a pack: size, header, the hash tree and its head, and every block against the root hash.

    Raises:
        VerificationError: one differs.
    """
    end = descriptor.hash_offset
    with path.open("rb") as file, HashTree(path.parent, bytes.fromhex(descriptor.salt)) as tree:
        size = file.seek(0, os.SEEK_END)
        if size != descriptor.size:
            raise VerificationError(f"pack {path} has {size} bytes; {descriptor.size} are required")
        source = file.fileno()
        actual = hashlib.sha256(os.pread(source, HEADER_SIZE, 0)).hexdigest()
        if actual != descriptor.header_sha256:
            raise VerificationError(f"pack header is sha256:{actual}; sha256:{descriptor.header_sha256} is required")
        if os.pread(source, BLOCK, end) != _superblock(descriptor):
            raise VerificationError(f"pack {path} has a hash tree with another head than the descriptor's")
        for at in range(0, end, _PIECE):
            tree.take(at, os.pread(source, min(_PIECE, end - at), at))
            progress(min(at + _PIECE, end), end)
        with tempfile.TemporaryFile(dir=path.parent) as made:
            root, length = tree.write(made.fileno(), 0)
            same = length == size - end - BLOCK and _are_same(source, end + BLOCK, made.fileno(), length)
    if root.hex() != descriptor.root_hash or not same:
        raise VerificationError(f"pack {path} has a block that its root hash does not cover as it is")


def _are_same(one: int, start: int, other: int, length: int) -> bool:
    pieces = range(0, length, _PIECE)
    return all(os.pread(one, min(_PIECE, length - at), start + at) == os.pread(other, _PIECE, at) for at in pieces)


def _superblock(descriptor: PackDescriptor) -> bytes:
    """Return the block before the hash tree, which no hash covers and no guest reads (cryptsetup's verity.c)."""
    salt = bytes.fromhex(descriptor.salt)
    head = _SUPERBLOCK.pack(
        b"verity", 1, 1, bytes(16), b"sha256", BLOCK, BLOCK, descriptor.data_blocks, len(salt), salt
    )
    return head.ljust(BLOCK, b"\0")


@contextmanager
def _memory_file(name: str) -> Iterator[int]:
    """A file that exists in memory alone and is gone when closed."""
    descriptor = os.memfd_create(name, 0)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _squash(source: TreeSource | TarSource, plain: int, take: Take) -> int:
    """Build the squashfs in the memory file and pass it on piece by piece; return its size, a multiple of a block."""
    window = Window(plain, take)
    path = f"/proc/self/fd/{plain}"
    if isinstance(source, TarSource):
        # sqfstar takes the root inode's owner from its caller, so it runs as root, if need be of a user namespace of its
        # own; root itself may be where none can be made (a chroot, many containers).
        as_root = () if (os.geteuid(), os.getegid()) == (0, 0) else ("unshare", "-r")
        run(
            [*as_root, "sqfstar", "-force", "-root-mode", "755", *_SQUASHFS, path],
            stdin=source.pieces,
            pass_fds=[plain],
            beside=window.drain,
            what="packing the container",
        )
    else:
        path_in = _existing(source.path)
        command = ["mksquashfs", str(path_in), path, "-noappend", "-all-root", "-all-time", "0", "-mkfs-time", "0"]
        command += [*_READABLE, *(["-root-mode", "755"] if path_in.is_dir() else []), *_SQUASHFS]
        run(command, pass_fds=[plain], beside=window.drain, what=f"packing {source.path}")
    return window.finish(multiple=BLOCK)


def _size_of(source: TreeSource | TarSource) -> int:
    """Return the bytes of a tree's files, for people to know how far it is; 0 if that is not known."""
    if isinstance(source, TarSource):
        return 0
    path = source.path
    if not path.is_dir():
        return path.stat().st_size if path.exists() else 0
    return sum(Path(folder, name).lstat().st_size for folder, _, names in os.walk(path) for name in names)


def _existing(path: Path) -> Path:
    """Return what is packed for `path`.

    Raises:
        ConfigError: there is nothing, or a link to a file, which mksquashfs would pack as a link.
    """
    if not path.exists():
        raise ConfigError(f"{path} does not exist", hint="check the path under inputs: in the job file")
    if not path.is_symlink():
        return path
    found = path.resolve()
    if not found.is_dir():
        raise ConfigError(f"{path} is a link to a file", hint=f"name the file itself: {found}")
    return found


def _format(path: Path, luks_uuid: str, volume_key: bytearray, passphrase: bytes) -> None:
    with _memory_file("volume-key") as key:
        os.write(key, volume_key)
        arguments = ["cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2", "--cipher", PACK_CIPHER]
        arguments += ["--key-size", str(VOLUME_KEY_SIZE * 8), "--sector-size", str(BLOCK), "--uuid", luks_uuid]
        arguments += [
            "--pbkdf",
            "pbkdf2",
            "--pbkdf-force-iterations",
            str(PBKDF2_ITERATIONS),
            "--offset",
            str(HEADER_SIZE // 512),
        ]
        arguments += ["--volume-key-file", f"/proc/self/fd/{key}", "--key-file", "-", str(path)]
        run(arguments, stdin=passphrase, pass_fds=[key], what="making the LUKS header")


class _Sealing:
    """Encrypts the payload as dm-crypt would: AES-256-XTS by 4096-byte sectors, plain64 tweaks in units of 512 bytes."""

    def __init__(
        self, descriptor: int, volume_key: bytearray, tree: HashTree, progress: Progress, *, guess: int
    ) -> None:
        self._tree = tree
        self._guess = guess
        self._descriptor = descriptor
        self._key = algorithms.AES(bytes(volume_key))
        self._progress = progress
        self._most = 0

    def take(self, start: int, plain: memoryview) -> None:
        """Encrypt what stands at `start`, a multiple of a sector, and write it."""
        sealed = bytearray()
        for at in range(0, len(plain), BLOCK):
            tweak = ((start + at) // 512).to_bytes(16, "little")
            sealed += Cipher(self._key, modes.XTS(tweak)).encryptor().update(plain[at : at + BLOCK])
        self._tree.take(HEADER_SIZE + start, sealed)
        _write_at(self._descriptor, sealed, HEADER_SIZE + start)
        self._most = max(self._most, start + len(plain))
        self._progress(self._most, max(self._most, self._guess))


def _write_at(descriptor: int, data: bytearray, start: int) -> None:
    written = 0
    with memoryview(data) as view:
        while written < len(view):
            written += os.pwrite(descriptor, view[written:], start + written)


def _volume_key_digest(path: Path) -> str:
    metadata = json.loads(run(["cryptsetup", "luksDump", "--dump-json-metadata", str(path)], what="reading the header"))
    digests = list(metadata["digests"].values())
    if len(digests) != 1:
        raise BuildError(f"the new LUKS header has {len(digests)} digests; 1 is required")
    return str(digests[0]["digest"])
