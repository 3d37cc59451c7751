# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Strict building blocks that every cvmtool format shares: length-prefixed fields, canonical JSON, hex, base64, frames.

Zone: shared. Pure: no I/O.
Spec: docs/protocol.md, preamble and section 5. One spelling per value: a reader re-encodes what it read and refuses
what differs.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from cvmtool.errors import FormatError

MAX_FRAME = 1 << 20  # bytes of payload in one control frame
FRAME_HEADER = 5  # bytes: kind, big-endian length

JsonObject = dict[str, Any]
T = TypeVar("T")


def lp(*fields: bytes) -> bytes:
    """Return every field behind its length as a 4-byte big-endian number, concatenated."""
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


def parse_lp(data: bytes, count: int, *, what: str) -> tuple[bytes, ...]:
    """Split `data` into exactly `count` length-prefixed fields.

    Raises:
        FormatError: a field runs past the end, or bytes are left over.
    """
    fields = []
    at = 0
    for index in range(count):
        if len(data) - at < 4:
            raise FormatError(f"{what}: field {index} has no length; {len(data) - at} bytes are left, 4 are required")
        size = int.from_bytes(data[at : at + 4], "big")
        at += 4
        if len(data) - at < size:
            raise FormatError(f"{what}: field {index} claims {size} bytes; {len(data) - at} are left")
        fields.append(data[at : at + size])
        at += size
    if at != len(data):
        raise FormatError(f"{what}: {len(data) - at} bytes follow the last field; none may")
    return tuple(fields)


def canonical_json(value: JsonObject) -> bytes:
    """Encode `value` as canonical JSON: sorted keys, no white space, UTF-8, no floats.

    Raises:
        FormatError: the value holds something that has no canonical form.
    """
    try:
        _refuse_floats(value, "document")
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"document has no canonical form: {error}") from error


def parse_canonical_json(data: bytes, *, what: str, limit: int) -> JsonObject:
    """Parse a canonical JSON object of at most `limit` bytes.

    Raises:
        FormatError: too long, not JSON, not an object, or not in canonical form.
    """
    value = parse_json(data, what=what, limit=limit)
    if canonical_json(value) != data:
        raise FormatError(f"{what} is not in canonical form")
    return value


def parse_json(data: bytes, *, what: str, limit: int) -> JsonObject:
    """Parse a JSON object of at most `limit` bytes without duplicate keys, floats or lone surrogates.

    Raises:
        FormatError: any of these, or not JSON at all.
    """
    if len(data) > limit:
        raise FormatError(f"{what} has {len(data)} bytes; at most {limit} are allowed")
    try:
        text = data.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_float=_no_float,
            parse_constant=_no_float,
        )
        # An escape can name half a surrogate pair, which no UTF-8 can carry on.
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise FormatError(f"{what} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{what} is a JSON {type(value).__name__}; an object is required")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> JsonObject:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("duplicate key")
    return value


def _no_float(text: str) -> float:
    raise ValueError(f"number {text[:40]} is not an integer")


def _refuse_floats(value: object, where: str) -> None:
    if isinstance(value, float):
        raise FormatError(f"{where} holds the number {value}; only integers have a canonical form")
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_floats(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_floats(item, where)


def parse_hex(text: object, size: int, *, what: str) -> bytes:
    """Parse exactly `size` bytes of lower-case hex.

    Raises:
        FormatError: another length, upper case, or not hex.
    """
    if not isinstance(text, str) or not re.fullmatch(f"[0-9a-f]{{{2 * size}}}", text):
        shown = repr(text)[:48] if isinstance(text, str) else type(text).__name__
        raise FormatError(f"{what} is {shown}; {2 * size} lower-case hex digits are required")
    return bytes.fromhex(text)


def parse_base64(text: object, *, what: str, limit: int) -> bytes:
    """Parse standard base64 with padding, in its one canonical spelling, to at most `limit` bytes.

    Raises:
        FormatError: another alphabet, missing padding, stray bits or too long.
    """
    if not isinstance(text, str) or len(text) > (limit + 2) // 3 * 4:
        raise FormatError(f"{what} is not base64 of at most {limit} bytes")
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError(f"{what} is not base64: {error}") from error
    if len(data) > limit or base64.b64encode(data).decode("ascii") != text:
        raise FormatError(f"{what} is not canonical base64 of at most {limit} bytes")
    return data


def to_base64(data: bytes) -> str:
    """Return standard base64 with padding."""
    return base64.b64encode(data).decode("ascii")


class Kind(Enum):
    """What a control frame carries (docs/protocol.md section 5)."""

    JSON = b"J"
    DATA = b"D"
    END = b"E"


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of the control service."""

    kind: Kind
    payload: bytes

    def encode(self) -> bytes:
        """Return kind, 4-byte big-endian length and payload.

        Raises:
            FormatError: the payload is over `MAX_FRAME`.
        """
        if len(self.payload) > MAX_FRAME:
            raise FormatError(f"frame has {len(self.payload)} bytes; at most {MAX_FRAME} are allowed")
        return self.kind.value + len(self.payload).to_bytes(4, "big") + self.payload


def json_frame(value: JsonObject) -> bytes:
    """Return `value` as one encoded JSON frame."""
    return Frame(Kind.JSON, canonical_json(value)).encode()


def read_frame(read_exactly: Callable[[int], bytes]) -> Frame:
    """Read one frame through `read_exactly(n)`, which returns n bytes or raises.

    Raises:
        FormatError: an unknown kind, a length over `MAX_FRAME`, or an end that carries something.
    """
    header = read_exactly(FRAME_HEADER)
    size = int.from_bytes(header[1:], "big")
    try:
        kind = Kind(header[:1])
    except ValueError as error:
        raise FormatError(f"frame kind is {header[:1]!r}; J, D or E is required") from error
    if size > MAX_FRAME:
        raise FormatError(f"frame claims {size} bytes; at most {MAX_FRAME} are allowed")
    if kind is Kind.END and size:
        raise FormatError(f"frame of kind {Kind.END.value!r} claims {size} bytes; 0 are required")
    return Frame(kind, read_exactly(size) if size else b"")


def members(value: JsonObject, *, what: str, required: set[str], optional: frozenset[str] = frozenset()) -> None:
    """Check that an object has exactly the keys it may have.

    Raises:
        FormatError: a key is missing or unknown; the message names it.
    """
    missing = sorted(required - value.keys())
    unknown = sorted(value.keys() - required - optional)
    if missing:
        raise FormatError(f"{what} lacks the key {missing[0]!r}")
    if unknown:
        raise FormatError(f"{what} has the unknown key {unknown[0][:64]!r}")


def typed(value: JsonObject, key: str, kind: type[T], *, what: str) -> T:
    """Return `value[key]` if it is a `kind` (a bool is not an int).

    Raises:
        FormatError: another type.
    """
    item = value.get(key)
    if not isinstance(item, kind) or (kind is int and isinstance(item, bool)):
        raise FormatError(f"{what}.{key} is a {type(item).__name__}; {kind.__name__} is required")
    return item


def natural(value: JsonObject, key: str, *, what: str, most: int = (1 << 63) - 1, least: int = 0) -> int:
    """Return `value[key]` if it is an integer from `least` to `most`.

    Raises:
        FormatError: another type or out of range.
    """
    number = typed(value, key, int, what=what)
    if not least <= number <= most:
        raise FormatError(f"{what}.{key} is {number}; {least} to {most} is required")
    return number
