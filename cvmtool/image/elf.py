# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What an ELF file needs and carries: shared libraries, soname, and a kernel module's own description.

Zone: image. Pure: no I/O.
Spec: System V ABI, ELF-64 little endian; `man 5 elf`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cvmtool.errors import FormatError

MAGIC = b"\x7fELF\x02\x01\x01"  # 64 bit, little endian, version 1
_MAX_ENTRIES = 65536
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB = 1, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Linkage:
    """What the dynamic linker must find for a program or library."""

    needed: tuple[str, ...]
    interpreter: str
    """Empty for a library or a static program."""


def is_elf(head: bytes) -> bool:
    """Say whether a file begins as a 64-bit little-endian ELF file."""
    return head.startswith(MAGIC)


def linkage(data: bytes) -> Linkage:
    """Read what an ELF file links to.

    Raises:
        FormatError: not ELF, or its headers point outside it.
    """
    segments = _segments(data)
    interpreter = ""
    loads = []
    dynamic = b""
    for kind, offset, address, size in segments:
        if kind == _PT_LOAD:
            loads.append((offset, address, size))
        elif kind == _PT_DYNAMIC:
            dynamic = _cut(data, offset, size)
        elif kind == _PT_INTERP:
            interpreter = _text(data, offset)
    names = []
    strings = None
    for at in range(0, len(dynamic) - 15, 16):
        tag, value = struct.unpack_from("<QQ", dynamic, at)
        if tag == _DT_NEEDED:
            names.append(value)
        elif tag == _DT_STRTAB:
            strings = value
        elif tag == 0:
            break
    if names and strings is None:
        raise FormatError("ELF: the dynamic section has no string table; one is required")
    base = _file_offset(loads, strings or 0) if names else 0
    return Linkage(needed=tuple(_text(data, base + name) for name in names), interpreter=interpreter)


def modinfo(data: bytes) -> dict[str, list[str]]:
    """Read the `.modinfo` section of a kernel module: `depends`, `softdep`, `alias`, `name` and others.

    Raises:
        FormatError: not ELF, no such section, or its headers point outside it.
    """
    for name, offset, size in _sections(data):
        if name == ".modinfo":
            values: dict[str, list[str]] = {}
            for item in _cut(data, offset, size).split(b"\0"):
                key, equals, value = item.decode("utf-8", "replace").partition("=")
                if equals:
                    values.setdefault(key, []).append(value)
            return values
    raise FormatError("ELF: there is no .modinfo section; a kernel module has one")


def _header(data: bytes) -> tuple[int, int, int, int, int]:
    if len(data) < 64 or not is_elf(data):
        raise FormatError("ELF: the header is not that of a 64-bit little-endian file")
    phoff, shoff = struct.unpack_from("<QQ", data, 32)
    phnum, _, shnum, shstrndx = struct.unpack_from("<HHHH", data, 56)
    return phoff, shoff, phnum, shnum, shstrndx


def _segments(data: bytes) -> list[tuple[int, int, int, int]]:
    phoff, _, phnum, _, _ = _header(data)
    table = _cut(data, phoff, phnum * 56)
    found = []
    for index in range(phnum):
        kind, _, offset, address, _, size, _, _ = struct.unpack_from("<IIQQQQQQ", table, index * 56)
        found.append((kind, offset, address, size))
    return found


def _sections(data: bytes) -> list[tuple[str, int, int]]:
    _, shoff, _, shnum, shstrndx = _header(data)
    table = _cut(data, shoff, shnum * 64)
    rows = [struct.unpack_from("<IIQQQQ", table, index * 64) for index in range(shnum)]
    if shstrndx >= len(rows):
        raise FormatError(f"ELF: section {shstrndx} names the sections, and there are {len(rows)}")
    names = rows[shstrndx][4]
    return [(_text(data, names + row[0]), row[4], row[5]) for row in rows if row[1] != 8]  # 8: no bytes in the file


def _file_offset(loads: list[tuple[int, int, int]], address: int) -> int:
    for offset, start, size in loads:
        if start <= address < start + size:
            return address - start + offset
    raise FormatError(f"ELF: address {address:#x} is in no segment of the file")


def _cut(data: bytes, offset: int, size: int) -> bytes:
    if offset + size > len(data):
        raise FormatError(f"ELF: {size} bytes at {offset} run past the end, which is at {len(data)}")
    return data[offset : offset + size]


def _text(data: bytes, offset: int) -> str:
    end = data.find(b"\0", offset, offset + _MAX_ENTRIES)
    if offset > len(data) or end < 0:
        raise FormatError(f"ELF: the string at {offset} does not end")
    return data[offset:end].decode("utf-8", "replace")
