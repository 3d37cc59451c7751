# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.owner.age import parse_identities, parse_recipient, render_recipient

# Made by age-keygen 1.1.1. The identity opens nothing.
RECIPIENT = "age1rr9qp5h3wv86muadxqhv49r8j7j7d4g57uq9dauvnv4takrn8pvqew7s76"

CHARACTERS = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"  # Bech32's


def test_what_age_keygen_prints_is_read():
    assert render_recipient(parse_recipient(RECIPIENT)) == RECIPIENT


@given(st.binary(min_size=32, max_size=32))
def test_every_key_has_one_text(secret):
    key = X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
    text = render_recipient(key)
    assert (len(text), text[:4]) == (62, "age1")
    assert parse_recipient(text) == key


@given(st.integers(0, 61), st.characters())
def test_no_other_character_anywhere(at, char):
    changed = RECIPIENT[:at] + char + RECIPIENT[at + 1 :]
    if changed != RECIPIENT:
        with pytest.raises(FormatError):
            parse_recipient(changed)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "age1",
        RECIPIENT[:-1],
        RECIPIENT + "q",
        RECIPIENT.upper(),
        "AGE-SECRET-KEY-1" + "Q" * 58,
        " " + RECIPIENT,
        *(RECIPIENT[:-8] + char + RECIPIENT[-7:] for char in "bioX="),  # none of Bech32's in lower case
    ],
)
def test_what_is_no_recipient_is_refused(text):
    with pytest.raises(FormatError, match="no age recipient"):
        parse_recipient(text)


def test_bits_beyond_the_key_are_zero():
    # 52 characters hold 260 bits; the same 256 with another rest would be a second text for one key.
    accepted = 0
    for last in CHARACTERS:
        text = _with_checksum(RECIPIENT[4:-7] + last)
        if CHARACTERS.index(last) % 16:
            with pytest.raises(FormatError, match="last bits"):
                parse_recipient(text)
        else:
            accepted += len(parse_recipient(text)) // 32
    assert accepted == 2


def _with_checksum(data: str) -> str:
    """Bech32 as BIP 173 writes it, apart from the code under test."""
    values = [CHARACTERS.index(char) for char in data]

    def polymod(all_values):
        check = 1
        for value in all_values:
            top = check >> 25
            check = ((check & 0x1FFFFFF) << 5) ^ value
            for at, generator in enumerate([0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3]):
                check ^= generator if (top >> at) & 1 else 0
        return check

    prefix = [ord(char) >> 5 for char in "age"] + [0] + [ord(char) & 31 for char in "age"]
    found = polymod([*prefix, *values, 0, 0, 0, 0, 0, 0]) ^ 1
    return "age1" + data + "".join(CHARACTERS[(found >> 5 * (5 - at)) & 31] for at in range(6))


def test_a_real_key_pair():
    public = X25519PrivateKey.generate().public_key().public_bytes_raw()
    assert parse_recipient(render_recipient(public)) == public


@pytest.mark.parametrize("key", [bytes(32), b"\1" + bytes(31)])
def test_a_key_whose_secret_everybody_knows_is_no_recipient(key):
    with pytest.raises(FormatError, match="anybody"):
        parse_recipient(render_recipient(key))


# As age-keygen 1.1.1 writes it; opens nothing.
IDENTITY = "AGE-SECRET-KEY-1VJMLYUMVXGYS86AC3DCKY6FMZ0UR4DDW2MM2JHE9QJYZN9G5K9QQQS47C6"
IDENTITYS_RECIPIENT = "age1kycwmr8y8k20sgn4gxuxry0hnl0dgk3nphl0mrzayvwm04apegjsqtznd8"


def test_an_identity_file_of_age_keygen_is_read():
    made = f"# created: 2026-01-01T00:00:00Z\n# public key: x\n{IDENTITY}\n\n"
    (identity,) = parse_identities(made)
    assert render_recipient(identity.public_key().public_bytes_raw()) == IDENTITYS_RECIPIENT


@pytest.mark.parametrize("change", ["lower", "Mixed", "last", "recipient", "nothing"])
def test_what_is_no_identity_is_refused_and_not_repeated(change):
    text = {
        "lower": IDENTITY.lower(),
        "Mixed": IDENTITY[:20].lower() + IDENTITY[20:],
        "last": IDENTITY[:-1] + ("Q" if IDENTITY[-1] != "Q" else "P"),
        "recipient": IDENTITYS_RECIPIENT,
        "nothing": "# a comment",
    }[change]
    with pytest.raises(FormatError, match="identity file") as refused:
        parse_identities(text)
    assert ("line 1 of" in refused.value.message) == (change != "nothing")
    assert IDENTITY[20:40] not in str(refused.value.message)
