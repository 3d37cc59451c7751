# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats.pack import NAME, Role, parse_pack_descriptor
from tests.samples import pack
from tests.unit.formats.test_wire import JSON

BASE = pack("data").to_json()


@pytest.mark.parametrize("role", Role)
def test_a_descriptor_round_trips(role):
    descriptor = pack("data", role)
    assert parse_pack_descriptor(json.loads(json.dumps(descriptor.to_json()))) == descriptor


def test_the_serial_is_the_beginning_of_the_root_hash():
    assert pack("data").serial == pack("data").root_hash[:20]


@pytest.mark.parametrize("key", BASE)
def test_every_key_is_required_and_no_other_is_known(key):
    with pytest.raises(FormatError, match=key):
        parse_pack_descriptor({name: value for name, value in BASE.items() if name != key})
    with pytest.raises(FormatError, match="unknown"):
        parse_pack_descriptor({**BASE, "passphrase": "x"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", ""),
        ("name", "Data"),
        ("name", "../x"),
        ("name", "a/b"),
        ("name", ".a"),
        ("name", "a-"),
        ("name", "a" * 65),
        ("name", "data\n"),
        ("role", "output"),
        ("role", 1),
        ("root_hash", "ab"),
        ("root_hash", "AB" * 32),
        ("salt", "zz" * 32),
        ("header_sha256", None),
        ("luks_uuid", "01234567-89AB-cdef-0123-456789abcdef"),
        ("luks_uuid", "0123456789abcdef0123456789abcdef"),
        ("luks_uuid", "01234567-89ab-cdef-0123-456789abcdef\n"),
        ("volume_key_digest", "A" * 44),
        ("volume_key_digest", "A" * 42 + "B="),
        ("volume_key_digest", "A" * 40),
        ("data_blocks", 4096),
        ("data_blocks", 5000.0),
        ("data_blocks", True),
        ("data_blocks", 5001),
        ("data_blocks", 1 << 41),
        ("hash_offset", 5000 * 4096 + 4096),
        ("hash_offset", -4096),
        ("size", 5000 * 4096),
        ("size", 5000 * 4096 + 4097),
        ("size", 4096),
        ("size", 1 << 60),
    ],
)
def test_a_value_out_of_shape_is_refused_and_named(key, value):
    named = {"data_blocks": "data_blocks|hash_offset", "size": "size"}.get(key, key)
    with pytest.raises(FormatError, match=named):
        parse_pack_descriptor({**BASE, key: value})


def sized(blocks, size=None):
    return {**BASE, "data_blocks": blocks, "hash_offset": blocks * 4096, "size": size or (blocks + 1) * 4096}


def test_the_smallest_and_the_largest_pack():
    for blocks in (257, (1 << 40) - 1):
        assert parse_pack_descriptor(sized(blocks)).data_blocks == blocks
    with pytest.raises(FormatError, match=r"pack\.data_blocks"):
        parse_pack_descriptor(sized(256))
    with pytest.raises(FormatError, match=r"pack\.size is"):
        parse_pack_descriptor(sized((1 << 40) - 1, size=(1 << 52) + 4096))


@given(st.sampled_from(sorted(BASE)), JSON)
def test_any_value_is_a_descriptor_or_a_format_error(key, value):
    with contextlib.suppress(FormatError):
        changed = {**BASE, key: value}
        assert parse_pack_descriptor(changed).to_json() == changed


@given(st.from_regex(NAME, fullmatch=True))
def test_a_name_is_a_single_visible_part_of_a_path(name):
    assert "/" not in name
    assert name not in {".", ".."}
    assert name.isprintable()
    assert len(name) <= 64
