# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats.machine import MAX_VOLUMES
from cvmtool.formats.release import MAX_ACCEPTED, MAX_SECRETS, Secrets, VolumeSecret, parse_secrets, release_info
from cvmtool.formats.volume import Epoch
from cvmtool.formats.wire import canonical_json, lp

ROOT = "0a" * 32
KEY = "f3" * 32
UUID = "5e1f0a3c-0000-4000-8000-0123456789ab"
EPOCHS = st.builds(Epoch, counter=st.integers(1, 1 << 40), mark=st.binary(min_size=32, max_size=32).map(bytes.hex))
VOLUME = VolumeSecret(
    passphrase=bytes.fromhex(KEY),
    blank=False,
    accept=(Epoch(counter=3, mark="0b" * 32),),
    next=Epoch(counter=4, mark="0c" * 32),
)


def encoded(packs, schema="cvmtool/secrets/v1", volumes={}):  # noqa: B006
    return canonical_json({"schema": schema, "packs": packs, "volumes": volumes})


@given(st.dictionaries(st.binary(min_size=32, max_size=32).map(bytes.hex), st.binary(min_size=32, max_size=32)))
def test_secrets_round_trip(packs):
    assert parse_secrets(Secrets(packs=packs).encode()) == Secrets(packs=packs)


@given(
    st.dictionaries(
        st.uuids().map(str),
        st.builds(
            VolumeSecret,
            passphrase=st.binary(min_size=32, max_size=32),
            blank=st.booleans(),
            accept=st.lists(EPOCHS, max_size=3).map(tuple),
            next=EPOCHS,
        ),
        max_size=3,
    )
)
def test_secrets_of_volumes_round_trip(volumes):
    assert parse_secrets(Secrets(volumes=volumes).encode()) == Secrets(volumes=volumes)


def test_the_secrets_of_all_volumes_fit():
    worst = Epoch(counter=(1 << 63) - 1, mark="0b" * 32)
    secret = dataclasses.replace(VOLUME, accept=(worst,) * MAX_ACCEPTED, next=worst)
    volumes = {f"{index:08x}{UUID[8:]}": secret for index in range(MAX_VOLUMES)}
    assert len(parse_secrets(Secrets(volumes=volumes).encode()).volumes) == MAX_VOLUMES


def test_secrets_are_spelled_as_the_protocol_says():
    data = Secrets(packs={ROOT: bytes.fromhex(KEY)}).encode()
    assert data == f'{{"packs":{{"{ROOT}":"{KEY}"}},"schema":"cvmtool/secrets/v1","volumes":{{}}}}'.encode()


def test_secrets_are_never_printed():
    secrets = Secrets(packs={ROOT: bytes.fromhex(KEY)}, volumes={UUID: VOLUME})
    assert "passphrase" not in repr(VOLUME)
    for text in (repr(secrets), str(secrets), f"{secrets}"):
        assert text == "<secrets of 1 packs and 1 volumes>"


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
        canonical_json({"schema": "cvmtool/secrets/v1", "packs": {}}),
        canonical_json({"schema": "cvmtool/secrets/v1", "packs": {}, "volumes": {}, "more": 1}),
        encoded({}, volumes=[]),
        encoded({}, volumes={UUID.upper(): VOLUME.to_json()}),
        encoded({}, volumes={UUID: KEY}),
        *[
            encoded({}, volumes={UUID: {**VOLUME.to_json(), key: value}})
            for key, value in (
                ("passphrase", KEY[:-2]),
                ("passphrase", KEY.upper()),
                ("blank", 1),
                ("accept", None),
                ("accept", [KEY]),
                ("accept", [VOLUME.next.to_json()] * (MAX_ACCEPTED + 1)),
                ("next", None),
                ("next", {"counter": 0, "mark": ROOT}),
                ("more", 1),
            )
        ],
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
