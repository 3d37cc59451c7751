# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats.idblock import (
    ID_AUTH_BYTES,
    P384_PRIME,
    Author,
    IdAuth,
    IdBlock,
    P384Key,
    Signature,
    parse_id_auth,
    parse_id_block,
    parse_key,
)
from cvmtool.formats.policybits import GuestPolicy
from cvmtool.formats.report import P384_ORDER
from tests import vectors

# The generator of P-384 and its negative: points that everybody knows.
X = 0xAA87CA22BE8B05378EB1C71EF320AD746E1D3B628BA79B9859F741E082542A385502F25DBF55296C3A545E3872760AB7
Y = 0x3617DE4A96262C6F5D9E98BF9292DC29F8F41DBD289A147CE9DA3113B5F0B8C00A60B1CE1D7E819D7A431D7C90EA0E5F
KEY, OTHER = P384Key(x=X, y=Y), P384Key(x=X, y=P384_PRIME - Y)
SIGNATURE = Signature(r=1, s=P384_ORDER - 1)
BLOCK = IdBlock(digest=b"D" * 48, family_id=b"F" * 16, image_id=b"I" * 16, guest_svn=7, policy=GuestPolicy(0x3001F))
AUTH = IdAuth(key=KEY, signature=SIGNATURE, author=Author(key=OTHER, signature=Signature(r=2, s=3)))


def changed(data, offset, value):
    return data[:offset] + value + data[offset + len(value) :]


def test_a_block_byte_for_byte():
    expected = b"D" * 48 + b"F" * 16 + b"I" * 16 + struct.pack("<IIQ", 1, 7, 0x3001F)
    assert BLOCK.encode() == expected
    assert parse_id_block(expected) == BLOCK


def test_the_least_block_has_the_policy_that_every_guest_has():
    assert IdBlock(digest=bytes(48)).encode() == bytes(80) + struct.pack("<IIQ", 1, 0, 0x30000)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (BLOCK.encode() + b"\0", "97 bytes"),
        (BLOCK.encode()[:-1], "95 bytes"),
        (changed(BLOCK.encode(), 80, b"\2"), "version is 2"),
        (changed(BLOCK.encode(), 90, b"\0"), "policy"),
        (changed(BLOCK.encode(), 95, b"\1"), "policy"),
    ],
)
def test_a_wrong_block_is_refused(data, field):
    with pytest.raises(FormatError) as refused:
        parse_id_block(data)
    assert field in refused.value.message


@pytest.mark.parametrize(
    "wrong", [{"digest": b"x"}, {"family_id": b""}, {"image_id": bytes(17)}, {"guest_svn": 1 << 32}, {"guest_svn": -1}]
)
def test_a_block_that_cannot_be_written_is_not_made(wrong):
    with pytest.raises(FormatError) as refused:
        IdBlock(**{"digest": bytes(48), **wrong})
    assert next(iter(wrong)) in refused.value.message


@pytest.mark.parametrize("auth", [AUTH, IdAuth(key=KEY, signature=SIGNATURE)], ids=["author", "alone"])
def test_an_authentication_there_and_back(auth):
    data = auth.encode()
    assert len(data) == ID_AUTH_BYTES
    assert parse_id_auth(data) == auth
    assert data[0x240:0x644] == KEY.encode()
    assert data[0x40:0x58] == (1).to_bytes(24, "little")


def test_without_an_author_its_algorithm_may_be_zero():
    alone = IdAuth(key=KEY, signature=SIGNATURE)
    assert parse_id_auth(changed(alone.encode(), 4, b"\0")) == alone


@pytest.mark.parametrize("data", [AUTH.encode()[:-1], AUTH.encode() + b"\0", b""])
def test_an_authentication_of_another_size_is_refused(data):
    with pytest.raises(FormatError, match=f"id auth has {len(data)} bytes; required: 4096"):
        parse_id_auth(data)


