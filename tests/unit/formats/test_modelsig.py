# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import base64
import contextlib
import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats import modelsig
from cvmtool.formats.modelsig import IGNORED, ModelBundle, ModelStatement, parse_bundle, parse_statement

STATEMENT = ModelStatement(
    name="model", files={"a": b"\1" * 32, "b/c": b"\2" * 32}, ignored=(*IGNORED, "model.sig"), links=False
)
BUNDLE = ModelBundle(payload=STATEMENT.encode(), signature=b"\x30\x06\x02\x01\x01\x02\x01\x01", hint="0a" * 32)


def test_a_statement_comes_back():
    assert parse_statement(STATEMENT.encode()) == STATEMENT


def test_a_bundle_comes_back():
    assert parse_bundle(BUNDLE.encode()) == BUNDLE


def test_the_digest_of_a_model_is_that_of_its_files_digests():
    subject = json.loads(STATEMENT.encode())["subject"]
    assert subject == [{"name": "model", "digest": {"sha256": hashlib.sha256(b"\1" * 32 + b"\2" * 32).hexdigest()}}]


def changed(encoded, *path, value):
    """Return a document with one member changed, or removed (`...`)."""
    document = json.loads(encoded)
    at = document
    for key in path[:-1]:
        at = at[key]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "path", [("mediaType",), ("verificationMaterial",), ("dsseEnvelope",), ("dsseEnvelope", "signatures")]
)
def test_a_bundle_without_one_of_its_parts(path):
    with pytest.raises(FormatError):
        parse_bundle(changed(BUNDLE.encode(), *path, value=...))


def test_a_bundle_is_spelled_as_sigstore_spells_it():
    assert json.loads(BUNDLE.encode()) == {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": "0a" * 32}, "tlogEntries": []},
        "dsseEnvelope": {
            "payloadType": "application/vnd.in-toto+json",
            "payload": base64.b64encode(STATEMENT.encode()).decode(),
            "signatures": [{"keyid": "", "sig": base64.b64encode(BUNDLE.signature).decode()}],
        },
    }


BUNDLES = {
    "another version": (("mediaType",), "application/vnd.dev.sigstore.bundle.v0.2+json"),
    "another payload": (("dsseEnvelope", "payloadType"), "text/plain"),
    "no base64": (("dsseEnvelope", "payload"), "*"),
    "two signatures": (("dsseEnvelope", "signatures"), [{"sig": "AA=="}] * 2),
    "no signature": (("dsseEnvelope", "signatures"), []),
    "a signature that is none": (("dsseEnvelope", "signatures"), ["AA=="]),
    "endless signature": (("dsseEnvelope", "signatures", 0, "sig"), base64.b64encode(bytes(1000)).decode()),
    "hint": (("verificationMaterial", "publicKey", "hint"), "key 1"),
}


@pytest.mark.parametrize("how", BUNDLES)
def test_what_is_no_bundle(how):
    path, value = BUNDLES[how]
    with pytest.raises(FormatError):
        parse_bundle(changed(BUNDLE.encode(), *path, value=value))


def test_a_bundle_by_a_certificate_is_named_as_such():
    material = {"certificate": {"rawBytes": "AA=="}, "tlogEntries": []}
    with pytest.raises(FormatError, match="made with a certificate"):
        parse_bundle(changed(BUNDLE.encode(), "verificationMaterial", value=material))


