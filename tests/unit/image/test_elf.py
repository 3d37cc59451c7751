# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""ELF files: what they need, and that no bytes break the reader."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.image.elf import MAGIC, is_elf, linkage, modinfo
from tests.unit.image.parts import make_elf, make_module

PROGRAM = Path("/bin/ls").read_bytes()[:200_000]


def test_a_real_program_names_its_libraries() -> None:
    links = linkage(Path("/bin/ls").read_bytes())
    assert "libc.so.6" in links.needed
    assert links.interpreter == "/lib64/ld-linux-x86-64.so.2"


def test_modinfo_lists_every_value() -> None:
    info = modinfo(make_module(depends="a,b"))
    assert info["depends"] == ["a,b"]
    assert info["license"] == ["GPL"]


def test_no_modinfo_is_refused() -> None:
    with pytest.raises(FormatError, match="modinfo"):
        modinfo(make_elf({".text": b""}))


def test_the_head_tells_elf() -> None:
    assert is_elf(Path(sys.executable).resolve().read_bytes()[:16])
    assert not is_elf(b"#!/bin/sh")


@given(st.binary(max_size=300))
def test_any_bytes_behind_the_magic(data: bytes) -> None:
    for reader in (linkage, modinfo):
        try:
            reader(MAGIC + data)
        except FormatError:
            continue


@given(st.integers(0, 0x3FF), st.binary(min_size=1, max_size=8))
def test_a_damaged_header_is_a_format_error_or_a_value(at: int, patch: bytes) -> None:
    for reader, base in ((linkage, PROGRAM), (modinfo, make_module(depends="a"))):
        data = base[:at] + patch + base[at + len(patch) :]
        try:
            reader(data)
        except FormatError:
            continue