@pytest.mark.parametrize(
    ("offset", "value", "field"),
    [
        (0, b"\2", "algorithm is 2"),
        (0, b"\0", "algorithm is 0"),
        (4, b"\0", "author's algorithm is 0"),
        (4, b"\2", "author's algorithm is 2"),
        (8, b"\1", "reserved"),
        (0x3F, b"\1", "reserved"),
        (0x644, b"\1", "reserved"),
        (0xC84, b"\1", "reserved"),
        (0xFFF, b"\1", "reserved"),
        (0x40, bytes(48), "signature r"),
        (0x88, b"\xff" * 48, "signature s"),
        (0x40 + 144, b"\1", "behind its numbers"),
        (0x240, b"\1", "curve is 1"),
        (0x244, b"\0", "no point"),
        (0x244 + 144, b"\1", "behind its coordinates"),
        (0x880, b"\1", "curve is 1"),
        (0x880, bytes(0x404), "curve is 0"),
        (0x680, bytes(512), "signature r"),
    ],
)
def test_one_wrong_field_is_refused(offset, value, field):
    with pytest.raises(FormatError) as refused:
        parse_id_auth(changed(AUTH.encode(), offset, value))
    assert field in refused.value.message


def test_an_unknown_author_algorithm_is_refused_without_an_author_too():
    with pytest.raises(FormatError):
        parse_id_auth(changed(IdAuth(key=KEY, signature=SIGNATURE).encode(), 4, b"\2"))


@pytest.mark.parametrize(("x", "y"), [(X, Y + 1), (X + P384_PRIME, Y), (X, Y + P384_PRIME), (-1, Y), (0, 0)])
def test_a_point_off_the_curve_is_no_key(x, y):
    with pytest.raises(FormatError):
        P384Key(x=x, y=y)


def test_a_coordinate_is_below_the_prime():
    """X may be 0, and its point must then not be spelled with the prime as well."""
    b = (Y**2 - X**3 + 3 * X) % P384_PRIME
    root = pow(b, (P384_PRIME + 1) // 4, P384_PRIME)
    assert root * root % P384_PRIME == b
    assert P384Key(x=0, y=root).y == root
    with pytest.raises(FormatError):
        P384Key(x=P384_PRIME, y=root)


@pytest.mark.parametrize("numbers", [(0, 1), (1, 0), (P384_ORDER, 1), (1, P384_ORDER)])
def test_a_signature_is_within_the_order(numbers):
    with pytest.raises(FormatError):
        Signature(r=numbers[0], s=numbers[1])
    assert Signature(r=P384_ORDER - 1, s=P384_ORDER - 1)


@pytest.mark.parametrize("size", [0, 1027, 1029])
def test_a_key_has_one_size(size):
    with pytest.raises(FormatError):
        parse_key(KEY.encode().ljust(size, b"\0")[:size])


@given(st.binary(max_size=200) | st.binary(min_size=96, max_size=96))
def test_any_bytes_are_a_block_or_a_format_error(data):
    with contextlib.suppress(FormatError):
        assert parse_id_block(data).encode() == data


@given(st.integers(0, ID_AUTH_BYTES - 1), st.binary(min_size=1, max_size=60))
def test_any_change_is_a_value_or_a_format_error(offset, value):
    data = changed(AUTH.encode(), offset, value)[:ID_AUTH_BYTES]
    with contextlib.suppress(FormatError):
        assert parse_id_auth(data).encode() == data


@pytest.mark.vectors
def test_a_real_authentication():
    data = vectors.read("launch-measurement/test_auth_block.bin")
    auth = parse_id_auth(data)
    assert auth.encode() == data
    assert auth.signature.encode() == vectors.read("launch-measurement/test_id_sig.bin")
    assert auth.author.signature.encode() == vectors.read("launch-measurement/test_auth_sig.bin")
    assert auth.key.digest.hex().startswith("59fb2c686dfa4fef49f38339aa775c90")
    assert auth.author.key.digest.hex().startswith("eed81169fb0cb5e0ec34794f128fd4e0")
