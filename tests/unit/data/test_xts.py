# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The system's OpenSSL against `cryptography`."""

import secrets

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.data import xts
from cvmtool.data.xts import SectorCipher
from cvmtool.errors import BuildError
from cvmtool.formats.pack import BLOCK

KEY = bytearray(secrets.token_bytes(64))
PLAIN = bytearray(secrets.token_bytes(5 * BLOCK))


def expected(start, plain, key=KEY):
    sectors = []
    for at in range(0, len(plain), BLOCK):
        tweak = ((start + at) // 512).to_bytes(16, "little")
        sectors.append(Cipher(algorithms.AES(bytes(key)), modes.XTS(tweak)).encryptor().update(plain[at : at + BLOCK]))
    return b"".join(sectors)


def applied(start, data, *, encrypt, key=KEY):
    cipher, target = SectorCipher(key, encrypt=encrypt), bytearray(len(data))
    try:
        cipher.apply(start, memoryview(data), target)
    finally:
        cipher.close()
    return target


@pytest.fixture(params=["native", "portable"])
def way(request, monkeypatch):
    if request.param == "portable":
        monkeypatch.setattr(xts, "system_library", lambda: None)
    elif xts.system_library() is None:
        pytest.skip("this system has no libcrypto.so.3")
    return request.param


@pytest.mark.parametrize("start", [0, BLOCK, 7 * BLOCK, 1 << 32, (1 << 50) - BLOCK])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_sectors_are_encrypted_as_dm_crypt_does(way, start, count):
    data = PLAIN[: count * BLOCK]
    sealed = applied(start, data, encrypt=True)
    assert sealed == expected(start, data)
    assert applied(start, sealed, encrypt=False) == data


@given(st.integers(0, (1 << 46) - 1), st.binary(min_size=64, max_size=64).filter(lambda key: key[:32] != key[32:]))
def test_both_ways_agree_for_every_place_and_key(block, key):
    assert applied(block * BLOCK, PLAIN, encrypt=True, key=bytearray(key)) == expected(block * BLOCK, PLAIN, key)


def test_two_ciphers_at_once_do_not_mix(way):
    one, two = SectorCipher(KEY, encrypt=True), SectorCipher(bytearray(KEY[::-1]), encrypt=True)
    first, second = bytearray(BLOCK), bytearray(BLOCK)
    one.apply(0, memoryview(PLAIN)[:BLOCK], first)
    two.apply(0, memoryview(PLAIN)[:BLOCK], second)
    one.apply(0, memoryview(PLAIN)[:BLOCK], first)
    one.close()
    two.close()
    assert first == expected(0, PLAIN[:BLOCK])
    assert second == expected(0, PLAIN[:BLOCK], KEY[::-1])


@pytest.mark.skipif(xts.system_library() is None, reason="this system has no libcrypto.so.3")
@pytest.mark.parametrize(("given", "room"), [(100, 100), (BLOCK, BLOCK - 1), (BLOCK, 2 * BLOCK)])
def test_what_is_no_whole_sector_never_reaches_openssl(given, room):
    cipher = SectorCipher(KEY, encrypt=True)
    with pytest.raises(BuildError):
        cipher.apply(0, memoryview(PLAIN)[:given], bytearray(room))
    cipher.close()


@pytest.mark.skipif(xts.system_library() is None, reason="this system has no libcrypto.so.3")
def test_a_library_that_does_something_else_is_not_used(monkeypatch):
    library = xts.system_library()
    right = xts._portable

    def other(key, *, encrypt):
        return right(key[::-1], encrypt=encrypt)

    monkeypatch.setattr(xts, "_portable", other)
    assert not xts._agrees(library)


def test_a_missing_library_is_no_failure(monkeypatch):
    monkeypatch.setattr(xts, "_LIBRARY", "libcrypto.so.none")
    assert xts.system_library.__wrapped__() is None
    monkeypatch.setattr(xts, "_LIBRARY", "libc.so.6")
    assert xts.system_library.__wrapped__() is None
