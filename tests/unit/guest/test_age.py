# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import VerificationError
from cvmtool.formats.age import CHUNK, parse_header, sealed_size
from cvmtool.formats.wire import MAX_FRAME
from cvmtool.guest.age import AgeFile
from cvmtool.owner.ageopen import open_age
from cvmtool.owner.keystore import OwnerKeys
from tests.unit.guest import samples

READER, OTHER = OwnerKeys(b"reader__" * 4), OwnerKeys(b"another_" * 4)
SIZES = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 15 * CHUNK, 16 * CHUNK + 7, 61 * CHUNK + 5]


def content(size):
    return bytes(index * 7 % 251 for index in range(4096)) * (size // 4096) + b"." * (size % 4096)


def age_file(data, *readers):
    return AgeFile(samples.filling(data), len(data), tuple(reader.recipient for reader in readers or (READER,)))


def open_(sealed, keys=READER):
    return b"".join(open_age(io.BytesIO(sealed).read, [keys.age_identity]))


@pytest.mark.parametrize("size", SIZES)
def test_what_is_sealed_opens_and_has_the_size_that_was_said(size):
    file = age_file(content(size))
    sealed = b"".join(file.read_from(0))
    assert open_(sealed) == content(size)
    assert len(sealed) == file.size == sealed_size(size, 1)


def test_each_recipient_opens_it_and_nobody_else():
    sealed = b"".join(age_file(b"weights", READER, OTHER).read_from(0))
    assert open_(sealed, READER) == open_(sealed, OTHER) == b"weights"
    with pytest.raises(VerificationError, match="sealed to 2 keys"):
        open_(sealed, OwnerKeys(b"stranger" * 4))


@pytest.mark.parametrize("size", [1, 20 * CHUNK + 3])
@given(data=st.data())
def test_the_same_bytes_come_again_from_any_offset(size, data):
    file = FILES[size]
    offset = data.draw(st.integers(0, file.size))
    assert b"".join(file.read_from(offset)) == SEALED[size][offset:]


FILES = {size: age_file(content(size)) for size in (1, 20 * CHUNK + 3)}
SEALED = {size: b"".join(file.read_from(0)) for size, file in FILES.items()}


def test_no_piece_is_larger_than_a_frame():
    assert max(len(piece) for piece in FILES[20 * CHUNK + 3].read_from(0)) <= MAX_FRAME


def test_no_key_is_used_for_two_files():
    one, other = (b"".join(age_file(content(CHUNK)).read_from(0)) for _ in range(2))
    assert one[: parse_header(one).size] != other[: parse_header(other).size]
    assert one[-CHUNK:] != other[-CHUNK:]


def test_a_stream_that_is_left_early_ends_its_thread():
    pieces = FILES[20 * CHUNK + 3].read_from(0)
    next(pieces)
    pieces.close()
    with pytest.raises(StopIteration):
        next(pieces)
