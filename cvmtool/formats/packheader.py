# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What a pack's owner says of it, signed: content, metadata, lineage. It stays with the owner and never goes to a host.

Zone: shared. Pure: no I/O.
Spec: docs/protocol.md section 10.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TypeVar

from cvmtool.errors import FormatError
from cvmtool.formats.pack import NAME, PackDescriptor, parse_pack_descriptor
from cvmtool.formats.wire import JsonObject, canonical_json, lp, members, natural, parse_hex, parse_json, typed

SCHEMA = "cvmtool/pack/v2"
MAX_HEADER = 1 << 20  # bytes, encoded
MAX_TEXT = 1024  # characters of one entry
MAX_STEPS = 64
MAX_SOURCES = 64
MAX_RULES = 256
_LABEL = b"cvmtool/v1/pack-header"
_MOMENT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")


class Sensitivity(StrEnum):
    """Who would be hurt if the content came out; from the least to the most."""

    PUBLIC = "public"
    INTERNAL = "internal"
    CONFIDENTIAL = "confidential"
    PERSONAL = "personal"
    """About people who can be told apart: it must have been scrubbed, or a job waives that by name."""


class ContentKind(StrEnum):
    """What was packed."""

    TREE = "tree"
    MODEL = "model"
    CONTAINER = "container"


class Action(StrEnum):
    """How a step of a lineage came to its content."""

    PACKED = "packed"
    SCRUBBED = "scrubbed"
    REKEYED = "rekeyed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What the owner says in words. Nothing here is measured or checked; None is left unsaid."""

    owner: str | None = None
    sensitivity: Sensitivity | None = None
    origin: str | None = None
    handling: str | None = None
    licence: str | None = None
    created: str | None = None
    """A moment in UTC, to the second: 2026-01-31T12:00:00Z."""

    def to_json(self) -> JsonObject:
        """Return what was said."""
        return _stated({field.name: getattr(self, field.name) for field in fields(self)})


