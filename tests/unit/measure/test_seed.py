# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.measure.launch import firmware_seed
from cvmtool.measure.seed import MAX_SEED_BYTES, encode_seed, parse_seed
from tests.unit.measure.test_ovmf import SECTIONS, firmware, metadata

SEED = firmware_seed(firmware(pages=3))
DOCUMENT = json.loads(encode_seed(SEED))


@pytest.mark.parametrize("image", [firmware(), firmware(table=None, meta=metadata(SECTIONS[:3])), firmware(pages=9)])
def test_a_seed_there_and_back(image):
    seed = firmware_seed(image)
    assert parse_seed(encode_seed(seed)) == seed


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"schema": "cvmtool/firmware-seed/v2"}, "schema"),
        ({"more": 1}, "more"),
        ({"size": 0}, "size"),
        ({"size": 4097}, "size"),
        ({"size": (64 << 20) + 4096}, "size"),
        ({"size": True}, "size"),
        ({"digest": "00"}, "digest"),
        ({"digest": None}, "digest"),
        ({"reset_eip": -1}, "reset_eip"),
        ({"reset_eip": 1 << 32}, "reset_eip"),
        ({"hash_table_gpa": "0"}, "hash_table_gpa"),
        ({"hash_table_gpa": 0x900000}, "hash table"),
        ({"hash_table_gpa": None}, "hash table"),
        ({"hash_table_size": 1 << 33}, "hash_table_size"),
        ({"sections": []}, "0 sections"),
        ({"sections": [1]}, "section"),
        ({"sections": [{"gpa": 0, "size": 4096}]}, "kind"),
        ({"sections": [{"gpa": 0, "size": 4096, "kind": 5}]}, "type"),
        ({"sections": [{"gpa": 1, "size": 4096, "kind": 1}]}, "whole pages"),
        ({"sections": [{"gpa": 0, "size": 4096, "kind": 1}] * 2}, "overlaps"),
        ({"sections": [{"gpa": n << 12, "size": 4096, "kind": 1} for n in range(65)]}, "65 sections"),
    ],
)
def test_one_wrong_field_is_refused(change, field):
    with pytest.raises(FormatError) as refused:
        parse_seed(json.dumps({**DOCUMENT, **change}).encode())
    assert field in refused.value.message


@pytest.mark.parametrize("key", DOCUMENT)
def test_every_key_is_required(key):
    with pytest.raises(FormatError) as refused:
        parse_seed(json.dumps({name: value for name, value in DOCUMENT.items() if name != key}).encode())
    assert key in refused.value.message


def test_as_many_sections_as_a_firmware_may_have():
    rows = [{"gpa": n << 12, "size": 4096, "kind": 1} for n in range(64)]
    document = {**DOCUMENT, "sections": rows, "hash_table_gpa": None, "hash_table_size": 0}
    assert len(parse_seed(json.dumps(document).encode()).firmware.sections) == 64


def test_a_seed_without_end_is_refused():
    with pytest.raises(FormatError):
        parse_seed(encode_seed(SEED) + b" " * MAX_SEED_BYTES)


@given(st.binary(max_size=200) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(str).map(str.encode))
def test_any_bytes_are_a_seed_or_a_format_error(data):
    with contextlib.suppress(FormatError):
        parse_seed(data)


@given(
    st.sampled_from(sorted(DOCUMENT)),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["gpa", "size", "kind"]), inner),
        max_leaves=8,
    ),
)
def test_any_value_is_a_seed_or_a_format_error(key, value):
    with contextlib.suppress(FormatError):
        parse_seed(json.dumps({**DOCUMENT, key: value}).encode())
