# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A grant: what the owner of packs allows another owner's job to make of them, signed.

Zone: shared. Pure: no I/O. Signing and deciding are `cvmtool.owner.grants`.
Spec: docs/protocol.md section 16.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields

from cvmtool.errors import FormatError
from cvmtool.formats.job import (
    MAX_LOG_MIB,
    MAX_MANIFEST,
    MAX_OUTPUTS,
    MAX_PACKS,
    Container,
    Output,
    read_container,
    read_output,
    require_distinct,
)
from cvmtool.formats.jobterms import parse_recipients
from cvmtool.formats.pack import NAME, parse_uuid
from cvmtool.formats.packheader import read_moment
from cvmtool.formats.wire import JsonObject, canonical_json, lp, members, natural, parse_hex, parse_json, typed

SCHEMA = "cvmtool/grant/v1"
MAX_GRANT = MAX_MANIFEST  # bytes: all but its signature was in a manifest
MAX_USES = 1_000
ID_SIZE = 16  # bytes
_LABEL = b"cvmtool/v1/grant"


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantedPack:
    """A pack whose passphrase may be released."""

    name: str
    """In the job: the container finds it as /inputs/NAME, and what it makes of it may depend on that."""
    root_hash: str
    luks_uuid: str
    """What the passphrase follows from: a manifest that gives the pack another one asks for another key."""

    def to_json(self) -> JsonObject:
        """Return the pack as it stands in a grant."""
        return {"name": self.name, "root_hash": self.root_hash, "luks_uuid": self.luks_uuid}


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What one owner allows."""

    id: str
    """16 random bytes as hex: its uses are counted below this name."""
    coordinator: str
    """Ed25519, as hex: whose job it may be. The guest answers to this key."""
    manifest: str | None
    """SHA-256 of the one manifest that is allowed, as hex; None: any that the rest of the grant holds for."""
    packs: tuple[GrantedPack, ...]
    """Ascending by root hash."""
    container_root: str
    """The dm-verity root of the container's pack: what runs. `container.oci_digest` is the word of who sealed that."""
    container: Container
    outputs: tuple[Output, ...]
    """What may leave: these, or fewer and smaller ones."""
    recipients: tuple[str, ...]
    """X25519 keys as hex, ascending: to whom the outputs may be sealed."""
    log_mib: int
    """How much the container may print, which the coordinator reads in clear."""
    expires: str
    """A moment in UTC, by this owner's clock: 2026-12-31T12:00:00Z."""
    uses: int
    """How many guests may get the passphrases."""
    owner_key: str
    signature: str
    """64 bytes as hex, over `signed`; empty before it is signed."""

    @property
    def signed(self) -> bytes:
        """The bytes under the signature: a label, and all but the signature in canonical JSON."""
        document = self.to_json()
        del document["signature"]
        return lp(_LABEL, canonical_json(document))

    def to_json(self) -> JsonObject:
        """Return the grant as a document."""
        return {
            "schema": SCHEMA,
            "id": self.id,
            "coordinator": self.coordinator,
            "manifest": self.manifest,
            "packs": [pack.to_json() for pack in self.packs],
            "container_root": self.container_root,
            "container": self.container.to_json(),
            "outputs": [output.to_json() for output in self.outputs],
            "recipients": list(self.recipients),
            "log_mib": self.log_mib,
            "expires": self.expires,
            "uses": self.uses,
            "owner_key": self.owner_key,
            "signature": self.signature,
        }


def encode_grant(grant: Grant) -> bytes:
    """Return a grant as a file for people to read."""
    return json.dumps(grant.to_json(), indent=1, sort_keys=True, ensure_ascii=False).encode("utf-8") + b"\n"


def parse_grant(data: bytes) -> Grant:
    """Read a grant. Its signature is not verified here.

    Raises:
        FormatError: a key is missing, unknown or out of range.
    """
    return read_grant(parse_json(data, what="grant", limit=MAX_GRANT))


def read_grant(value: JsonObject) -> Grant:
    """Read a grant that is part of another document, as `parse_grant`.

    Raises:
        FormatError: a key is missing, unknown or out of range.
    """
    what = "grant"
    members(value, what=what, required={"schema", *(field.name for field in fields(Grant))})
    if value["schema"] != SCHEMA:
        raise FormatError(f"{what}.schema is {str(value['schema'])[:48]!r}; {SCHEMA} is required")
    outputs = tuple(read_output(item, what=f"{what}.outputs") for item in _objects(value, "outputs", MAX_OUTPUTS))
    require_distinct([output.name for output in outputs], f"{what}.outputs")
    manifest = value["manifest"]
    return Grant(
        id=parse_hex(value["id"], ID_SIZE, what=f"{what}.id").hex(),
        coordinator=parse_hex(value["coordinator"], 32, what=f"{what}.coordinator").hex(),
        manifest=None if manifest is None else parse_hex(manifest, 32, what=f"{what}.manifest").hex(),
        packs=_packs(value),
        container_root=parse_hex(value["container_root"], 32, what=f"{what}.container_root").hex(),
        container=read_container(typed(value, "container", dict, what=what), what=f"{what}.container"),
        outputs=outputs,
        recipients=parse_recipients(value["recipients"]),
        log_mib=natural(value, "log_mib", what=what, most=MAX_LOG_MIB, least=1),
        expires=read_moment(value, "expires", what=what),
        uses=natural(value, "uses", what=what, most=MAX_USES, least=1),
        owner_key=parse_hex(value["owner_key"], 32, what=f"{what}.owner_key").hex(),
        signature=parse_hex(value["signature"], 64, what=f"{what}.signature").hex(),
    )


def _packs(value: JsonObject) -> tuple[GrantedPack, ...]:
    what = "grant.packs"
    packs = []
    for item in _objects(value, "packs", MAX_PACKS):
        members(item, what=what, required=set(GrantedPack.__slots__))
        if not NAME.fullmatch(typed(item, "name", str, what=what)):
            raise FormatError(f"{what}.name is {item['name'][:64]!r}; the name of a pack is required")
        packs.append(
            GrantedPack(
                name=item["name"],
                root_hash=parse_hex(item["root_hash"], 32, what=f"{what}.root_hash").hex(),
                luks_uuid=parse_uuid(item["luks_uuid"], what=f"{what}.luks_uuid"),
            )
        )
    roots = [pack.root_hash for pack in packs]
    if not roots or roots != sorted(set(roots)):
        raise FormatError(f"{what} is empty, not ascending, or names a pack twice")
    return tuple(packs)


def _objects(value: JsonObject, key: str, most: int) -> list[JsonObject]:
    items = typed(value, key, list, what="grant")
    if len(items) > most or not all(isinstance(item, dict) for item in items):
        raise FormatError(f"grant.{key} has {len(items)} entries; at most {most} objects are required")
    return items
