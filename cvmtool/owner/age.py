# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""age's recipients as text: an X25519 public key in Bech32, `age1...`.

Zone: owner. Pure.
Spec: age-encryption.org/v1 (X25519 recipient stanza), BIP 173 (Bech32).
"""

from __future__ import annotations

from cvmtool.errors import FormatError

_CHARACTERS = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATORS = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_PREFIX = "age"
_CHECKSUM = 6  # characters
_DATA = 52  # characters that 32 bytes take


def parse_recipient(text: str) -> bytes:
    """Return the X25519 public key, 32 bytes.

    Raises:
        FormatError: not `age1` and 58 characters of Bech32 in lower case with their checksum.
    """
    prefix, _, data = text.rpartition("1")
    values = [_CHARACTERS.find(char) for char in data]
    if prefix != _PREFIX or len(values) != _DATA + _CHECKSUM or -1 in values:
        raise FormatError(f"{text[:80]!r} is no age recipient; age1 and 58 characters are required")
    if _checksum(values) != 1:
        raise FormatError(f"{text[:80]!r} is no age recipient; its checksum does not hold, so it was copied wrongly")
    number = 0
    for value in values[:-_CHECKSUM]:
        number = number << 5 | value
    if number & 0xF:
        raise FormatError(f"{text[:80]!r} is no age recipient; the last bits of its key are not zero")
    return (number >> 4).to_bytes(32, "big")


def render_recipient(key: bytes) -> str:
    """Return `age1...` for an X25519 public key of 32 bytes."""
    number = int.from_bytes(key, "big") << 4
    values = [number >> 5 * (_DATA - 1 - at) & 0x1F for at in range(_DATA)]
    polymod = _checksum([*values, *(0,) * _CHECKSUM]) ^ 1
    values += [polymod >> 5 * (_CHECKSUM - 1 - at) & 0x1F for at in range(_CHECKSUM)]
    return f"{_PREFIX}1{''.join(_CHARACTERS[value] for value in values)}"


def _checksum(values: list[int]) -> int:
    """Return Bech32's checksum over the prefix and `values`: 1 if the last six of them are right."""
    expanded = [*(ord(char) >> 5 for char in _PREFIX), 0, *(ord(char) & 0x1F for char in _PREFIX), *values]
    state = 1
    for value in expanded:
        top = state >> 25
        state = (state & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate(_GENERATORS):
            if top >> bit & 1:
                state ^= generator
    return state
