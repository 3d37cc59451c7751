# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What a parser is to the fuzzer, and how it is shown something."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cvmtool.errors import CvmError, FormatError
from cvmtool.formats import wire


@dataclass(frozen=True)
class Parser:
    """`read` gives a value or raises `refusal`. `write`, where there is one form, gives back what reads as the same value."""

    read: Callable[[bytes], object]
    seeds: Callable[[], tuple[bytes, ...]]
    refusal: type[CvmError] = FormatError
    write: Callable[[object], bytes] | None = None


def encode(value) -> bytes:
    return value.encode()


def text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: parse(data.decode("utf-8", "replace"))


def each(*parse: Callable[[bytes], object]) -> Callable[[bytes], object]:
    """Show the same bytes to several; a refusal of all is a refusal."""

    def read(data: bytes) -> object:
        values, refusal = [], None
        for one in parse:
            try:
                values.append(one(data))
            except FormatError as error:
                refusal = error
        if not values and refusal:
            raise refusal
        return values

    return read


def seeds(*values: bytes) -> Callable[[], tuple[bytes, ...]]:
    return lambda: values


def json_object(parse: Callable[[wire.JsonObject], object]) -> Callable[[bytes], object]:
    return lambda data: parse(wire.parse_json(data, what="sample", limit=1 << 20))


def show(parser: Parser, data: bytes) -> bool:
    """Show `data` to a parser; return whether it was accepted. Anything but a value or its refusal is an error."""
    try:
        value = parser.read(data)
    except parser.refusal:
        return False
    if parser.write is not None and parser.read(parser.write(value)) != value:
        raise AssertionError(f"written and read again it is another value: {data[:200]!r}")
    return True
