# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats import age

SHARE = age.unpadded(b"s" * 32).decode()
STANZA = age.Stanza(kind="X25519", arguments=(SHARE,), body=b"k" * 32)
HEADER = age.encode_stanzas([STANZA]) + age.encode_mac(b"m" * 32)

STANZAS = st.builds(
    age.Stanza,
    kind=st.text("abcXYZ019-!~", min_size=1, max_size=9),
    arguments=st.lists(st.text("abc/+=", min_size=1, max_size=9), max_size=3).map(tuple),
    body=st.binary(max_size=200),
)


def test_a_header_is_written_as_age_does():
    assert HEADER == (
        b"age-encryption.org/v1\n"
        b"-> X25519 c3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3M\n"
        b"a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s\n"
        b"--- bW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW0\n"
    )


@pytest.mark.parametrize(
    ("size", "lines"), [(0, [0]), (1, [2]), (47, [63]), (48, [64, 0]), (49, [64, 2]), (96, [64, 64, 0])]
)
def test_a_body_ends_with_a_line_that_is_not_full(size, lines):
    stanza = age.Stanza(kind="x", arguments=(), body=b"b" * size)
    written = age.encode_stanzas([stanza, STANZA])
    body = written.split(b"-> x\n")[1].split(b"\n-> X25519")[0]
    assert [len(line) for line in body.split(b"\n")] == lines
    assert age.parse_header(written + age.encode_mac(b"m" * 32)).stanzas == (stanza, STANZA)


def test_only_padding_is_left_out():
    assert age.unpadded(b"\0\0\x17") == b"AAAX"
    assert age.unpadded(b"\0") == b"AA"


@given(st.lists(STANZAS, min_size=1, max_size=5), st.binary(max_size=99))
def test_what_is_written_is_read(stanzas, rest):
    written = age.encode_stanzas(stanzas) + age.encode_mac(b"m" * 32)
    header = age.parse_header(written + rest)
    assert header.stanzas == tuple(stanzas)
    assert header.mac == b"m" * 32
    assert header.authenticated == age.encode_stanzas(stanzas)
    assert header.size == len(written)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        (b"org/v1", b"org/v2", "required"),
        (b"-> X25519", b"=> X25519", "stanza"),
        (b"-> X25519", b"->  X25519", "stanza"),
        (b"-> X25519", b"->\n-> X25519", "stanza"),
        (b"X25519 c3", b"X25519 \x7fc3", "stanza"),
        (b"s\n--- ", b"t\n--- ", "canonical"),
        (b"s\n--- ", b"s=\n--- ", "canonical"),
        (b"s\n--- ", b"*\n--- ", "base64"),
        (b"\n--- ", b"\r\n--- ", "base64"),
        (b"--- bW", b"--- bWbW", "MAC"),
        (b"--- bW1t", b"--- bW1", "MAC"),
        (b"--- ", b"---", "no end|stanza"),
        (b"W0\n", b"W0", "no end"),
    ],
)
def test_a_malformed_header_is_refused(old, new, named):
    assert old in HEADER
    with pytest.raises(FormatError, match=named):
        age.parse_header(HEADER.replace(old, new, 1))


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_mac_has_32_bytes(size):
    with pytest.raises(FormatError, match=f"MAC has {size} bytes"):
        age.parse_header(age.encode_stanzas([STANZA]) + age.encode_mac(bytes(size)))


@pytest.mark.parametrize("size", [31, 33])
def test_a_share_has_32_bytes(size):
    with pytest.raises(FormatError, match=f"share has {size} bytes"):
        age.parse_share(age.unpadded(bytes(size)).decode())


def _with_header_of(size):
    """A header of one stanza whose kind takes what is left of `size` bytes."""
    rest = age.encode_stanzas([age.Stanza(kind="", arguments=(), body=b"")]) + age.encode_mac(bytes(32))
    return rest.replace(b"-> ", b"-> " + b"k" * (size - len(rest)))


def test_a_header_is_bounded():
    def with_stanzas(number):
        return age.encode_stanzas([STANZA] * number) + age.encode_mac(bytes(32))

    assert len(age.parse_header(with_stanzas(256)).stanzas) == 256
    with pytest.raises(FormatError, match="more than 256"):
        age.parse_header(with_stanzas(257))
    assert age.parse_header(_with_header_of(65_536) + b"nonce").size == 65_536
    with pytest.raises(FormatError, match="no end within 65536 bytes"):
        age.parse_header(_with_header_of(65_537))
    with pytest.raises(FormatError, match="no recipient"):
        age.parse_header(age.encode_stanzas([]) + age.encode_mac(bytes(32)))


@given(st.binary(max_size=300), st.integers(0, len(HEADER)))
def test_any_bytes_are_a_header_or_a_format_error(data, kept):
    for text in (data, HEADER[:kept] + data, HEADER[:kept] + data + HEADER[kept + len(data) :]):
        with contextlib.suppress(FormatError):
            assert isinstance(age.parse_header(text), age.Header)


@pytest.mark.parametrize(
    ("size", "chunks"), [(0, 1), (1, 1), (age.CHUNK, 1), (age.CHUNK + 1, 2), (2 * age.CHUNK, 2), (1 << 30, 1 << 14)]
)
def test_a_content_has_as_many_chunks_as_it_needs(size, chunks):
    assert age.chunks_of(size) == chunks
    assert age.sealed_size(size, 1) == len(HEADER) + age.NONCE + size + chunks * age.TAG
