# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import struct
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats.certtable import MAX_ENTRY_BYTES, CertKind, CertTable, parse_cert_table
from tests import vectors

VCEK, ASK = uuid.UUID(CertKind.VCEK).bytes, uuid.UUID(CertKind.ASK).bytes


def table(*rows, blobs=b"", end=True):
    header = b"".join(struct.pack("<16sII", *row) for row in rows)
    return header + (bytes(24) if end else b"") + blobs


def test_encode_and_parse():
    made = CertTable(((CertKind.VCEK, b"vcek"), (CertKind.ASK, b"ask")))
    assert parse_cert_table(made.encode()) == made
    assert made.get(CertKind.ASK) == b"ask"
    assert made.get(CertKind.CRL) is None


@pytest.mark.parametrize("data", [b"", bytes(24), bytes(4096)])
def test_nothing_is_an_empty_table(data):
    assert parse_cert_table(data) == CertTable()
    assert CertTable().encode() == b""


def test_padding_to_a_page_is_accepted():
    data = CertTable(((CertKind.VCEK, b"vcek"),)).encode()
    assert parse_cert_table(data.ljust(4096, b"\0")) == parse_cert_table(data)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (table((VCEK, 48, 4), blobs=b"abc"), "inside"),
        (table((VCEK, 47, 4), blobs=b"abcd"), "inside"),
        (table((VCEK, 0, 4), blobs=b"abcd"), "inside"),
        (table((VCEK, 0xFFFFFFFF, 0xFFFF), blobs=b"abcd"), "bytes; required: 1 to"),
        (table((VCEK, 0xFFFFFFFF, 2), blobs=b"abcd"), "inside"),
        (table((VCEK, 48, 0), blobs=b"abcd"), "has 0 bytes"),
        (table((VCEK, 48, MAX_ENTRY_BYTES + 1), blobs=bytes(MAX_ENTRY_BYTES + 1)), "required: 1 to"),
        (table((VCEK, 72, 4), (ASK, 74, 4), blobs=b"abcdef"), "inside 76"),
        (table((VCEK, 72, 2), (VCEK, 74, 2), blobs=b"abcd"), "occurs twice"),
        (table((VCEK, 48, 4), blobs=b"abcdX"), "after 52"),
        (table((VCEK, 50, 4), blobs=b"X\0abcd"), "no entry covers"),
        (table((VCEK, 24, 4), end=False, blobs=b"abcd"), "no all-zero entry"),
        (table((VCEK, 24, 4), end=False), "no all-zero entry"),
        (table(*((bytes([n + 1]) * 16, 0, 1) for n in range(17))), "more than 16"),
        (bytes(65537), "has 65537 bytes"),
    ],
)
def test_one_wrong_field_is_refused(data, field):
    with pytest.raises(FormatError) as refusal:
        parse_cert_table(data)
    assert field in refusal.value.message


def test_the_shortest_and_the_longest_certificate_are_read():
    shortest = CertTable(((CertKind.VCEK, b"x"),))
    assert parse_cert_table(shortest.encode()) == shortest
    longest = CertTable(((CertKind.VCEK, b"x" * 16_384),))
    assert parse_cert_table(longest.encode()) == longest
    data = table((VCEK, 48, 16_385), blobs=b"x" * 16_385)
    with pytest.raises(FormatError, match="has 16385 bytes"):
        parse_cert_table(data)


def test_a_table_that_no_reader_takes_is_not_written():
    with pytest.raises(FormatError):
        CertTable(((CertKind.VCEK, b""),)).encode()


@pytest.mark.vectors
def test_a_real_auxblob_round_trips():
    data = vectors.read("veraison/tsm-auxblob-certtable.bin")
    parsed = parse_cert_table(data)
    assert [guid for guid, _ in parsed.entries] == [CertKind.ARK, CertKind.ASK, CertKind.VCEK]
    assert parsed.encode() == data


@given(st.binary(max_size=300))
def test_any_bytes_give_a_table_or_format_error(data):
    with contextlib.suppress(FormatError):
        parse_cert_table(data)


@given(
    st.lists(
        st.tuples(st.binary(min_size=16, max_size=16).filter(any), st.integers(0, 200), st.integers(0, 60)),
        min_size=1,
        max_size=4,
    ),
    st.binary(max_size=120),
)
def test_any_rows_give_a_table_or_format_error(rows, blobs):
    with contextlib.suppress(FormatError):
        parsed = parse_cert_table(table(*rows, blobs=blobs))
        assert parse_cert_table(parsed.encode()) == parsed