RESOURCES = ("predicate", "resources")
SERIALIZATION = ("predicate", "serialization")
STATEMENTS = {
    "another kind of statement": (("_type",), "https://in-toto.io/Statement/v0.1"),
    "another predicate": (("predicateType",), "https://slsa.dev/provenance/v1"),
    "two models": (("subject",), [{"name": "a", "digest": {"sha256": "00" * 32}}] * 2),
    "digest of others": (("subject", 0, "digest", "sha256"), "00" * 32),
    "shards": ((*SERIALIZATION, "method"), "shards"),
    "another hash": ((*SERIALIZATION, "hash_type"), "blake3"),
    "links unsaid": ((*SERIALIZATION, "allow_symlinks"), "no"),
    "ignores all": ((*SERIALIZATION, "ignore_paths"), ["."]),
    "ignores no list": ((*SERIALIZATION, "ignore_paths"), "git"),
    "ignores a number": ((*SERIALIZATION, "ignore_paths"), 7),
    "out": ((*RESOURCES, 0, "name"), "../a"),
    "absolute": ((*RESOURCES, 0, "name"), "/a"),
    "another spelling": ((*RESOURCES, 0, "name"), "./a"),
    "nul": ((*RESOURCES, 0, "name"), "a\0"),
    "number": ((*RESOURCES, 0, "name"), 1),
    "another algorithm": ((*RESOURCES, 0, "algorithm"), "md5"),
    "short digest": ((*RESOURCES, 0, "digest"), "00"),
    "no object": ((*RESOURCES, 0), "a"),
}


@pytest.mark.parametrize("how", STATEMENTS)
def test_what_is_no_statement(how):
    path, value = STATEMENTS[how]
    with pytest.raises(FormatError):
        parse_statement(changed(STATEMENT.encode(), *path, value=value))


def test_a_statement_is_spelled_as_model_signing_spells_it():
    document = json.loads(STATEMENT.encode())
    assert document["_type"] == "https://in-toto.io/Statement/v1"
    assert document["predicateType"] == "https://model_signing/signature/v1.0"
    assert document["predicate"]["serialization"]["ignore_paths"] == [*IGNORED, "model.sig"]


@pytest.mark.parametrize(("size", "fits"), [(256, True), (257, False)])
def test_a_signature_is_bounded(size, fits):
    encoded = replace(BUNDLE, signature=bytes(size)).encode()
    with contextlib.nullcontext() if fits else pytest.raises(FormatError, match="sig"):
        assert len(parse_bundle(encoded).signature) == size


def test_a_bundle_is_not_shown_with_all_its_files():
    assert "payload" not in repr(BUNDLE)


def test_a_model_may_be_one_file():
    one = replace(STATEMENT, files={"a": b"\1" * 32})
    assert parse_statement(one.encode()) == one


def test_a_model_has_files():
    with pytest.raises(FormatError, match="lists 0 files"):
        parse_statement(replace(STATEMENT, files={}).encode())


def test_a_file_that_is_listed_twice_is_refused_though_the_digest_holds():
    one = json.loads(replace(STATEMENT, files={"a": b"\1" * 32}).encode())
    one["predicate"]["resources"] *= 2
    with pytest.raises(FormatError, match="twice"):
        parse_statement(json.dumps(one).encode())


def test_no_more_files_than_a_model_may_have(monkeypatch):
    assert modelsig.MAX_FILES == 100_000
    monkeypatch.setattr(modelsig, "MAX_FILES", 2)
    few = replace(STATEMENT, ignored=("x", "y"))
    assert parse_statement(few.encode()) == few
    with pytest.raises(FormatError, match="ignore_paths"):
        parse_statement(replace(few, ignored=("x", "y", "z")).encode())
    with pytest.raises(FormatError, match="lists 3 files"):
        parse_statement(replace(few, files={**few.files, "d": b"\3" * 32}).encode())


@given(st.binary(max_size=300))
def test_any_bytes_are_a_bundle_or_not(data):
    for parse in (parse_bundle, parse_statement):
        with pytest.raises(FormatError):
            parse(data)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)
       | st.dictionaries(st.sampled_from(["name", "digest", "sha256", "algorithm"]), inner, max_size=3), max_leaves=8),
       st.sampled_from([("subject",), ("predicate",), RESOURCES, (*RESOURCES, 0), SERIALIZATION]))  # fmt: skip
def test_any_member_is_what_it_must_be_or_refused(value, path):
    try:
        read = parse_statement(changed(STATEMENT.encode(), *path, value=value))
    except FormatError:
        return
    assert read == STATEMENT
