# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""age's keys as text: an X25519 public key in Bech32, `age1...`, and a private one, `AGE-SECRET-KEY-1...`.

Zone: owner. Pure.
Spec: age-encryption.org/v1 (X25519 recipient stanza), BIP 173 (Bech32).
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from cvmtool.errors import FormatError

_CHARACTERS = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATORS = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_RECIPIENT = "age"
_IDENTITY = "age-secret-key-"
_CHECKSUM = 6  # characters
_DATA = 52  # characters that 32 bytes take

Identity = X25519PrivateKey
"""What opens age files."""


def parse_recipient(text: str) -> bytes:
    """Return the X25519 public key, 32 bytes.

    Raises:
        FormatError: not `age1` and 58 characters of Bech32 in lower case with their checksum, or no key to seal to.
    """
    shown = repr(text[:80])
    key = _parse(text, _RECIPIENT, f"{shown} is no age recipient; age1 and 58 characters are required", shown)
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(key))
    except ValueError as error:
        raise FormatError(f"{shown} is no age recipient; anybody could open what is sealed to it") from error
    return key


def render_recipient(key: bytes) -> str:
    """Return `age1...` for an X25519 public key of 32 bytes."""
    return _render(key, _RECIPIENT)


def parse_identities(text: str) -> list[Identity]:
    """Read an identity file as age-keygen writes it: a key in each line, and comments. No message repeats a key.

    Raises:
        FormatError: a line is something else, or there is no key.
    """
    lines = [line.strip() for line in text.splitlines()]
    found = []
    for number, line in enumerate(lines, 1):
        if line and not line.startswith("#"):
            what = f"line {number} of the identity file"
            # Bech32 may be written in capitals, all of it: age writes private keys so.
            lowered = line.lower() if line == line.upper() else ""
            key = _parse(lowered, _IDENTITY, f"{what} is none; AGE-SECRET-KEY-1 and 58 characters are required", what)
            found.append(X25519PrivateKey.from_private_bytes(key))
    if not found:
        raise FormatError("the identity file holds no key")
    return found


def _parse(text: str, required: str, refusal: str, what: str) -> bytes:
    prefix, _, data = text.rpartition("1")
    values = [_CHARACTERS.find(char) for char in data]
    if prefix != required or len(values) != _DATA + _CHECKSUM or -1 in values:
        raise FormatError(refusal)
    if _checksum(required, values) != 1:
        raise FormatError(f"{what} is no age key; its checksum does not hold, so it was copied wrongly")
    number = 0
    for value in values[:-_CHECKSUM]:
        number = number << 5 | value
    if number & 0xF:
        raise FormatError(f"{what} is no age key; the last bits of its key are not zero")
    return (number >> 4).to_bytes(32, "big")


def _render(key: bytes, prefix: str) -> str:
    number = int.from_bytes(key, "big") << 4
    values = [number >> 5 * (_DATA - 1 - at) & 0x1F for at in range(_DATA)]
    polymod = _checksum(prefix, [*values, *(0,) * _CHECKSUM]) ^ 1
    values += [polymod >> 5 * (_CHECKSUM - 1 - at) & 0x1F for at in range(_CHECKSUM)]
    return f"{prefix}1{''.join(_CHARACTERS[value] for value in values)}"


def _checksum(prefix: str, values: list[int]) -> int:
    """Return Bech32's checksum over the prefix and `values`: 1 if the last six of them are right."""
    expanded = [*(ord(char) >> 5 for char in prefix), 0, *(ord(char) & 0x1F for char in prefix), *values]
    state = 1
    for value in expanded:
        top = state >> 25
        state = (state & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate(_GENERATORS):
            if top >> bit & 1:
                state ^= generator
    return state
