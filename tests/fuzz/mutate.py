# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Change a valid sample where its structure is, so that the change is seen by the check behind the framing.

A flipped bit in JSON or DER mostly dies in the first line of a parser. So JSON is changed as a tree and written
canonically again, DER with the lengths above the change put right, length-prefixed fields field by field, text by lines.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

_TOKENS = (
    *(b"", b"\0", b"\xff", b"\n", b"\r\n", b" ", b"{", b"}", b"[", b"]", b'"', b"'", b":", b": ", b"- ", b"#", b"="),
    *(b"&a", b"*a", b"<<: *a", b"!!python/object:os.system ", b"!", b"|", b">", b"---\n", b"...\n", b"%", b"\\ud800"),
    *(
        b"null",
        b"true",
        b"NaN",
        b"1e999",
        b"0x10",
        b"1_0",
        b"1:30",
        b"2026-02-30",
        b"9" * 5000,
        b"0x" + b"f" * 5000,
        b"[" * 2000,
        b"{" * 2000,
    ),
    *(
        b"[[a]]\n",
        b"a.b.c = 1\n",
        b"<!DOCTYPE a [<!ENTITY b 'c'>]>",
        b"&b;",
        b"<![CDATA[",
        b"\xc3\xa9",
        b"\xed\xa0\x80",
    ),
    *(
        b"-----BEGIN CERTIFICATE-----\n",
        b"-----END CERTIFICATE-----\n",
        b"../",
        b"/",
        b"\x30\x80",
        b"\x30\x84\xff\xff\xff\xff",
    ),
)
_NUMBERS = (
    0,
    1,
    2,
    3,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0x7FFF,
    0xFFFF,
    0x10000,
    0x7FFFFFFF,
    0xFFFFFFFF,
    1 << 63,
    (1 << 64) - 1,
)
_VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        float("inf"),
        1.5,
        0,
        1,
        -1,
        1 << 31,
        1 << 63,
        1 << 64,
        10**4000,
        "",
        "\0",
        "a",
        "A" * 300,
        "é",
        "\ud800",
        "../x",
        "0",
    ),
    *([], {}, [None], [[]], {"": 0}, {"0": {}}, "ab" * 32, "AB" * 32, "A" * 43 + "="),
)
_CONSTRUCTED = 0x20
_MOST = 1 << 16  # bytes of a mutant


def mutate(data: bytes, random: Random, seeds: tuple[bytes, ...] = ()) -> bytes:
    """Return `data` (of one of `seeds`) with one to four changes, at most 64 KiB."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        ways = [_flip, _flip, _number, _cut, _repeat, _insert, _move, _lines]
        if data[:1] == b"{":
            ways += [_json] * 12
        if data[:1] == b"\x30":
            ways += [_der] * 12
        if data[:3] == bytes(3) and len(data) > 4:
            ways += [_fields] * 8
        if b"\n" in data:
            ways += [_lines] * 6
        if seeds and random.random() < 0.05:
            other = random.choice(seeds)
            data = data[: random.randrange(len(data) + 1)] + other[random.randrange(len(other) + 1) :]
        else:
            data = random.choice(ways)(data, random)
        data = data[:_MOST]
    return data


def _flip(data: bytes, random: Random) -> bytes:
    if not data:
        return random.choice(_TOKENS)
    changed = bytearray(data)
    at = random.randrange(len(data))
    changed[at] = random.choice((changed[at] ^ 1 << random.randrange(8), random.randrange(256)))
    return bytes(changed)


def _number(data: bytes, random: Random) -> bytes:
    size = random.choice((1, 2, 4, 8))
    if len(data) < size:
        return data + bytes(size)
    at = random.randrange(len(data) - size + 1)
    order = random.choice(("little", "big"))
    old = int.from_bytes(data[at : at + size], order)
    value = random.choice((*_NUMBERS, old + 1, old - 1, len(data), at)) % (1 << 8 * size)
    return data[:at] + value.to_bytes(size, order) + data[at + size :]


def _span(data: bytes, random: Random) -> tuple[int, int]:
    at = random.randrange(len(data) + 1)
    return at, min(len(data), at + random.choice((1, 2, 4, 16, 64, len(data))))


def _cut(data: bytes, random: Random) -> bytes:
    start, end = _span(data, random)
    return data[:start] + data[end:]


def _repeat(data: bytes, random: Random) -> bytes:
    start, end = _span(data, random)
    return data[:end] + data[start:end] * random.choice((1, 1, 2, 50)) + data[end:]


def _insert(data: bytes, random: Random) -> bytes:
    at = random.randrange(len(data) + 1)
    return data[:at] + random.choice(_TOKENS) + data[at:]


def _move(data: bytes, random: Random) -> bytes:
    start, end = _span(data, random)
    rest = data[:start] + data[end:]
    at = random.randrange(len(rest) + 1)
    return rest[:at] + data[start:end] + rest[at:]


def _lines(data: bytes, random: Random) -> bytes:
    lines = data.split(b"\n")
    at = random.randrange(len(lines))
    match random.randrange(6):
        case 0:
            del lines[at]
        case 1:
            lines.insert(random.randrange(len(lines)), lines[at])
        case 2:
            lines[at] = b"  " + lines[at]
        case 3:
            lines[at] = lines[at].lstrip()
        case _:
            for mark in (b" = ", b": ", b":", b" "):
                key, found, _ = lines[at].rpartition(mark)
                if found:
                    value = (
                        json.dumps(random.choice(_VALUES)).encode() if random.random() < 0.7 else random.choice(_TOKENS)
                    )
                    lines[at] = key + found + value
                    break
    return b"\n".join(lines)


def _json(data: bytes, random: Random) -> bytes:
    try:
        document = json.loads(data)
        places = list(_places(document))
        if not places:
            return data
        container, key = random.choice(places)
        match random.randrange(5):
            case 0:
                del container[key]
            case 1 if isinstance(container, dict):
                container[random.choice((str(key) + "x", "", "é", "x" * 100))] = container[key]
            case 2 if isinstance(container, list):
                container.extend(container[key : key + 1] * random.choice((1, 300)))
            case 3:
                other, name = random.choice(places)
                container[key] = json.loads(json.dumps(other[name]))
            case _:
                container[key] = random.choice((random.choice(_VALUES), _like(container[key], random)))
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
            "utf-8", "replace"
        )
    except (ValueError, RecursionError, KeyError, IndexError):
        return data


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from _places(item)


def _like(value: Any, random: Random) -> Any:
    """Return something of the same kind as `value`, near it."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int):
        return random.choice((value + 1, value - 1, -value, value * 2, value + 4096))
    if isinstance(value, str):
        return _flip(value.encode("utf-8", "replace"), random).decode("utf-8", "replace")
    return value


