# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Text of a file, line by line, of which none may be longer than memory can bear.

Zone: data (the owner's machine).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

from cvmtool.errors import FormatError
from cvmtool.formats.scrubbing import Encoding

MAX_LINE = 1 << 20  # characters
_CODECS = {
    Encoding.UTF_8: "utf-8-sig",
    Encoding.UTF_16: "utf-16",
    Encoding.LATIN_1: "latin-1",
    Encoding.WINDOWS_1252: "cp1252",
}


def lines(file: BinaryIO, encoding: Encoding) -> Iterator[str]:
    """Yield the lines of a file with their ends, as they are (LF, CR or both).

    Raises:
        FormatError: bytes that are no text in this encoding, a character of value 0, or a line of more than 1 MiB.
    """
    with io.TextIOWrapper(file, encoding=_CODECS[encoding], errors="strict", newline="") as text:
        number = 0
        while line := _line(text, encoding, number):
            number += 1
            yield line


def _line(text: io.TextIOWrapper, encoding: Encoding, number: int) -> str:
    try:
        line = text.readline(MAX_LINE + 1)
    except (UnicodeDecodeError, UnicodeError) as error:
        reason = error.reason if isinstance(error, UnicodeDecodeError) else "no such text"
        raise FormatError(
            f"behind line {number} are bytes that are not {encoding}: {reason}",
            hint="say how it is written: encoding = ..., of utf-8, utf-16, latin-1, windows-1252",
        ) from None
    if len(line) > MAX_LINE:
        raise FormatError(f"line {number + 1} has more than {MAX_LINE} characters; required: at most as many")
    if "\0" in line:
        raise FormatError(f"line {number + 1} has a character of value 0; required: text in {encoding}")
    return line
