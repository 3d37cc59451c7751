# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The other owners of a job's packs, as its manifest names them, and what a job of several owners never does.

Zone: shared. Pure: no I/O.
Spec: docs/protocol.md section 16. The manifest's own owner is the coordinator: whatever leaves such a guest in clear would be the
coordinator's to read, so nothing does but the container's log.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass

from cvmtool.errors import FormatError
from cvmtool.formats.pack import NAME
from cvmtool.formats.wire import JsonObject, members, parse_hex, typed

MAX_PARTIES = 15  # beside the coordinator: as many as there can be packs beside the container's
_KEY_SIZE = 32  # bytes
_NEVER = ("access", "checkpoint", "destinations")


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """An owner of packs who is not the job's."""

    owner_key: str
    """Ed25519, 32 bytes raw, as hex: who signs grants, and the headers of the packs."""
    packs: tuple[str, ...]
    """Their names in the manifest, ascending: the guest opens them once this owner has released their passphrases."""

    def to_json(self) -> JsonObject:
        """Return the party as it stands in a manifest."""
        return {"owner_key": self.owner_key, "packs": list(self.packs)}


def parse_parties(value: object) -> tuple[Party, ...]:
    """Read a manifest's parties: at least one, ascending by key, no pack named twice.

    Raises:
        FormatError: something else.
    """
    what = "manifest.parties"
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_PARTIES:
        raise FormatError(f"{what} is no list of 1 to {MAX_PARTIES} objects; without parties the key must be absent")
    parties = tuple(_party(item) for item in value)
    keys = [party.owner_key for party in parties]
    names = [name for party in parties for name in party.packs]
    if keys != sorted(set(keys)) or len(names) != len(set(names)):
        raise FormatError(f"{what} is not ascending by owner_key, or names a pack twice")
    return parties


def check_pooled(manifest: JsonObject, parties: Collection[Party], packs: Collection[str]) -> None:
    """Check that a manifest with parties has packs of these names, and does nothing that only one of its owners could watch.

    Raises:
        FormatError: a pack that there is none of, the owner as a party, outputs in clear, or a way in, out or into a later run.
    """
    what = "manifest.parties"
    for name in itertools.chain.from_iterable(party.packs for party in parties):
        if name not in packs:
            raise FormatError(f"{what} names {name[:64]!r}, and there is no such pack")
    if any(party.owner_key == manifest["owner_key"] for party in parties):
        raise FormatError(f"{what} names the owner of the manifest; what no party owns is the owner's already")
    forbidden = [key for key in _NEVER if key in manifest]
    if manifest["resources"].get("gpus"):
        forbidden.append("resources.gpus")
    if forbidden:
        raise FormatError(f"manifest.{forbidden[0]} does not go with parties")
    if "recipients" not in manifest:
        raise FormatError(f"{what} without recipients: the outputs of several owners leave sealed")


def _party(value: object) -> Party:
    what = "manifest.parties"
    if not isinstance(value, dict):
        raise FormatError(f"{what} has a {type(value).__name__}; an object is required")
    members(value, what=what, required=set(Party.__slots__))
    key = parse_hex(value["owner_key"], _KEY_SIZE, what=f"{what}.owner_key").hex()
    packs = typed(value, "packs", list, what=what)
    if not packs or not all(isinstance(name, str) and NAME.fullmatch(name) for name in packs):
        raise FormatError(f"{what}.packs is no list of at least one name of a pack")
    if packs != sorted(set(packs)):
        raise FormatError(f"{what}.packs is not ascending, or names something twice")
    return Party(owner_key=key, packs=tuple(packs))
