# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The secret that an owner releases to one verified guest: what opens its packs and its volumes.

Zone: shared. Pure: no I/O. The sealing itself is `cvmtool.owner.seal`, the opening `cvmtool.guest`.
Spec: docs/protocol.md section 6.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from cvmtool.errors import FormatError
from cvmtool.formats.pack import PASSPHRASE_SIZE, parse_uuid
from cvmtool.formats.volume import Epoch, epoch_from
from cvmtool.formats.wire import JsonObject, canonical_json, lp, members, parse_canonical_json, parse_hex, typed

MAX_SECRETS = 65_536  # bytes, sealed or not
MAX_ACCEPTED = 16  # epochs of one volume
_SCHEMA = "cvmtool/secrets/v1"
_PASSPHRASE = re.compile(f"[0-9a-f]{{{2 * PASSPHRASE_SIZE}}}")
_RELEASE = b"cvmtool/v1/release"


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeSecret:
    """What opens one volume, and which of its states the owner takes."""

    passphrase: bytes = field(repr=False)
    """32 bytes."""
    blank: bool
    """Whether a blank disk is fine: no state of the volume was ever acknowledged."""
    accept: tuple[Epoch, ...]
    """The acknowledged state, and those that were begun since and never heard of again."""
    next: Epoch
    """What the guest marks the volume with when it has opened it."""

    def to_json(self) -> JsonObject:
        """Return the secret as it stands among others."""
        return {
            "passphrase": self.passphrase.hex(),
            "blank": self.blank,
            "accept": [epoch.to_json() for epoch in self.accept],
            "next": self.next.to_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """What opens packs and volumes. Never printed."""

    packs: dict[str, bytes] = field(default_factory=dict)
    """Passphrases (32 bytes each) by the root hash (64 hex digits) of the pack they open."""
    volumes: dict[str, VolumeSecret] = field(default_factory=dict)
    """By the LUKS UUID of the volume."""

    def __repr__(self) -> str:
        return f"<secrets of {len(self.packs)} packs and {len(self.volumes)} volumes>"

    def encode(self) -> bytes:
        """Return the canonical JSON that is sealed."""
        return canonical_json(
            {
                "schema": _SCHEMA,
                "packs": {root: key.hex() for root, key in self.packs.items()},
                "volumes": {uuid: secret.to_json() for uuid, secret in self.volumes.items()},
            }
        )


def parse_secrets(data: bytes) -> Secrets:
    """Read opened secrets. No message repeats a value.

    Raises:
        FormatError: anything but the one form that `Secrets.encode` gives.
    """
    value = parse_canonical_json(data, what="secrets", limit=MAX_SECRETS)
    members(value, what="secrets", required={"schema", "packs", "volumes"})
    if value["schema"] != _SCHEMA:
        raise FormatError(f"secrets.schema is not {_SCHEMA}")
    packs = {}
    for root, key in typed(value, "packs", dict, what="secrets").items():
        parse_hex(root, 32, what="secrets.packs key")
        packs[root] = _passphrase(key, what="secrets.packs value")
    volumes = {}
    for uuid, secret in typed(value, "volumes", dict, what="secrets").items():
        parse_uuid(uuid, what="secrets.volumes key")
        volumes[uuid] = _volume_secret(secret)
    return Secrets(packs=packs, volumes=volumes)


def _volume_secret(value: object) -> VolumeSecret:
    what = "secrets.volumes value"
    if not isinstance(value, dict):
        raise FormatError(f"{what} is a {type(value).__name__}; an object is required")
    members(value, what=what, required=set(VolumeSecret.__slots__))
    accepted = typed(value, "accept", list, what=what)
    if len(accepted) > MAX_ACCEPTED:
        raise FormatError(f"{what}.accept has {len(accepted)} entries; at most {MAX_ACCEPTED} are allowed")
    return VolumeSecret(
        passphrase=_passphrase(value["passphrase"], what=f"{what}.passphrase"),
        blank=typed(value, "blank", bool, what=what),
        accept=tuple(epoch_from(epoch) for epoch in accepted),
        next=epoch_from(value["next"]),
    )


def _passphrase(key: object, *, what: str) -> bytes:
    # Not parse_hex, whose message would repeat the value; not bytes.fromhex alone, which passes over spaces.
    if not isinstance(key, str) or not _PASSPHRASE.fullmatch(key):
        raise FormatError(f"{what} is not {2 * PASSPHRASE_SIZE} lower-case hex digits")
    return bytes.fromhex(key)


def release_info(*, report_data: bytes, host_data: bytes) -> bytes:
    """Return the HPKE `info` that ties a sealed secret to one attested session of one job."""
    return lp(_RELEASE, report_data, host_data)
