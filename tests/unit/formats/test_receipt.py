# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats.evidence import Evidence
from cvmtool.formats.receipt import (
    MAX_RECEIPT,
    Envelope,
    OutputDigest,
    Statement,
    key_id,
    pae,
    parse_envelope,
    parse_statement,
)
from cvmtool.formats.wire import canonical_json
from tests.unit.formats.test_wire import JSON

STATEMENT = Statement(
    outputs=(
        OutputDigest(name="model.bin", size=5, sha256="aa" * 32),
        OutputDigest(name="a/b", size=0, sha256="bb" * 32),
    ),
    simulated=True,
    nonce=b"N" * 32,
    evidence=Evidence(
        report=bytes(1184), cert_table=b"t", ssh_host_key=bytes(32), hpke_key=bytes(32), receipt_key=bytes(32)
    ),
    manifest_sha256=b"M" * 32,
    owner_key=b"O" * 32,
    container_digest="sha256:" + "cc" * 32,
    inputs=(("data", "dd" * 32),),
    log_sha256="ee" * 32,
    log_size=9,
    exit_code=0,
    started="2026-01-01T00:00:00Z",
    finished="2026-01-01T00:01:00Z",
)
BASE = json.loads(STATEMENT.encode())
ENVELOPE = Envelope(payload=STATEMENT.encode(), keyid="12" * 32, signature=b"s" * 64)


def changed(base, path, value):
    document = json.loads(json.dumps(base))
    *parents, last = path
    at = document
    for step in parents:
        at = at[step]
    at[last] = value
    return canonical_json(document)


def test_a_statement_and_its_envelope_round_trip():
    assert parse_statement(STATEMENT.encode()) == STATEMENT
    assert parse_envelope(ENVELOPE.encode()) == ENVELOPE


def test_a_statement_is_in_totos():
    assert BASE["_type"] == "https://in-toto.io/Statement/v1"
    assert BASE["predicateType"] == "urn:cvmtool:training-receipt:v1"
    assert BASE["subject"][0] == {"name": "model.bin", "digest": {"sha256": "aa" * 32}}


def test_the_signed_bytes_are_dsses():
    # The vector of the DSSE specification, for our payload type.
    assert pae(b"hello world") == b"DSSEv1 28 application/vnd.in-toto+json 11 hello world"


def test_the_keyid_is_the_hash_of_the_key():
    assert key_id(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_an_envelope_may_be_pretty():
    assert parse_envelope(json.dumps(ENVELOPE.to_json(), indent=1).encode()) == ENVELOPE


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (["payloadType"], "application/json", "payloadType"),
        (["payloadType"], {}, "payloadType"),
        (["payload"], "!", "payload"),
        (["payload"], None, "payload"),
        (["signatures"], [], "signatures"),
        (["signatures"], [ENVELOPE.to_json()["signatures"][0]] * 2, "signatures"),
        (["signatures"], ["x"], "signatures"),
        (["signatures", 0, "keyid"], "12", "keyid"),
        (["signatures", 0, "keyid"], "AB" * 32, "keyid"),
        (["signatures", 0, "sig"], "AAAA", "sig"),
        (["signatures", 0, "sig"], "A" * 88, "sig"),
        (["signatures", 0, "cert"], "x", "unknown"),
        (["more"], 1, "unknown"),
    ],
)
def test_an_envelope_out_of_shape_is_refused(path, value, named):
    with pytest.raises(FormatError, match=named):
        parse_envelope(changed(ENVELOPE.to_json(), path, value))


def test_an_envelope_has_a_limit():
    with pytest.raises(FormatError):
        parse_envelope(ENVELOPE.encode() + b" " * MAX_RECEIPT)


P = "predicate"


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (["_type"], "https://in-toto.io/Statement/v0.1", "_type"),
        (["predicateType"], "urn:cvmtool:training-receipt:v2", "predicateType"),
        (["predicateType"], 1, "predicateType"),
        ([P, "simulated"], "false", "simulated"),
        ([P, "simulated"], 0, "simulated"),
        ([P, "nonce"], "00", "nonce"),
        ([P, "evidence"], "AAAA", "evidence"),
        ([P, "manifest_sha256"], "M", "manifest_sha256"),
        ([P, "owner_key"], None, "owner_key"),
        ([P, "container_digest"], 1, "container_digest"),
        ([P, "inputs"], {}, "inputs"),
        ([P, "inputs"], ["data"], "inputs"),
        ([P, "inputs", 0, "root_hash"], "x", "root_hash"),
        ([P, "inputs", 0, "more"], "x", "unknown"),
        ([P, "log", "sha256"], "x", "log"),
        ([P, "log", "size"], -1, "log"),
        ([P, "log"], None, "log"),
        ([P, "exit_code"], 256, "exit_code"),
        ([P, "exit_code"], -1, "exit_code"),
        ([P, "started"], 1, "started"),
        ([P, "finished"], None, "finished"),
        ([P, "more"], 1, "unknown"),
        (["more"], 1, "unknown"),
        (["subject"], [], "different"),
        (["subject"], ["x"], "subject"),
        (["subject", 0, "digest"], {"sha512": "aa"}, "digest"),
        (["subject", 0, "digest", "sha256"], "AA" * 32, "digest"),
        (["subject", 0, "name"], "../../etc/passwd", "name"),
        (["subject", 0, "name"], "/etc/passwd", "name"),
        (["subject", 0, "name"], "other", "other"),
        (["subject", 1], BASE["subject"][0], "different"),
        ([P, "output_sizes", "model.bin"], -5, "model.bin"),
        ([P, "output_sizes", "extra"], 1, "different"),
    ],
)
def test_a_statement_out_of_shape_is_refused(path, value, named):
    with pytest.raises(FormatError, match=named):
        parse_statement(changed(BASE, path, value))


@pytest.mark.parametrize("key", [*BASE, *BASE[P]])
def test_every_key_is_required(key):
    document = json.loads(STATEMENT.encode())
    (document if key in document else document[P]).pop(key)
    with pytest.raises(FormatError, match=key):
        parse_statement(canonical_json(document))


PATHS = [[key] for key in BASE] + [[P, key] for key in BASE[P]]


@given(st.sampled_from(PATHS), JSON)
def test_any_value_is_a_statement_or_a_format_error(path, value):
    with contextlib.suppress(FormatError):
        data = changed(BASE, path, value)
        assert parse_statement(data).encode() == data


@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_a_format_error(data):
    for parse in (parse_envelope, parse_statement):
        with contextlib.suppress(FormatError):
            parse(data)