def _fields(data: bytes, random: Random) -> bytes:
    """Change one field of a row that `formats.wire.lp` wrote."""
    fields, at = [], 0
    while at + 4 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        fields.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    number = random.randrange(len(fields))
    fields[number] = random.choice((_flip, _number, _cut, _insert))(fields[number], random)
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


def _der(data: bytes, random: Random) -> bytes:
    nodes = read_der(data)
    if not nodes:
        return data
    siblings: list[Any] = nodes
    while True:
        at = random.randrange(len(siblings))
        inside = siblings[at][1]
        if isinstance(inside, bytes) or not inside or random.random() < 0.15:
            break
        siblings = inside
    tag, content = siblings[at]
    match random.randrange(6):
        case 0:
            del siblings[at]
        case 1:
            siblings.insert(random.randrange(len(siblings) + 1), siblings[at])
        case 2:
            siblings[at] = (
                random.choice((1, 2, 3, 4, 5, 6, 0x0C, 0x13, 0x16, 0x17, 0x18, 0x30, 0x31, 0xA0, 0xA3, 0x80)),
                content,
            )
        case 3:
            siblings[at] = (tag, random.choice((b"", b"\0", b"\xff" * 9, b"\x80" * 20, b"20260230000000Z", b"1" * 200)))
        case _:
            raw = content if isinstance(content, bytes) else write_der(content)
            siblings[at] = (tag, random.choice((_flip, _number, _cut, _insert))(raw, random))
    return write_der(nodes)


def read_der(data: bytes) -> list[Any]:
    """Return the elements of `data` as (tag, bytes or elements), none if it is not DER to the end."""
    nodes: list[Any] = []
    at = 0
    while at < len(data):
        if at + 2 > len(data):
            return []
        tag, size, at = data[at], data[at + 1], at + 2
        if size & 0x80:
            count = size & 0x7F
            size, at = int.from_bytes(data[at : at + count], "big"), at + count
        content = data[at : at + size]
        if len(content) != size:
            return []
        inside = read_der(content) if tag & _CONSTRUCTED else []
        nodes.append((tag, inside or content))
        at += size
    return nodes


def write_der(nodes: list[Any]) -> bytes:
    written = []
    for tag, inside in nodes:
        content = inside if isinstance(inside, bytes) else write_der(inside)
        size = len(content)
        raw = size.to_bytes((size.bit_length() + 7) // 8, "big")
        written.append(bytes((tag,)) + (bytes((size,)) if size < 0x80 else bytes((0x80 | len(raw),)) + raw) + content)
    return b"".join(written)