TEXTS = ("owner", "origin", "handling", "licence")
"""The entries of the metadata that are plain text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What is inside, whatever it was encrypted with: two packs of one content have the same digest."""

    kind: ContentKind
    digest: str
    """`sha256:` and 64 hex digits. Of a tree: over its paths, kinds and contents; of a container: its manifest's."""

    def to_json(self) -> JsonObject:
        """Return kind and digest."""
        return {"kind": self.kind.value, "digest": self.digest}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A pack that another one was made from."""

    name: str
    root_hash: str
    digest: str
    """Of its content."""

    def to_json(self) -> JsonObject:
        """Return its names."""
        return {"name": self.name, "root_hash": self.root_hash, "digest": self.digest}


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleCount:
    """How often a rule of a scrubbing pipeline changed something. No value is kept."""

    rule: str
    changed: int

    def to_json(self) -> JsonObject:
        """Return the rule's name and its count."""
        return {"rule": self.rule, "changed": self.changed}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a lineage, the first first."""

    action: Action
    at: str
    """A moment in UTC, by the owner's clock."""
    by: str
    """The program and its version."""
    sources: tuple[Source, ...] = ()
    pipeline: str | None = None
    """Of a scrubbing: `sha256:` and the digest of the pipeline's file."""
    counts: tuple[RuleCount, ...] = ()

    def to_json(self) -> JsonObject:
        """Return the step as it stands in a header."""
        return _stated(
            {
                "action": self.action.value,
                "at": self.at,
                "by": self.by,
                "sources": [source.to_json() for source in self.sources] or None,
                "pipeline": self.pipeline,
                "counts": [count.to_json() for count in self.counts] or None,
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PackHeader:
    """All that its owner says of a pack."""

    pack: PackDescriptor
    content: Content
    metadata: Metadata
    lineage: tuple[Step, ...]
    owner_key: str
    """Ed25519, 32 bytes raw, as hex: whose signature this is."""
    signature: str
    """64 bytes as hex, over `signed`; empty before it is signed."""

    @property
    def scrubbed(self) -> bool:
        """Whether a declared pipeline went over the content."""
        return any(step.action is Action.SCRUBBED for step in self.lineage)

    @property
    def signed(self) -> bytes:
        """The bytes under the signature: a label, and all but the signature in canonical JSON."""
        document = self.to_json()
        del document["signature"]
        return lp(_LABEL, canonical_json(document))

    @property
    def source(self) -> Source:
        """This pack as what another one is made from."""
        return Source(name=self.pack.name, root_hash=self.pack.root_hash, digest=self.content.digest)

    def to_json(self) -> JsonObject:
        """Return the header as the document beside its pack."""
        return {
            "schema": SCHEMA,
            "pack": self.pack.to_json(),
            "content": self.content.to_json(),
            "metadata": self.metadata.to_json(),
            "lineage": [step.to_json() for step in self.lineage],
            "owner_key": self.owner_key,
            "signature": self.signature,
        }


def encode_header(header: PackHeader) -> bytes:
    """Return a header as the JSON file that stands beside its pack."""
    return json.dumps(header.to_json(), indent=1, sort_keys=True, ensure_ascii=False).encode("utf-8") + b"\n"


def parse_pack_header(data: bytes) -> PackHeader:
    """Read a header. Its signature is not verified here.

    Raises:
        FormatError: a key is missing, unknown or out of range.
    """
    return read_pack_header(parse_json(data, what="pack header", limit=MAX_HEADER))


def read_pack_header(value: JsonObject) -> PackHeader:
    """Read a header that is part of another document, as `parse_pack_header`.

    Raises:
        FormatError: a key is missing, unknown or out of range.
    """
    what = "pack header"
    members(value, what=what, required={"schema", *(field.name for field in fields(PackHeader))})
    if value["schema"] != SCHEMA:
        raise FormatError(f"{what}.schema is {str(value['schema'])[:48]!r}; {SCHEMA} is required")
    parse_hex(value["owner_key"], 32, what=f"{what}.owner_key")
    parse_hex(value["signature"], 64, what=f"{what}.signature")
    lineage = _list(value, "lineage", _step, MAX_STEPS, what=what)
    if not lineage:
        raise FormatError(f"{what}.lineage is empty; how the pack was made is required")
    return PackHeader(
        pack=parse_pack_descriptor(typed(value, "pack", dict, what=what)),
        content=_content(typed(value, "content", dict, what=what)),
        metadata=parse_metadata(typed(value, "metadata", dict, what=what)),
        lineage=lineage,
        owner_key=value["owner_key"],
        signature=value["signature"],
    )


def parse_metadata(value: JsonObject) -> Metadata:
    """Read what an owner says of a pack.

    Raises:
        FormatError: an unknown key, a text that is empty, too long or not printable, no such sensitivity, no moment.
    """
    what = "metadata"
    members(value, what=what, required=set(), optional=frozenset(field.name for field in fields(Metadata)))
    said = {key: text(value[key], what=f"{what}.{key}") for key in TEXTS if key in value}
    return Metadata(
        owner=said.get("owner"),
        sensitivity=_member(value, "sensitivity", Sensitivity, what=what) if "sensitivity" in value else None,
        origin=said.get("origin"),
        handling=said.get("handling"),
        licence=said.get("licence"),
        created=read_moment(value, "created", what=what) if "created" in value else None,
    )


def text(value: object, *, what: str) -> str:
    """Return `value` if it is a short line of printable text.

    Raises:
        FormatError: it is not.
    """
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_TEXT or not value.isprintable():
        raise FormatError(f"{what} is {str(value)[:48]!r}; printable text of 1 to {MAX_TEXT} characters is required")
    return value


def moment(when: dt.datetime) -> str:
    """Return a moment with its zone as it stands in a header."""
    return when.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def tree_content(entries: Iterable[tuple[bytes, bytes, bytes]]) -> bytes:
    """Return the digest (SHA-256) of a tree's content.

    Args:
        entries: kind (`f` file, `x` executable file, `d` directory, `l` link), path from the tree's root, and of a file the
            SHA-256 of its bytes, of a link its target, of a directory nothing.
    """
    digest = hashlib.sha256()
    for kind, name, content in sorted(entries, key=lambda entry: entry[1]):
        digest.update(lp(kind, name, content))
    return digest.digest()


def _content(value: JsonObject) -> Content:
    what = "pack content"
    members(value, what=what, required={"kind", "digest"})
    return Content(kind=_member(value, "kind", ContentKind, what=what), digest=_digest(value, "digest", what=what))


def _step(value: JsonObject) -> Step:
    what = "lineage step"
    members(value, what=what, required={"action", "at", "by"}, optional=frozenset({"sources", "pipeline", "counts"}))
    return Step(
        action=_member(value, "action", Action, what=what),
        at=read_moment(value, "at", what=what),
        by=text(value["by"], what=f"{what}.by"),
        sources=_list(value, "sources", _source, MAX_SOURCES, what=what) if "sources" in value else (),
        pipeline=_digest(value, "pipeline", what=what) if "pipeline" in value else None,
        counts=_list(value, "counts", _count, MAX_RULES, what=what) if "counts" in value else (),
    )


def _source(value: JsonObject) -> Source:
    what = "lineage source"
    members(value, what=what, required={"name", "root_hash", "digest"})
    if not NAME.fullmatch(typed(value, "name", str, what=what)):
        raise FormatError(f"{what}.name is {value['name'][:64]!r}; a pack's name is required")
    parse_hex(value["root_hash"], 32, what=f"{what}.root_hash")
    return Source(name=value["name"], root_hash=value["root_hash"], digest=_digest(value, "digest", what=what))


def _count(value: JsonObject) -> RuleCount:
    what = "lineage count"
    members(value, what=what, required={"rule", "changed"})
    return RuleCount(rule=text(value["rule"], what=f"{what}.rule"), changed=natural(value, "changed", what=what))


def _stated(value: Mapping[str, object]) -> JsonObject:
    """Return the entries that say something: None is left out."""
    return {key: item for key, item in value.items() if item is not None}


def _list(value: JsonObject, key: str, parse: Callable[[JsonObject], T], most: int, *, what: str) -> tuple[T, ...]:
    items = typed(value, key, list, what=what)
    if len(items) > most or not all(isinstance(item, dict) for item in items):
        raise FormatError(f"{what}.{key} has {len(items)} entries; at most {most} objects are required")
    return tuple(parse(item) for item in items)


def _member(value: JsonObject, key: str, kind: type[E], *, what: str) -> E:
    found = value.get(key)
    if found not in tuple(kind):
        raise FormatError(f"{what}.{key} is {str(found)[:48]!r}; one of {', '.join(kind)} is required")
    return kind(found)


def _digest(value: JsonObject, key: str, *, what: str) -> str:
    found = typed(value, key, str, what=what)
    if not _DIGEST.fullmatch(found):
        raise FormatError(f"{what}.{key} is {found[:80]!r}; sha256: and 64 lower-case hex digits are required")
    return found


def read_moment(value: JsonObject, key: str, *, what: str) -> str:
    """Return `value[key]` if it is a moment as `moment` writes it.

    Raises:
        FormatError: it is not.
    """
    found = typed(value, key, str, what=what)
    refusal = FormatError(f"{what}.{key} is {found[:40]!r}; a time such as 2026-01-31T12:00:00Z is required")
    if not _MOMENT.fullmatch(found):
        raise refusal
    try:
        dt.datetime.fromisoformat(found)
    except ValueError:
        raise refusal from None
    return found
