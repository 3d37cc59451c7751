# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats.release import MAX_SECRETS, Secrets, parse_secrets, release_info
from cvmtool.formats.wire import canonical_json, lp

ROOT = "0a" * 32
KEY = "f3" * 32


def encoded(packs, schema="cvmtool/secrets/v1"):
    return canonical_json({"schema": schema, "packs": packs})


@given(st.dictionaries(st.binary(min_size=32, max_size=32).map(bytes.hex), st.binary(min_size=32, max_size=32)))
def test_secrets_round_trip(packs):
    assert parse_secrets(Secrets(packs=packs).encode()) == Secrets(packs=packs)


def test_secrets_are_spelled_as_the_protocol_says():
    data = Secrets(packs={ROOT: bytes.fromhex(KEY)}).encode()
    assert data == f'{{"packs":{{"{ROOT}":"{KEY}"}},"schema":"cvmtool/secrets/v1"}}'.encode()


def test_secrets_are_never_printed():
    secrets = Secrets(packs={ROOT: bytes.fromhex(KEY)})
    for text in (repr(secrets), str(secrets), f"{secrets}"):
        assert text == "<secrets of 1 packs>"


@pytest.mark.parametrize(
    "data",
    [
        encoded({ROOT: KEY}, schema="cvmtool/secrets/v2"),
        encoded({ROOT: KEY.upper()}),
        encoded({ROOT: KEY[:-2] + "  "}),
        encoded({ROOT: " " * 64}),
        encoded({ROOT: KEY[:-2]}),
        encoded({ROOT: KEY + "00"}),
        encoded({ROOT: 1}),
        encoded({ROOT.upper(): KEY}),
        encoded({"": KEY}),
        encoded([]),
        canonical_json({"packs": {}}),
        canonical_json({"schema": "cvmtool/secrets/v1", "packs": {}, "more": 1}),
        encoded({ROOT: KEY}) + b"\n",
        bytes(MAX_SECRETS + 1),
    ],
)
def test_any_other_form_is_refused_and_no_value_repeated(data):
    with pytest.raises(FormatError) as refusal:
        parse_secrets(data)
    assert KEY[:16] not in str(refusal.value).lower()
    assert "f3f3" not in str(refusal.value.detail).lower()


@given(st.binary(max_size=100) | st.dictionaries(st.text(), st.text()).map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_secrets_or_a_format_error(data):
    with contextlib.suppress(FormatError):
        assert parse_secrets(data).encode() == data


def test_the_info_of_a_release_is_as_the_protocol_says():
    assert release_info(report_data=b"r" * 64, host_data=b"h" * 32) == lp(b"cvmtool/v1/release", b"r" * 64, b"h" * 32)
