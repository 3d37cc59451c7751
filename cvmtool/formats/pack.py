# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What the world may know of an input pack: its digests and its shape, never its key.

Zone: shared. Pure: no I/O.
Spec: docs/protocol.md section 10.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from enum import StrEnum

from cvmtool.errors import FormatError
from cvmtool.formats.wire import JsonObject, members, natural, parse_base64, parse_hex, typed

BLOCK = 4096  # bytes, of dm-verity and of a LUKS sector
HEADER_SIZE = (
    1 << 20
)  # bytes, the LUKS2 header area: two headers and room for one key slot; every byte of it is hashed at unlock
PACK_CIPHER = "aes-xts-plain64"
VOLUME_KEY_SIZE = 64  # bytes, AES-256-XTS
PASSPHRASE_SIZE = 32  # bytes
NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Role(StrEnum):
    """What a pack is for."""

    CONTAINER = "container"
    INPUT = "input"


@dataclass(frozen=True, slots=True, kw_only=True)
class PackDescriptor:
    """Everything public about a pack; all of it stands in the job manifest."""

    name: str
    role: Role
    root_hash: str
    """dm-verity root over the LUKS container, SHA-256, 64 hex digits. It names the pack."""
    salt: str
    """dm-verity salt, 64 hex digits."""
    data_blocks: int
    """4096-byte blocks of the LUKS container."""
    hash_offset: int
    """Bytes; where the hash tree (with its superblock) begins."""
    size: int
    """Bytes of the whole file."""
    luks_uuid: str
    volume_key_digest: str
    """The LUKS2 header's digest of its volume key, as base64."""
    header_sha256: str
    """SHA-256 of the LUKS header: the first MiB."""

    @property
    def serial(self) -> str:
        """The virtio serial of the disk that carries this pack (20 characters at most)."""
        return self.root_hash[:20]

    def to_json(self) -> JsonObject:
        """Return the descriptor as it stands in a manifest."""
        return {**asdict(self), "role": self.role.value}


def parse_pack_descriptor(value: JsonObject) -> PackDescriptor:
    """Read a descriptor.

    Raises:
        FormatError: a key is missing, unknown or out of range, or the sizes contradict each other.
    """
    what = "pack"
    members(value, what=what, required=set(PackDescriptor.__slots__))
    name = typed(value, "name", str, what=what)
    if not NAME.fullmatch(name):
        raise FormatError(f"pack.name is {name[:64]!r}; lower-case letters, digits, '.', '_' and '-' are required")
    try:
        role = Role(typed(value, "role", str, what=what))
    except ValueError as error:
        raise FormatError(f"pack.role is {value['role']!r}; container or input is required") from error
    for key in ("root_hash", "salt", "header_sha256"):
        parse_hex(value[key], 32, what=f"pack.{key}")
    digest = typed(value, "volume_key_digest", str, what=what)
    if len(parse_base64(digest, what="pack.volume_key_digest", limit=32)) != 32:
        raise FormatError(f"pack.volume_key_digest is {digest[:48]!r}; base64 of 32 bytes is required")
    data_blocks = natural(value, "data_blocks", what=what, most=1 << 40, least=HEADER_SIZE // BLOCK + 1)
    hash_offset = natural(value, "hash_offset", what=what, most=1 << 52)
    size = natural(value, "size", what=what, most=1 << 52)
    if hash_offset != data_blocks * BLOCK or size <= hash_offset or size % BLOCK:
        raise FormatError(
            f"pack.hash_offset is {hash_offset} and pack.size {size}; the tree begins at {data_blocks * BLOCK} and ends at a block"
        )
    return PackDescriptor(
        name=name,
        role=role,
        root_hash=value["root_hash"],
        salt=value["salt"],
        data_blocks=data_blocks,
        hash_offset=hash_offset,
        size=size,
        luks_uuid=parse_uuid(value["luks_uuid"], what="pack.luks_uuid"),
        volume_key_digest=digest,
        header_sha256=value["header_sha256"],
    )


def parse_uuid(value: object, *, what: str) -> str:
    """Return `value` if it is a lower-case UUID.

    Raises:
        FormatError: it is not.
    """
    if not isinstance(value, str) or not _UUID.fullmatch(value):
        raise FormatError(f"{what} is {str(value)[:48]!r}; a lower-case UUID is required")
    return value
