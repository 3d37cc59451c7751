# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import base64
import json

import pytest
from typer.testing import CliRunner

from cvmtool.cli.measure import app
from cvmtool.errors import ConfigError, FormatError, VerificationError
from cvmtool.formats.idblock import parse_id_auth, parse_id_block
from tests.unit.owner.test_launchsign import AUTHOR_KEY, ID_KEY, pem

DIGEST = "ab" * 48


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "id.pem").write_bytes(pem(ID_KEY))
    (tmp_path / "author.pem").write_bytes(pem(AUTHOR_KEY))
    return tmp_path


def sign(folder, *more):
    keys = ["--id-key", str(folder / "id.pem"), "--out", str(folder / "signed")]
    return CliRunner().invoke(app, ["id-block", "--digest", DIGEST, *keys, *more])


def check(folder, *more):
    return CliRunner().invoke(app, ["id-check", str(folder / "signed"), *more])


def test_sign_and_check(folder):
    options = ("--author-key", str(folder / "author.pem"), "--guest-svn", "5", "--family-id", "01" * 16, "--json")
    value = json.loads(sign(folder, *options).stdout)
    assert value["schema"] == "cvmtool/measure-id-block/v1"
    assert (value["launch_digest"], value["guest_svn"], value["family_id"]) == (DIGEST, 5, "01" * 16)
    block, auth = base64.b64decode(value["id_block"]), base64.b64decode(value["id_auth"])
    assert (folder / "signed/id-block.bin").read_bytes() == block == parse_id_block(block).encode()
    assert (folder / "signed/id-auth.bin").read_bytes() == auth
    assert value["author_key_digest"] == parse_id_auth(auth).author.key.digest.hex()
    checked = json.loads(check(folder, "--digest", DIGEST, "--json").stdout)
    assert checked == {**value, "schema": "cvmtool/measure-id-check/v1"}


def test_for_people_it_names_the_digests(folder):
    output = sign(folder).stdout
    assert f"launch_digest: {DIGEST}" in output
    assert "author_key_digest: none" in output
    assert check(folder).stdout == output


def test_a_changed_block_and_another_digest_are_refused(folder):
    sign(folder)
    assert isinstance(check(folder, "--digest", "cd" * 48).exception, VerificationError)
    block = folder / "signed/id-block.bin"
    block.write_bytes(bytes(1) + block.read_bytes()[1:])
    assert isinstance(check(folder).exception, VerificationError)
    block.write_bytes(b"short")
    assert isinstance(check(folder).exception, FormatError)


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (("--policy", "debug"), ConfigError),
        (("--policy", "0"), FormatError),
        (("--image-id", "00"), FormatError),
        (("--author-key", "/nonexistent"), ConfigError),
    ],
)
def test_what_cannot_be_signed_is_refused(folder, more, error):
    assert isinstance(sign(folder, *more).exception, error)
    assert not (folder / "signed").exists()


def test_no_key_is_shown(folder):
    result = sign(folder, "--author-key", str(folder / "author.pem"))
    for line in pem(ID_KEY).decode().splitlines()[1:-1]:
        assert line not in result.output
