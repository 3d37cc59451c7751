# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from cvmtool.data.modelsign import public_pem, read_private_key, read_public_key, sign_model, verify_model
from cvmtool.errors import ConfigError, VerificationError
from cvmtool.formats.modelsig import parse_statement

KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())

# What the program of the specification (model_signing 1.1.1) made of FILES, and the key that it was told to sign with.
PUBLISHED_KEY = b"""-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEjPOjqPJz+FuXJhsdmDfwljA7/UAR
AlDa4domhUHOzWGwc8VYVaA+w3ekQHx3PTyLVwgR8HWv0o80C6aYQmD/Hw==
-----END PUBLIC KEY-----
"""
PUBLISHED = (
    '{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{"hint":"11cedc438af7'
    '953fe25c970306cf38ed0e914915efaf67ed3886ef3e1bad4119"},"tlogEntries":[]},"dsseEnvelope":{"payload":"ewogICJfdHlwZSI6IC'
    "JodHRwczovL2luLXRvdG8uaW8vU3RhdGVtZW50L3YxIiwKICAic3ViamVjdCI6IFsKICAgIHsKICAgICAgIm5hbWUiOiAibW9kZWwiLAogICAgICAiZGln"
    "ZXN0IjogewogICAgICAgICJzaGEyNTYiOiAiMDFlZTgyZjVhOWI2ZTE0YWFlNGNhYWYxNGM0ZDExMjQ3NWI5ZjM1Nzc3NzY2ZmUxOTIyODYyYWU1MmE4ZD"
    "RmMSIKICAgICAgfQogICAgfQogIF0sCiAgInByZWRpY2F0ZVR5cGUiOiAiaHR0cHM6Ly9tb2RlbF9zaWduaW5nL3NpZ25hdHVyZS92MS4wIiwKICAicHJl"
    "ZGljYXRlIjogewogICAgInJlc291cmNlcyI6IFsKICAgICAgewogICAgICAgICJhbGdvcml0aG0iOiAic2hhMjU2IiwKICAgICAgICAiZGlnZXN0IjogIm"
    "NhM2QxNjNiYWIwNTUzODE4MjcyMjYxNDA1NjhmM2JlZjdlYWFjMTg3Y2ViZDc2ODc4ZTBiNjNlOWU0NDIzNTYiLAogICAgICAgICJuYW1lIjogImNvbmZp"
    "Zy5qc29uIgogICAgICB9LAogICAgICB7CiAgICAgICAgImFsZ29yaXRobSI6ICJzaGEyNTYiLAogICAgICAgICJkaWdlc3QiOiAiODc0MjhmYzUyMjgwM2"
    "QzMTA2NWU3YmNlM2NmMDNmZTQ3NTA5NjYzMWU1ZTA3YmJkN2EwZmRlNjBjNGNmMjVjNyIsCiAgICAgICAgIm5hbWUiOiAid2VpZ2h0cy9hLnNhZmV0ZW5z"
    "b3JzIgogICAgICB9LAogICAgICB7CiAgICAgICAgImFsZ29yaXRobSI6ICJzaGEyNTYiLAogICAgICAgICJkaWdlc3QiOiAiMDI2MzgyOTk4OWI2ZmQ5NT"
    "RmNzJiYWFmMmZjNjRiYzJlMmYwMWQ2OTJkNGRlNzI5ODZlYTgwOGY2ZTk5ODEzZiIsCiAgICAgICAgIm5hbWUiOiAid2VpZ2h0cy9iLnNhZmV0ZW5zb3Jz"
    "IgogICAgICB9LAogICAgICB7CiAgICAgICAgImFsZ29yaXRobSI6ICJzaGEyNTYiLAogICAgICAgICJkaWdlc3QiOiAiMDFiYTQ3MTljODBiNmZlOTExYj"
    "A5MWE3YzA1MTI0YjY0ZWVlY2U5NjRlMDljMDU4ZWY4Zjk4MDVkYWNhNTQ2YiIsCiAgICAgICAgIm5hbWUiOiAieiB6LnR4dCIKICAgICAgfQogICAgXSwK"
    "ICAgICJzZXJpYWxpemF0aW9uIjogewogICAgICAiYWxsb3dfc3ltbGlua3MiOiBmYWxzZSwKICAgICAgImhhc2hfdHlwZSI6ICJzaGEyNTYiLAogICAgIC"
    "AiaWdub3JlX3BhdGhzIjogWwogICAgICAgICIuZ2l0IiwKICAgICAgICAiLmdpdGh1YiIsCiAgICAgICAgIi5naXRpZ25vcmUiLAogICAgICAgICIuZ2l0"
    'YXR0cmlidXRlcyIsCiAgICAgICAgIm1vZGVsLnNpZyIKICAgICAgXSwKICAgICAgIm1ldGhvZCI6ICJmaWxlcyIKICAgIH0KICB9Cn0=","payloadType'
    '":"application/vnd.in-toto+json","signatures":[{"sig":"MEUCIGdfqx+5/xTJGvPlWiN9X1941Ak7rk+J21YgBwmFH4/uAiEA8DjmY97C+j5'
    'OvpKlig4b1FfmooC5hGUv0p+ic9nItgQ=","keyid":""}]}}'
)
FILES = {"config.json": b"{}\n", "weights/a.safetensors": b"a\n", "weights/b.safetensors": b"b\n", "z z.txt": b"\n"}


