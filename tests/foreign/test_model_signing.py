# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Signatures of models before OpenSSF's own program, model_signing 1.1.1, and its signatures before ours."""

import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cvmtool.data.modelsign import public_pem, sign_model, verify_model
from cvmtool.errors import VerificationError

pytestmark = pytest.mark.foreign

PROGRAM = Path(__file__).parents[2] / "build/foreign/models/bin/model_signing"
FILES = ("a", "a-b", "a.d/x", "sub/.git/x", "sub/ü", "z z")
CURVES = [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()]


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    (folder / "sub" / ".git").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / "a.d").mkdir()
    for name in (*FILES, ".git/x"):
        (folder / name).write_text(name)
    return folder


@pytest.fixture(params=CURVES, ids=lambda curve: curve.name)
def key(request):
    return ec.generate_private_key(request.param)


def model_signing(*arguments):
    if not PROGRAM.exists():
        pytest.skip("tools/foreign.sh fetches it")
    return subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)


def verified(model, key, tmp_path):
    (tmp_path / "public").write_bytes(public_pem(key.public_key()))
    signature = model / "model.sig"
    return model_signing("verify", "key", model, "--signature", signature, "--public_key", tmp_path / "public")


def test_it_verifies_ours(model, key, tmp_path):
    (model / "model.sig").write_bytes(sign_model(model, key).encode())
    ran = verified(model, key, tmp_path)
    assert ran.returncode == 0, ran.stderr


def test_it_refuses_ours_of_another_model(model, key, tmp_path):
    (model / "model.sig").write_bytes(sign_model(model, key).encode())
    (model / "a").write_text("b")
    assert verified(model, key, tmp_path).returncode != 0


def test_we_verify_its(model, key, tmp_path):
    (tmp_path / "private").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    signature = model / "model.sig"
    ran = model_signing("sign", "key", model, "--signature", signature, "--private_key", tmp_path / "private")
    assert ran.returncode == 0, ran.stderr
    statement = verify_model(model, signature.read_bytes(), key.public_key())
    assert set(statement.files) == set(FILES)
    (model / "a").write_text("b")
    with pytest.raises(VerificationError):
        verify_model(model, signature.read_bytes(), key.public_key())
