# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats.volume import MAX_EPOCH, MIN_VOLUME, Epoch, Volume, epoch_from, parse_epoch, parse_volume

VOLUME = Volume(name="data", luks_uuid="5e1f0a3c-1111-4000-8000-0123456789ab", size=1 << 30, create=True)
EPOCH = Epoch(counter=7, mark="0b" * 32)


def test_a_volume_round_trips():
    assert parse_volume(VOLUME.to_json()) == VOLUME


def test_the_serial_is_the_beginning_of_the_uuid_and_fits_virtio():
    assert VOLUME.serial == "5e1f0a3c111140008000"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "Data"),
        ("name", "../data"),
        ("name", 1),
        ("luks_uuid", VOLUME.luks_uuid.upper()),
        ("luks_uuid", "x"),
        ("luks_uuid", None),
        ("size", MIN_VOLUME - 4096),
        ("size", MIN_VOLUME + 512),
        ("size", 1 << 51),
        ("create", 1),
        ("create", "yes"),
        ("more", 1),
    ],
)
def test_any_other_volume_is_refused(key, value):
    with pytest.raises(FormatError, match=key):
        parse_volume({**VOLUME.to_json(), key: value})


@pytest.mark.parametrize("key", ["name", "luks_uuid", "size", "create"])
def test_a_volume_has_all_its_keys(key):
    with pytest.raises(FormatError, match=key):
        parse_volume({name: value for name, value in VOLUME.to_json().items() if name != key})


def test_an_epoch_is_spelled_as_the_protocol_says():
    assert EPOCH.encode() == b'{"counter":7,"mark":"%b"}' % (b"0b" * 32)


@given(st.integers(1, (1 << 63) - 1), st.binary(min_size=32, max_size=32))
def test_an_epoch_round_trips(counter, mark):
    epoch = Epoch(counter=counter, mark=mark.hex())
    assert parse_epoch(epoch.encode()) == epoch
    assert len(epoch.encode()) <= MAX_EPOCH


@given(st.binary(max_size=300))
def test_any_bytes_are_an_epoch_or_a_format_error(data):
    with contextlib.suppress(FormatError):
        assert parse_epoch(data).encode() == data


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"counter": 0, "mark": "0b" * 32},
        {"counter": True, "mark": "0b" * 32},
        {"counter": 1, "mark": "0b"},
    ],
)
def test_what_is_no_epoch(value):
    with pytest.raises(FormatError):
        epoch_from(value)