def private_pem(key, encryption=None):
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


@pytest.fixture
def model(tmp_path):
    return laid_out(tmp_path / "model")


def laid_out(folder):
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1])
def test_what_was_signed_verifies(model, curve):
    key = ec.generate_private_key(curve())
    signature = sign_model(model, key).encode()
    (model / "model.sig").write_bytes(signature)
    statement = verify_model(model, signature, key.public_key())
    assert (statement.name, list(statement.files)) == ("model", sorted(FILES))


def test_what_the_published_program_signed_verifies(model):
    signature = PUBLISHED.encode()
    (model / "model.sig").write_bytes(signature)
    statement = verify_model(model, signature, read_public_key(PUBLISHED_KEY))
    ours = parse_statement(sign_model(model, KEY).payload)
    assert statement.files == ours.files
    assert {*statement.ignored} == {*ours.ignored}


def test_what_belongs_to_a_checkout_is_no_part(model):
    signature = sign_model(model, KEY).encode()
    (model / ".git/objects").mkdir(parents=True)
    (model / ".git/objects/x").touch()
    (model / ".gitattributes").touch()
    verify_model(model, signature, KEY.public_key())


def edit(signature, change):
    """Return a bundle whose payload says something else, under the old signature."""
    value = json.loads(signature)
    payload = json.loads(base64.b64decode(value["dsseEnvelope"]["payload"]))
    change(payload)
    value["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    return json.dumps(value).encode()


CHANGES = {
    "content": lambda m: (m / "config.json").write_bytes(b"{ }"),
    "file missing": lambda m: (m / "weights/a.safetensors").unlink(),
    "file too many": lambda m: (m / "weights/c.safetensors").touch(),
    "files swapped": lambda m: (
        (m / "weights/a.safetensors").write_bytes(FILES["weights/b.safetensors"]),
        (m / "weights/b.safetensors").write_bytes(FILES["weights/a.safetensors"]),
    ),
    "hidden file": lambda m: (m / "weights/.gitignore").touch(),
}


@pytest.mark.parametrize("how", CHANGES)
def test_another_model_is_not_the_one_that_was_signed(model, how):
    signature = sign_model(model, KEY).encode()
    CHANGES[how](model)
    with pytest.raises(VerificationError, match="model's signer signed"):
        verify_model(model, signature, KEY.public_key())


def test_another_signer_is_not_the_one_asked_for(model):
    with pytest.raises(VerificationError, match="names the key"):
        verify_model(model, sign_model(model, OTHER).encode(), KEY.public_key())


def test_a_statement_that_nobody_signed(model):
    (model / "config.json").write_bytes(b"{ }")
    mine = parse_statement(sign_model(model, OTHER).payload)
    (model / "config.json").write_bytes(FILES["config.json"])
    signature = edit(sign_model(model, KEY).encode(), lambda payload: payload.update(json.loads(mine.encode())))
    (model / "config.json").write_bytes(b"{ }")
    with pytest.raises(VerificationError, match="does not hold"):
        verify_model(model, signature, KEY.public_key())


@pytest.mark.parametrize("where", ["a", "weights/a"])
def test_links_are_not_signed(model, where):
    (model / where).symlink_to("/etc/hostname")
    with pytest.raises(ConfigError, match="is a link"):
        sign_model(model, KEY)


def test_nothing_to_sign(tmp_path):
    with pytest.raises(ConfigError, match="no files"):
        sign_model(tmp_path, KEY)
    with pytest.raises(ConfigError, match="cannot be read"):
        sign_model(tmp_path / "none", KEY)


def test_keys_are_read():
    assert read_private_key(private_pem(KEY)).private_numbers() == KEY.private_numbers()
    assert read_public_key(public_pem(KEY.public_key())) == KEY.public_key()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"-----BEGIN PRIVATE KEY-----\n",
        private_pem(KEY, BestAvailableEncryption(b"secret")),
        private_pem(ed25519.Ed25519PrivateKey.generate()),
        private_pem(ec.generate_private_key(ec.SECP256K1())),
        public_pem(KEY.public_key()),
    ],
    ids=["empty", "cut", "encrypted", "another algorithm", "another curve", "public"],
)
def test_what_is_no_signing_key(data):
    with pytest.raises(ConfigError, match="signing key"):
        read_private_key(data)


@pytest.mark.parametrize(
    "data", [b"", private_pem(KEY), public_pem(ec.generate_private_key(ec.SECP256K1()).public_key())]
)
def test_what_is_no_signer_s_key(data):
    with pytest.raises(ConfigError, match="signer's key"):
        read_public_key(data)
