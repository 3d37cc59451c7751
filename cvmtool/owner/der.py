# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A strict reader of DER, as much of it as AMD's certificates and revocation lists use.

Zone: owner (trusted). Pure: no I/O.
Spec: ITU-T X.690 (DER): one encoding per value, definite and minimal lengths.

Why not the library's parser: AMD numbers every VCEK 0, which RFC 5280 forbids; `cryptography` warns today and says it
will refuse tomorrow. Keys and signatures stay the library's; the narrow profile that AMD issues is read here, and what
is not in it is refused.
"""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache

from cvmtool.errors import FormatError

BOOLEAN = 0x01
INTEGER = 0x02
BIT_STRING = 0x03
OCTET_STRING = 0x04
OID = 0x06
UTF8_STRING = 0x0C
PRINTABLE_STRING = 0x13
IA5_STRING = 0x16
UTC_TIME = 0x17
GENERALIZED_TIME = 0x18
SEQUENCE = 0x30
SET = 0x31

MAX_INTEGER_BYTES = 21
"""A serial number has at most 20 bytes, and one of sign."""


def context(number: int) -> int:
    """Return the tag of a constructed, context-specific element."""
    return 0xA0 | number


@lru_cache(maxsize=256)
def _dotted(content: bytes) -> str | None:
    """Return an object identifier of at most 32 bytes in dotted form, None if one of its arcs is padded."""
    arcs, value, start = [], 0, True
    for byte in content:
        if start and byte == 0x80:
            return None
        value = value << 7 | byte & 0x7F
        start = not byte & 0x80
        if start:
            arcs.append(value)
            value = 0
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, (first, arcs[0] - 40 * first, *arcs[1:])))


class Der:
    """A cursor over DER elements; `what` names the thing in refusals."""

    __slots__ = ("_at", "_data", "_size", "_what")

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._size = len(data)
        self._at = 0
        self._what = what

    def peek(self) -> int | None:
        """Return the tag of the next element, None at the end."""
        return self._data[self._at] if self._at < self._size else None

    def take(self, tag: int) -> bytes:
        """Return the content of the next element, which must have this tag.

        Raises:
            FormatError: another tag, the end, or a length that is not minimal or runs out of bounds.
        """
        data, at, size = self._data, self._at, self._size
        if at + 2 > size or data[at] != tag:
            found = f"{data[at]:#04x}" if at < size else "its end"
            raise FormatError(f"{self._what} has {found} at byte {at}; required: der element {tag:#04x}")
        length, start = data[at + 1], at + 2
        if length & 0x80:
            length, start = self._long_length()
        end = start + length
        if end > size:
            raise FormatError(f"{self._what} has a der element of {length} bytes at byte {at}; {size - start} are left")
        self._at = end
        return data[start:end]

    def take_whole(self, tag: int) -> bytes:
        """Return the next element with its header; refusals as `take`."""
        before = self._at
        self.take(tag)
        return self._data[before : self._at]

    def enter(self, tag: int) -> Der:
        """Return a cursor over the content of the next element; refusals as `take`."""
        return Der(self.take(tag), self._what)

    def finish(self) -> None:
        """Refuse bytes that are left.

        Raises:
            FormatError: the cursor is not at the end.
        """
        if self._at != self._size:
            raise FormatError(f"{self._what} has {self._size - self._at} bytes too many; required: none")

    def integer(self) -> int:
        """Return the next INTEGER, which must not be negative; refusals as `take`."""
        content = self.take(INTEGER)
        value = int.from_bytes(content, "big")
        if len(content) > MAX_INTEGER_BYTES or content != value.to_bytes(value.bit_length() // 8 + 1, "big"):
            raise FormatError(f"{self._what} has an integer {content.hex()[:48]}; required: minimal, not negative")
        return value

    def boolean(self) -> bool:
        """Return the next BOOLEAN; refusals as `take`."""
        content = self.take(BOOLEAN)
        if content not in (b"\x00", b"\xff"):
            raise FormatError(f"{self._what} has a boolean {content.hex()[:16]}; required: 00 or ff")
        return content == b"\xff"

    def bits(self) -> bytes:
        """Return the bytes of the next BIT STRING, which must have no unused bits; refusals as `take`."""
        content = self.take(BIT_STRING)
        if content[:1] != b"\0":
            raise FormatError(f"{self._what} has a bit string with unused bits; required: whole bytes")
        return content[1:]

    def oid(self) -> str:
        """Return the next OBJECT IDENTIFIER in dotted form; refusals as `take`."""
        content = self.take(OID)
        if not content or content[-1] & 0x80 or len(content) > 32:
            raise FormatError(f"{self._what} has an object identifier {content.hex()[:64]} that does not end")
        dotted = _dotted(content)
        if dotted is None:
            raise FormatError(f"{self._what} has an object identifier {content.hex()} with padding")
        return dotted

    def text(self) -> str:
        """Return the next UTF8String, PrintableString or IA5String; refusals as `take`."""
        tag = self.peek()
        if tag not in (UTF8_STRING, PRINTABLE_STRING, IA5_STRING):
            raise FormatError(f"{self._what} has an element {tag} where text is required")
        content = self.take(tag)
        try:
            return content.decode("utf-8" if tag == UTF8_STRING else "ascii")
        except UnicodeDecodeError:
            raise FormatError(f"{self._what} has text that does not decode: {content.hex()[:64]}") from None

    def time(self) -> datetime:
        """Return the next UTCTime or GeneralizedTime, to the second and in UTC; refusals as `take`."""
        tag = self.peek()
        if tag not in (UTC_TIME, GENERALIZED_TIME):
            raise FormatError(f"{self._what} has an element {tag} where a time is required")
        content = self.take(tag)
        digits = content[:-1]
        length = 12 if tag == UTC_TIME else 14
        if len(digits) != length or not digits.isdigit() or content[-1:] != b"Z":
            raise FormatError(f"{self._what} has a time {content.hex()[:48]}; required: to the second, in utc")
        text = digits.decode("ascii")
        if tag == UTC_TIME:  # RFC 5280 4.1.2.5.1
            text = ("19" if text[:2] >= "50" else "20") + text
        try:
            moment = datetime.fromisoformat(f"{text[:8]}T{text[8:]}Z")
        except ValueError:
            moment = None
        if moment is None or text[8:10] == "24":  # in ISO 8601 that is the midnight of the day after
            raise FormatError(f"{self._what} has a time {text} that does not exist")
        return moment

    def _long_length(self) -> tuple[int, int]:
        """Return the length of the next element, spelled in more than one byte, and where its content starts."""
        at = self._at + 2
        count = self._data[at - 1] & 0x7F
        raw = self._data[at : at + count]
        length = int.from_bytes(raw, "big")
        # Two bytes of length are 64 KiB, above every cap on what reaches this reader.
        if not 1 <= count <= 2 or len(raw) != count or length < 0x80 or raw[0] == 0:
            raise FormatError(
                f"{self._what} has a der length {raw.hex()} at byte {self._at}; required: definite, minimal"
            )
        return length, at + count
