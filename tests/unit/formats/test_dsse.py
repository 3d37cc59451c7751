# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats.dsse import MAX_ENVELOPE, Envelope, key_id, pae, parse_envelope
from tests.samples import changed_json

ENVELOPE = Envelope(payload=b"{}", keyid="12" * 32, signature=b"s" * 64)


def test_an_envelope_round_trips():
    assert parse_envelope(ENVELOPE.encode()) == ENVELOPE


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
        parse_envelope(changed_json(ENVELOPE.to_json(), path, value))


def test_an_envelope_has_a_limit():
    with pytest.raises(FormatError):
        parse_envelope(ENVELOPE.encode() + b" " * MAX_ENVELOPE)


@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_a_format_error(data):
    with contextlib.suppress(FormatError):
        parse_envelope(data)
