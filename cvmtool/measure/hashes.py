# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The table of kernel, initrd and command line hashes that the firmware checks before it boots them.

Zone: measure (shared mathematics). Pure: no I/O.
Spec: QEMU target/i386/sev.c (SevHashTable), edk2 OvmfPkg/AmdSev/BlobVerifierLibSevHashes.

    GUID of the table | u16 168 | 3 x (GUID | u16 50 | SHA-256) | 8 zero bytes          176 bytes, little-endian

QEMU places these bytes on SNP (`kernel-hashes=on`); a dry run loads the same bytes itself. QEMU hashes the kernel
*file* as it was given and, for SEV guests, does not patch its header; the command line is hashed with its closing NUL.
"""

from __future__ import annotations

import hashlib
import struct
import uuid
from dataclasses import dataclass

from cvmtool.errors import ConfigError, FormatError

TABLE_BYTES = 176
"""What is placed in guest memory: 168 bytes of table, padded to a multiple of 16."""

HASH_BYTES = 32

_TABLE_LENGTH = 168
_ENTRY_LENGTH = 50
_HEADER = struct.Struct("<16sH")
_TABLE_GUID = uuid.UUID("9438d606-4f22-4cc9-b479-a793d411fd21").bytes_le
_ENTRY_GUIDS = (
    ("cmdline", uuid.UUID("97d02dd8-bd20-4c94-aa78-e7714d36ab2a").bytes_le),
    ("initrd", uuid.UUID("44baf731-3a2f-4bd7-9af1-41e29169781d").bytes_le),
    ("kernel", uuid.UUID("4de79437-abd2-427f-b835-d5b172d2045b").bytes_le),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelHashes:
    """SHA-256 of kernel file, initrd and command line (with its NUL): 32 bytes each."""

    kernel: bytes
    initrd: bytes
    cmdline: bytes

    def __post_init__(self) -> None:
        for name in ("kernel", "initrd", "cmdline"):
            length = len(getattr(self, name))
            if length != HASH_BYTES:
                raise FormatError(f"{name} hash has {length} bytes; required: {HASH_BYTES}")

    def table(self) -> bytes:
        """Return the 176 bytes that are placed at the firmware's hash table address."""
        entries = b"".join(
            _HEADER.pack(guid, _ENTRY_LENGTH) + digest
            for (_, guid), digest in zip(_ENTRY_GUIDS, (self.cmdline, self.initrd, self.kernel), strict=True)
        )
        return (_HEADER.pack(_TABLE_GUID, _TABLE_LENGTH) + entries).ljust(TABLE_BYTES, b"\0")


def kernel_hashes(kernel: bytes, initrd: bytes, cmdline: str) -> KernelHashes:
    """Hash what is handed to QEMU: the `kernel` file, the `initrd` file (empty when there is none), the `cmdline`.

    The command line is taken exactly as it is: nothing is trimmed, since the launcher trims nothing either.

    Raises:
        ConfigError: `cmdline` holds a NUL or cannot be written as UTF-8, so no launch can carry it.
    """
    try:
        line = cmdline.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"cmdline has an unencodable character at {error.start}; required: utf-8") from None
    if b"\0" in line:
        raise ConfigError(f"cmdline has a nul at byte {line.index(0)}; required: none")
    return KernelHashes(
        kernel=hashlib.sha256(kernel).digest(),
        initrd=hashlib.sha256(initrd).digest(),
        cmdline=hashlib.sha256(line + b"\0").digest(),
    )


def parse_table(data: bytes) -> KernelHashes:
    """Read the 176 bytes of a hash table (unverified); only QEMU's exact layout is accepted.

    Raises:
        FormatError: another size, identifier, order, length or padding.
    """
    if len(data) != TABLE_BYTES:
        raise FormatError(f"hash table has {len(data)} bytes; required: {TABLE_BYTES}")
    if data[: _HEADER.size] != _HEADER.pack(_TABLE_GUID, _TABLE_LENGTH):
        raise FormatError(f"hash table starts with {data[: _HEADER.size].hex()}; required: its guid and length")
    hashes: dict[str, bytes] = {}
    cursor = _HEADER.size
    for name, guid in _ENTRY_GUIDS:
        header = data[cursor : cursor + _HEADER.size]
        if header != _HEADER.pack(guid, _ENTRY_LENGTH):
            raise FormatError(f"hash table entry {name} starts with {header.hex()}; required: its guid and length")
        hashes[name] = data[cursor + _HEADER.size : cursor + _ENTRY_LENGTH]
        cursor += _ENTRY_LENGTH
    if any(data[cursor:]):
        raise FormatError(f"hash table padding is {data[cursor:].hex()}; required: zero")
    return KernelHashes(kernel=hashes["kernel"], initrd=hashes["initrd"], cmdline=hashes["cmdline"])
