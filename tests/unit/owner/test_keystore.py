# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import ConfigError
from cvmtool.owner.keystore import OwnerKeys, generate_keys, parse_keys
from cvmtool.owner.launchsign import public_key

SEED = bytes(range(32))
UUID = "01234567-89ab-cdef-0123-456789abcdef"
FILE = b"CVMTOOL-OWNER-SEED-1 " + SEED.hex().encode() + b"\n"


def test_a_key_file_round_trips():
    assert parse_keys(FILE).encode() == FILE
    assert parse_keys(FILE.removesuffix(b"\n")).encode() == FILE
    keys = generate_keys()
    assert parse_keys(keys.encode()) == keys


def test_what_follows_from_a_seed_never_changes():
    # Fixed values: a change here locks every owner out of every pack ever sealed.
    keys = OwnerKeys(SEED)
    assert keys.public.hex() == "ca30d3a16bc8996997b16e26c6730539081e1236202518170f573c1544e550e1"
    assert (
        public_key(keys.launch_key()).digest.hex()
        == "54387ac170cb3fe2daca580ab7aeae9b2b9d7e2d6e362fd0f6e107a0cff508aec2b613fe1875c58c13b460ce4cde403d"
    )
    assert (
        public_key(keys.model_key()).digest.hex()
        == "987cbdff061a029bf34be19162fe4193829da9738e17b77c16dfe112f46a33e517d7c87b5ce1c91a7590fdc0b7024a7d"
    )
    assert keys.pack_passphrase(UUID).hex() == "c6ad674a8547185b06465c6026aa62188623b4164d847a1bedad6b32412df79f"
    assert keys.volume_passphrase(UUID).hex() == "cf6e54652d53b232122a00caefd349e7519a3d4c871061cc3b291b417ce44496"


def test_every_seed_and_every_pack_has_its_own():
    keys, other = OwnerKeys(SEED), OwnerKeys(SEED[::-1])
    found = {keys.public, other.public, keys.pack_passphrase(UUID), other.pack_passphrase(UUID)}
    found |= {keys.pack_passphrase(UUID[:-1] + "0"), SEED}
    found |= {keys.volume_passphrase(UUID), keys.volume_passphrase(UUID[:-1] + "0"), other.volume_passphrase(UUID)}
    assert len(found) == 9
    assert generate_keys() != generate_keys()


def test_a_signature_is_the_public_keys():
    keys = OwnerKeys(SEED)
    public = Ed25519PublicKey.from_public_bytes(keys.public)
    public.verify(keys.sign(b"data"), b"data")
    with pytest.raises(InvalidSignature):
        public.verify(keys.sign(b"data"), b"other")


def test_the_fingerprint_is_of_the_public_key_and_no_text_holds_the_seed():
    keys = OwnerKeys(SEED)
    assert len(keys.fingerprint) == 64
    for text in (repr(keys), str(keys), f"{keys}", keys.fingerprint):
        assert SEED.hex() not in text
        assert repr(SEED)[2:-1] not in text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        FILE[:-2],
        FILE + b"\n",
        FILE + FILE,
        b" " + FILE,
        FILE.replace(b"-1 ", b"-2 "),
        FILE.upper(),
        FILE.replace(b"00", b"0g", 1),
        FILE.replace(b"00", b"0X", 1),
        FILE.replace(b"00", b"  ", 1),
        SEED,
        SEED.hex().encode(),
        b"\xff" * 80,
    ],
)
def test_a_damaged_file_is_refused_and_not_repeated(data):
    with pytest.raises(ConfigError) as refusal:
        parse_keys(data)
    error = refusal.value
    assert "0102030405" not in f"{error.message}{error.detail}{error.hint}".lower()


@given(st.binary(max_size=100))
def test_any_bytes_are_keys_or_a_config_error(data):
    with contextlib.suppress(ConfigError):
        assert parse_keys(data).encode().rstrip(b"\n") == data.rstrip(b"\n")
