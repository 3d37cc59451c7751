# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Open a pack on its owner's machine: seal it anew, or bring its files back.

Zone: data (the owner's machine).
Spec: docs/protocol.md section 10. Blocks are hashed while they are decrypted, and nothing is kept of a pack whose root hash
turns out another. No device-mapper: the header is opened by cryptsetup, as a copy in memory, and the payload by us.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from cvmtool.data.hashtree import HashTree
from cvmtool.data.sealed import PIECE, Progress, memory_file, seal_payload
from cvmtool.data.tools import run
from cvmtool.data.window import Take
from cvmtool.data.xts import SectorCipher
from cvmtool.errors import BuildError, ConfigError, VerificationError
from cvmtool.formats.pack import HEADER_SIZE, VOLUME_KEY_SIZE, PackDescriptor

_VOLUME_KEY = re.compile(r"^MK dump:\s*((?:[0-9a-f]{2}\s+)+)", re.MULTILINE)
_AVAILABLE = re.compile(r"^MemAvailable:\s+([0-9]+) kB$", re.MULTILINE)


def reseal_pack(
    path: Path,
    descriptor: PackDescriptor,
    out: Path,
    *,
    passphrase_for: Callable[[str], bytes],
    progress: Progress = lambda _done, _all: None,
) -> PackDescriptor:
    """Write what is in the pack `path` to the pack `out`: another volume key, another passphrase, other ciphertext.

    Raises:
        ConfigError: a file cannot be read or written.
        VerificationError: `path` is not the pack of `descriptor`.
        BuildError: a tool failed; the passphrase is another.
    """
    size = descriptor.hash_offset - HEADER_SIZE

    def fill(take: Take) -> int:
        _decrypt(path, descriptor, passphrase_for(descriptor.luks_uuid), take)
        return size

    return seal_payload(
        out,
        fill,
        name=descriptor.name,
        role=descriptor.role,
        passphrase_for=passphrase_for,
        progress=progress,
        guess=size,
    )


def extract_pack(
    path: Path,
    descriptor: PackDescriptor,
    target: Path,
    *,
    passphrase: bytes,
    progress: Progress = lambda _done, _all: None,
) -> bool:
    """Write the files of the pack `path` to the new directory `target` (0700), all of them or none.

    unsquashfs reads its image here and there, so it needs the whole of it: in memory, or where half of what memory is free
    does not hold it in a file without a name, on the disk that will hold the files in clear.

    Returns:
        Whether the image was in memory alone.

    Raises:
        ConfigError: a file cannot be read or written.
        VerificationError: `path` is not the pack of `descriptor`.
        BuildError: a tool failed; the passphrase is another.
    """
    size = descriptor.hash_offset - HEADER_SIZE
    in_memory = size <= _free_memory() // 2
    unpacked = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with ExitStack() as files:
            if in_memory:
                image = files.enter_context(memory_file("payload"))
            else:
                image = files.enter_context(tempfile.TemporaryFile(dir=target.parent)).fileno()

            def take(start: int, plain: memoryview) -> None:
                _write_at(image, start, plain)
                progress(start + len(plain), size)

            _decrypt(path, descriptor, passphrase, take)
            unpacked.mkdir(mode=0o700)
            inner = unpacked / "files"
            command = ["unsquashfs", "-no-progress", "-quiet", "-no-xattrs", "-dest", str(inner)]
            run([*command, f"/proc/self/fd/{image}"], pass_fds=[image], what=f"unpacking {path}")
        inner.chmod(0o700)
        inner.rename(target)
    except OSError as error:
        raise ConfigError(f"pack {path} cannot be opened into {target}", detail=str(error)) from error
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    return in_memory


def write_payload(path: Path, descriptor: PackDescriptor, out: Path, *, passphrase: bytes) -> None:
    """Write the file system that is in the pack `path` to the new file `out` (0600), in clear; nothing stays of another pack's.

    Raises:
        ConfigError, VerificationError, BuildError: as `extract_pack`.
    """
    try:
        target = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written", detail=str(error)) from error
    try:
        _decrypt(path, descriptor, passphrase, partial(_write_at, target))
    except BaseException:
        out.unlink()
        raise
    finally:
        os.close(target)


def _write_at(file: int, start: int, plain: memoryview) -> None:
    written = 0
    while written < len(plain):
        written += os.pwrite(file, plain[written:], start + written)


def _decrypt(path: Path, descriptor: PackDescriptor, passphrase: bytes, take: Take) -> None:
    """Hand the payload, piece by piece, to `take`; raise at its end if any block was not the descriptor's."""
    try:
        with (
            path.open("rb") as file,
            HashTree(path.parent, bytes.fromhex(descriptor.salt)) as tree,
            _cipher(file.fileno(), descriptor, passphrase, tree) as cipher,
        ):
            room = memoryview(bytearray(PIECE))
            for at in range(HEADER_SIZE, descriptor.hash_offset, PIECE):
                sealed = tree.lend(min(PIECE, descriptor.hash_offset - at))
                if os.preadv(file.fileno(), [sealed], at) != len(sealed):
                    raise VerificationError(f"pack {path} ends before byte {descriptor.hash_offset}")
                plain = room[: len(sealed)]
                cipher.apply(at - HEADER_SIZE, sealed, plain)
                tree.take(at, sealed)
                take(at - HEADER_SIZE, plain)
            if tree.root().hex() != descriptor.root_hash:
                raise VerificationError(f"pack {path} has a block that its root hash does not cover as it is")
    except OSError as error:
        raise ConfigError(f"pack {path} cannot be read", detail=str(error)) from error


@contextmanager
def _cipher(source: int, descriptor: PackDescriptor, passphrase: bytes, tree: HashTree) -> Iterator[SectorCipher]:
    header = os.pread(source, HEADER_SIZE, 0)
    actual = hashlib.sha256(header).hexdigest()
    if actual != descriptor.header_sha256:
        raise VerificationError(f"pack header is sha256:{actual}; sha256:{descriptor.header_sha256} is required")
    tree.take(0, header)
    volume_key = _volume_key(header, passphrase)
    try:
        cipher = SectorCipher(volume_key, encrypt=False)
    finally:
        volume_key[:] = bytes(len(volume_key))
    try:
        yield cipher
    finally:
        cipher.close()


def _volume_key(header: bytes, passphrase: bytes) -> bytearray:
    """Return the volume key (64 bytes) of a LUKS header. cryptsetup writes it to a new file or to a pipe: a pipe, here."""
    with memory_file("luks-header") as copy:
        os.write(copy, header)
        command = ["cryptsetup", "luksDump", "--batch-mode", "--dump-volume-key", "--key-file", "-"]
        printed = run(
            [*command, f"/proc/self/fd/{copy}"], stdin=passphrase, pass_fds=[copy], what="opening the LUKS header"
        )
    found = _VOLUME_KEY.search(printed)
    volume_key = bytearray.fromhex(found[1]) if found else bytearray()
    if len(volume_key) != VOLUME_KEY_SIZE:
        raise BuildError(f"cryptsetup shows a volume key of {len(volume_key)} bytes; {VOLUME_KEY_SIZE} are required")
    return volume_key


def _free_memory() -> int:
    """Return the bytes of memory that programs can get without others being swapped out."""
    found = _AVAILABLE.search(Path("/proc/meminfo").read_text("ascii"))
    return int(found[1]) * 1024 if found else 0
