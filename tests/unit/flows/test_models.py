# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import json
import pickle

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from safetensors.numpy import save_file

from cvmtool.config import load_settings
from cvmtool.data.modelsign import public_pem
from cvmtool.errors import ConfigError, VerificationError
from cvmtool.flows.models import check_folder, own_public_key, seal_model, sign_folder, verify_folder
from cvmtool.flows.packfile import Source, pack_to_file
from cvmtool.formats.pack import Role
from cvmtool.formats.packheader import ContentKind, Metadata
from cvmtool.owner.keystore import OwnerKeys

KEYS, OTHER = OwnerKeys(b"seed" * 8), OwnerKeys(b"SEED" * 8)
MAKER = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    save_file({"w": np.arange(3, dtype=np.float32)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def maker(tmp_path):
    """Return files with the private and the public key of somebody else."""
    private, public = tmp_path / "maker.pem", tmp_path / "maker.pub"
    private.write_bytes(MAKER.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(public_pem(MAKER.public_key()))
    return private, public


def seal(path, signer=None, notices=None):
    notice = notices.append if notices is not None else pytest.fail
    return seal_model(
        path, signer=signer, settings=load_settings(), keys=KEYS, progress=lambda _done, _all: None, notice=notice
    )


def test_the_owner_s_own_signature_needs_no_file(model, tmp_path):
    signed = sign_folder(model, key=None, keys=lambda: KEYS)
    assert signed.files == ("config.json", "model.safetensors")
    assert verify_folder(model, signer=None, keys=lambda: KEYS) == signed
    (tmp_path / "mine.pem").write_text(own_public_key(KEYS))
    assert verify_folder(model, signer=tmp_path / "mine.pem", keys=lambda: pytest.fail("not asked for")) == signed
    with pytest.raises(VerificationError):
        verify_folder(model, signer=None, keys=lambda: OTHER)


def test_a_maker_signs_with_a_key_of_its_own(model, maker):
    private, public = maker
    signed = sign_folder(model, key=private, keys=lambda: pytest.fail("not asked for"))
    assert verify_folder(model, signer=public, keys=lambda: KEYS) == signed
    sign_folder(model, key=private, keys=lambda: KEYS)  # again, over its own signature
    assert verify_folder(model, signer=public, keys=lambda: KEYS) == signed


def test_no_signature_is_no_signature(model, maker):
    with pytest.raises(VerificationError, match="missing"):
        verify_folder(model, signer=maker[1], keys=lambda: KEYS)
    with pytest.raises(VerificationError, match="missing"):
        seal(model, signer=maker[1])


def test_a_model_is_sealed_as_the_input_model(model):
    sealed = seal(model)
    assert (sealed.descriptor.name, sealed.descriptor.role, sealed.reused) == ("model", Role.INPUT, False)
    assert seal(model).reused


def test_a_signed_model_is_sealed_if_its_signer_is_the_one_named(model, maker):
    private, public = maker
    sign_folder(model, key=private, keys=lambda: KEYS)
    seal(model, signer=public)
    (model / "config.json").write_text("{}")
    with pytest.raises(VerificationError, match="config"):
        seal(model, signer=public)


def test_a_signature_that_nobody_asked_about_is_mentioned(model, maker):
    sign_folder(model, key=maker[0], keys=lambda: KEYS)
    notices = []
    seal(model, notices=notices)
    assert len(notices) == 1
    assert "by whom" in notices[0]


def test_a_pickle_is_no_model(model):
    (model / "extra").write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(ConfigError, match="pickle"):
        seal(model)
    with pytest.raises(ConfigError, match="pickle"):
        check_folder(model, signer=None, keys=lambda: KEYS)


def packed(path, out, kind, keys=KEYS):
    pack_to_file(Source(reference=str(path), kind=kind), out, name="x", metadata=Metadata(), keys=keys)
    return out


def test_a_pack_of_a_model_is_taken_as_it_is(model, tmp_path):
    pack = packed(model, tmp_path / "p", ContentKind.MODEL)
    sealed = seal(pack)
    assert (sealed.descriptor.name, sealed.path, sealed.header.content.kind) == ("model", pack, ContentKind.MODEL)


def test_a_pack_of_something_else_is_no_model(model, maker, tmp_path):
    with pytest.raises(ConfigError, match="is a tree; a model is required"):
        seal(packed(model, tmp_path / "tree", ContentKind.TREE))
    with pytest.raises(ConfigError, match="signature is verified when a model is packed"):
        seal(packed(model, tmp_path / "p", ContentKind.MODEL), signer=maker[1])
    with pytest.raises(VerificationError):
        seal(packed(model, tmp_path / "other", ContentKind.MODEL, keys=OTHER))


@pytest.mark.parametrize("content", [None, b"", bytes(70_000)], ids=["missing", "empty", "large"])
def test_a_key_file_that_is_none(model, tmp_path, content):
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(ConfigError, match="key"):
        sign_folder(model, key=tmp_path / "key", keys=lambda: KEYS)


def test_a_signature_is_the_document_that_the_specification_names(model):
    sign_folder(model, key=None, keys=lambda: KEYS)
    bundle = json.loads((model / "model.sig").read_text())
    assert bundle["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert bundle["dsseEnvelope"]["payloadType"] == "application/vnd.in-toto+json"
