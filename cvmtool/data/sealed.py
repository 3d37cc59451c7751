# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A payload sealed and checked: LUKS2 under dm-verity, without root, without device-mapper.

Zone: data (the owner's machine).
Spec: docs/protocol.md section 10. The volume key is random and is forgotten when the pack is made; the passphrase that opens
its one key slot is random too, so PBKDF2 runs its minimum of iterations: stretching adds nothing to 256 random bits.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import struct
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cvmtool.data.hashtree import HashTree
from cvmtool.data.tools import run
from cvmtool.data.window import Take
from cvmtool.data.xts import SectorCipher
from cvmtool.errors import BuildError, ConfigError, VerificationError
from cvmtool.formats.pack import BLOCK, HEADER_SIZE, NAME, PACK_CIPHER, VOLUME_KEY_SIZE, PackDescriptor, Role
from cvmtool.formats.verity import DIGEST

PBKDF2_ITERATIONS = 1000  # the least that cryptsetup takes
PIECE = 4 << 20  # bytes read at once

# signature, version, hash type, UUID, algorithm, data and hash block size, data blocks, salt size, salt
_SUPERBLOCK = struct.Struct("<8sII16s32sIIQH6x256s168x")

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all, which while a pack is made are a guess: nobody knows how well the rest compresses."""


def seal_payload(
    out: Path,
    fill: Callable[[Take], int],
    *,
    name: str,
    role: Role,
    passphrase_for: Callable[[str], bytes],
    progress: Progress,
    guess: int,
) -> PackDescriptor:
    """Write a pack to `out` and return what may be known of it.

    Args:
        out: the file to write; it appears whole or not at all.
        fill: hands the payload, piece by piece, to what it is given; returns its size, a multiple of a block.
        name: the pack's name in the job.
        role: container or input.
        passphrase_for: gives the 32-byte passphrase for a LUKS UUID (the owner's key store derives it).
        progress: told about the encryption.
        guess: bytes that the payload may have.

    Raises:
        ConfigError: `out` cannot be written, the name is none, or a tool is missing.
        BuildError: a tool failed.
    """
    luks_uuid = str(uuid.uuid4())
    volume_key = bytearray(secrets.token_bytes(VOLUME_KEY_SIZE))
    if not NAME.fullmatch(name):
        raise ConfigError(f"pack name is {name[:80]!r}; lower-case letters, digits, '.', '_' and '-' are required")
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")
    salt = secrets.token_bytes(DIGEST)
    try:
        with temporary.open("w+b") as file, HashTree(temporary.parent, salt) as tree:
            os.fchmod(file.fileno(), 0o600)
            file.truncate(HEADER_SIZE + BLOCK)  # cryptsetup wants room for data behind the header
            _format(temporary, luks_uuid, volume_key, passphrase_for(luks_uuid))
            header = os.pread(file.fileno(), HEADER_SIZE, 0)
            tree.take(0, header)
            with _sealing(file.fileno(), volume_key, tree, progress, guess=guess) as take:
                size = fill(take)
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
        for at in range(0, end, PIECE):
            tree.take(at, os.pread(source, min(PIECE, end - at), at))
            progress(min(at + PIECE, end), end)
        with tempfile.TemporaryFile(dir=path.parent) as made:
            root, length = tree.write(made.fileno(), 0)
            same = length == size - end - BLOCK and _are_same(source, end + BLOCK, made.fileno(), length)
    if root.hex() != descriptor.root_hash or not same:
        raise VerificationError(f"pack {path} has a block that its root hash does not cover as it is")


def _are_same(one: int, start: int, other: int, length: int) -> bool:
    pieces = range(0, length, PIECE)
    return all(os.pread(one, min(PIECE, length - at), start + at) == os.pread(other, PIECE, at) for at in pieces)


def _superblock(descriptor: PackDescriptor) -> bytes:
    """Return the block before the hash tree, which no hash covers and no guest reads (cryptsetup's verity.c)."""
    salt = bytes.fromhex(descriptor.salt)
    head = _SUPERBLOCK.pack(
        b"verity", 1, 1, bytes(16), b"sha256", BLOCK, BLOCK, descriptor.data_blocks, len(salt), salt
    )
    return head.ljust(BLOCK, b"\0")


@contextmanager
def memory_file(name: str) -> Iterator[int]:
    """A file that exists in memory alone and is gone when closed."""
    descriptor = os.memfd_create(name, 0)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _format(path: Path, luks_uuid: str, volume_key: bytearray, passphrase: bytes) -> None:
    with memory_file("volume-key") as key:
        os.write(key, volume_key)
        arguments = ["cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2", "--cipher", PACK_CIPHER]
        arguments += ["--key-size", str(VOLUME_KEY_SIZE * 8), "--sector-size", str(BLOCK), "--uuid", luks_uuid]
        arguments += ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", str(PBKDF2_ITERATIONS)]
        arguments += ["--offset", str(HEADER_SIZE // 512)]
        arguments += ["--volume-key-file", f"/proc/self/fd/{key}", "--key-file", "-", str(path)]
        run(arguments, stdin=passphrase, pass_fds=[key], what="making the LUKS header")


@contextmanager
def _sealing(
    descriptor: int, volume_key: bytearray, tree: HashTree, progress: Progress, *, guess: int
) -> Iterator[Take]:
    """What takes the payload in whole sectors, and encrypts, hashes and writes it."""
    cipher = SectorCipher(volume_key, encrypt=True)
    most = 0

    def take(start: int, plain: memoryview) -> None:
        nonlocal most
        sealed = tree.lend(len(plain))
        cipher.apply(start, plain, sealed)
        tree.take(HEADER_SIZE + start, sealed)
        _write_at(descriptor, sealed, HEADER_SIZE + start)
        most = max(most, start + len(plain))
        progress(most, max(most, guess))

    try:
        yield take
    finally:
        cipher.close()


def _write_at(descriptor: int, data: memoryview, start: int) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(descriptor, data[written:], start + written)


def _volume_key_digest(path: Path) -> str:
    metadata = json.loads(run(["cryptsetup", "luksDump", "--dump-json-metadata", str(path)], what="reading the header"))
    digests = list(metadata["digests"].values())
    if len(digests) != 1:
        raise BuildError(f"the new LUKS header has {len(digests)} digests; 1 is required")
    return str(digests[0]["digest"])
