# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import ConfigError, FormatError
from cvmtool.measure.hashes import TABLE_BYTES, KernelHashes, kernel_hashes, parse_table

HASHES = kernel_hashes(b"kernel", b"initrd", "console=ttyS0")


def test_hashes_are_those_of_the_files_and_of_the_line_with_its_nul():
    assert HASHES.kernel == hashlib.sha256(b"kernel").digest()
    assert HASHES.initrd == hashlib.sha256(b"initrd").digest()
    assert HASHES.cmdline == hashlib.sha256(b"console=ttyS0\0").digest()


def test_nothing_is_trimmed_from_the_command_line():
    assert kernel_hashes(b"", b"", "a ").cmdline != kernel_hashes(b"", b"", "a").cmdline


@pytest.mark.parametrize("line", ["a\0b", "\udcff"])
def test_a_command_line_that_no_launch_can_carry_is_refused(line):
    with pytest.raises(ConfigError) as refusal:
        kernel_hashes(b"", b"", line)
    assert refusal.value.message.startswith("cmdline")


@pytest.mark.parametrize("field", ["kernel", "initrd", "cmdline"])
def test_a_hash_of_another_size_is_refused(field):
    sizes = {"kernel": 32, "initrd": 32, "cmdline": 32, field: 31}
    with pytest.raises(FormatError) as refusal:
        KernelHashes(**{name: bytes(size) for name, size in sizes.items()})
    assert refusal.value.message.startswith(f"{field} hash")


def test_the_table_has_the_layout_that_edk2_reads():
    table = HASHES.table()
    assert len(table) == TABLE_BYTES
    assert table[:18].hex() == "06d63894224fc94cb479a793d411fd21a800"
    assert table[18:36].hex() == "d82dd09720bd944caa78e7714d36ab2a3200"
    assert table[36:68] == HASHES.cmdline
    assert table[86:118] == HASHES.initrd
    assert table[136:168] == HASHES.kernel
    assert table[168:] == bytes(8)


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_round_trip(kernel, initrd, cmdline):
    hashes = KernelHashes(kernel=kernel, initrd=initrd, cmdline=cmdline)
    assert parse_table(hashes.table()) == hashes


@given(st.integers(0, TABLE_BYTES - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_is_in_a_hash(position, change):
    table = bytearray(HASHES.table())
    table[position] ^= change
    in_a_hash = any(start <= position < start + 32 for start in (36, 86, 136))
    if in_a_hash:
        assert parse_table(bytes(table)) != HASHES
    else:
        with pytest.raises(FormatError):
            parse_table(bytes(table))


@given(st.binary(max_size=200))
def test_any_bytes_give_a_table_or_format_error(data):
    with contextlib.suppress(FormatError):
        assert parse_table(data).table() == data
