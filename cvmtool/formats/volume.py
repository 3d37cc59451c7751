# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A volume: a writable disk of the host that only its owner's guests can read, change or turn back.

Zone: shared. Pure: no I/O.
Spec: docs/protocol.md section 12.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from cvmtool.errors import FormatError
from cvmtool.formats.pack import NAME, parse_uuid
from cvmtool.formats.wire import JsonObject, canonical_json, members, natural, parse_canonical_json, parse_hex, typed

MIN_VOLUME = 256 << 20  # bytes: a smaller btrfs has no room for both data and metadata
MAX_VOLUME = 1 << 50
SECTOR = 4096  # bytes, authenticated as one
MARK_SIZE = 32
MAX_EPOCH = 256  # bytes, encoded


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """What a manifest says of a volume."""

    name: str
    luks_uuid: str
    """The owner's choice, random; it names the volume and its passphrase."""
    size: int
    """Bytes of the disk, the header included."""
    create: bool
    """Whether the guest may make it on a disk that is blank."""

    @property
    def serial(self) -> str:
        """The virtio serial of the disk that carries this volume: 20 hex digits of the UUID."""
        return self.luks_uuid.replace("-", "")[:20]

    def to_json(self) -> JsonObject:
        """Return the volume as it stands in a manifest."""
        return asdict(self)


def parse_volume(value: JsonObject) -> Volume:
    """Read a volume of a manifest.

    Raises:
        FormatError: a key is missing, unknown or out of range.
    """
    what = "volume"
    members(value, what=what, required=set(Volume.__slots__))
    name = typed(value, "name", str, what=what)
    if not NAME.fullmatch(name):
        raise FormatError(f"volume.name is {name[:64]!r}; lower-case letters, digits, '.', '_' and '-' are required")
    size = natural(value, "size", what=what, least=MIN_VOLUME, most=MAX_VOLUME)
    if size % SECTOR:
        raise FormatError(f"volume.size is {size}; a multiple of {SECTOR} is required")
    return Volume(
        name=name,
        luks_uuid=parse_uuid(value["luks_uuid"], what="volume.luks_uuid"),
        size=size,
        create=typed(value, "create", bool, what=what),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """A state of a volume that its owner can recognise.

    The counter is for people. The mark tells apart what two machines made of one state, which have the same counter.
    """

    counter: int
    mark: str
    """32 random bytes, the owner's, as hex."""

    def to_json(self) -> JsonObject:
        """Return the epoch as part of a document."""
        return asdict(self)

    def encode(self) -> bytes:
        """Return the canonical bytes that stand in the volume, at most 256."""
        return canonical_json(self.to_json())


def parse_epoch(data: bytes) -> Epoch:
    """Read an epoch from its canonical bytes.

    Raises:
        FormatError: anything but the one form that `Epoch.encode` gives.
    """
    return epoch_from(parse_canonical_json(data, what="epoch", limit=MAX_EPOCH))


def epoch_from(value: object) -> Epoch:
    """Read an epoch that is part of a document.

    Raises:
        FormatError: not an object, or a key is missing, unknown or out of range.
    """
    if not isinstance(value, dict):
        raise FormatError(f"epoch is a {type(value).__name__}; an object is required")
    members(value, what="epoch", required=set(Epoch.__slots__))
    parse_hex(value["mark"], MARK_SIZE, what="epoch.mark")
    return Epoch(counter=natural(value, "counter", what="epoch", least=1), mark=value["mark"])
