# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import base64
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from cvmtool.errors import ConfigError, VerificationError
from cvmtool.formats.idblock import IdBlock, Signature, parse_id_auth, parse_id_block
from cvmtool.owner.launchsign import (
    load_signing_key,
    public_key,
    sign_launch,
    verify_author,
    verify_launch_signature,
)
from tests import vectors

ID_KEY, AUTHOR_KEY = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
BLOCK = IdBlock(digest=b"D" * 48, guest_svn=3)


def pem(key, password=None):
    how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)


def test_what_was_signed_verifies():
    alone = sign_launch(BLOCK, ID_KEY)
    assert alone.author is None
    assert alone.key == public_key(ID_KEY)
    verify_launch_signature(BLOCK, parse_id_auth(alone.encode()))
    both = sign_launch(BLOCK, ID_KEY, AUTHOR_KEY)
    assert both.author.key == public_key(AUTHOR_KEY)
    verify_launch_signature(BLOCK, parse_id_auth(both.encode()))


@pytest.mark.parametrize("change", [{"digest": b"E" * 48}, {"guest_svn": 2}, {"image_id": b"i" * 16}])
def test_another_block_is_refused(change):
    with pytest.raises(VerificationError, match="id block"):
        verify_launch_signature(replace(BLOCK, **change), sign_launch(BLOCK, ID_KEY))


def test_another_id_key_is_refused():
    auth = sign_launch(BLOCK, ID_KEY)
    with pytest.raises(VerificationError, match="id block"):
        verify_launch_signature(BLOCK, replace(auth, key=public_key(AUTHOR_KEY)))


@pytest.mark.parametrize("change", ["key", "signature"])
def test_an_author_who_did_not_sign_is_refused(change):
    auth = sign_launch(BLOCK, ID_KEY, AUTHOR_KEY)
    wrong = {"key": public_key(ID_KEY), "signature": Signature(r=1, s=1)}
    with pytest.raises(VerificationError, match="id key"):
        verify_launch_signature(BLOCK, replace(auth, author=replace(auth.author, **{change: wrong[change]})))


def test_keys_come_as_pem():
    assert public_key(load_signing_key(pem(ID_KEY))) == public_key(ID_KEY)


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        pem(ec.generate_private_key(ec.SECP256R1())),
        pem(rsa.generate_private_key(65537, 2048)),
        pem(ID_KEY, b"password"),
    ],
    ids=["empty", "junk", "p-256", "rsa", "encrypted"],
)
def test_another_key_is_refused_and_not_shown(wrong):
    with pytest.raises(ConfigError) as refused:
        load_signing_key(wrong)
    assert "p-384" in refused.value.message
    assert wrong[30:60] == b"" or wrong[30:60].decode() not in str(refused.value)


@pytest.mark.vectors
def test_a_real_author_signed_a_real_id_key():
    auth = parse_id_auth(vectors.read("launch-measurement/test_auth_block.bin"))
    verify_author(auth)
    with pytest.raises(VerificationError):
        verify_author(replace(auth, key=auth.author.key))


def test_what_sev_snp_measure_signs_verifies_here(tmp_path):
    peer = pytest.importorskip("sevsnpmeasure.id_block")
    for name, key in (("id", ID_KEY), ("author", AUTHOR_KEY)):
        (tmp_path / name).write_bytes(pem(key))
    text = peer.snp_calc_id_block(BLOCK.digest, str(tmp_path / "id"), str(tmp_path / "author"))
    first, *_ = text.splitlines()
    block, auth = (
        base64.b64decode(part.split("=", 1)[1]) for part in first.replace(",id-auth", "\nid-auth").split("\n")
    )
    assert parse_id_block(block) == replace(BLOCK, guest_svn=0)
    parsed = parse_id_auth(auth)
    verify_launch_signature(parse_id_block(block), parsed)
    assert base64.b64encode(parsed.key.digest).decode() in text
    assert base64.b64encode(parsed.author.key.digest).decode() in text
