# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A kept seed is the firmware's own, or it is worked out again."""

import hashlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvmtool.errors import ConfigError, FormatError
from cvmtool.flows import seeds as module
from cvmtool.flows.seeds import SeedStore
from cvmtool.measure.launch import firmware_seed
from cvmtool.measure.seed import encode_seed
from tests.unit.measure.test_ovmf import firmware

FIRMWARE = firmware(pages=2)
SHA256 = hashlib.sha256(FIRMWARE).hexdigest()
SEED = firmware_seed(FIRMWARE)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / "seeds"


@pytest.fixture
def measured(monkeypatch):
    """Count how often a firmware is measured."""
    asked = []

    def counted(firmware):
        asked.append(len(firmware))
        return firmware_seed(firmware)

    monkeypatch.setattr(module, "firmware_seed", counted)
    return asked


def test_a_firmware_is_measured_once_for_all_processes(folder, measured):
    assert SeedStore(folder).seed(FIRMWARE) == SEED
    assert SeedStore(folder).seed(FIRMWARE) == SEED
    assert len(measured) == 1
    assert SeedStore(folder).seed(firmware(pages=3)) != SEED
    assert len(measured) == 2


def test_a_file_is_read_only_if_its_seed_is_not_kept(folder, tmp_path, measured):
    path = tmp_path / "OVMF.fd"
    path.write_bytes(FIRMWARE)
    assert SeedStore(folder).seed_of_file(path, SHA256) == SEED
    path.unlink()
    assert SeedStore(folder).seed_of_file(path, SHA256) == SEED
    assert len(measured) == 1


def test_another_file_than_its_sum_says_is_refused_and_not_kept(folder, tmp_path):
    path = tmp_path / "OVMF.fd"
    path.write_bytes(firmware(pages=3))
    for _ in range(2):
        with pytest.raises(ConfigError, match=SHA256):
            SeedStore(folder).seed_of_file(path, SHA256)
    with pytest.raises(ConfigError, match="cannot be read"):
        SeedStore(folder).seed_of_file(tmp_path / "none", SHA256)


def test_what_is_no_firmware_is_not_kept(folder):
    for _ in range(2):
        with pytest.raises(FormatError):
            SeedStore(folder).seed(b"no firmware")


def entry(folder):
    (path,) = folder.iterdir()
    return path


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_entry_is_worked_out_again_and_rewritten(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("seeds")
    store = SeedStore(folder)
    store.seed(FIRMWARE)
    path = entry(folder)
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = data.draw(
        st.sampled_from([whole[:at], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], whole + b"x", b""])
    )
    path.write_bytes(damaged)
    assert store.seed(FIRMWARE) == SEED
    assert path.read_bytes() == whole


def test_a_seed_of_another_schema_behind_a_good_sum_is_ignored(folder):
    SeedStore(folder).seed(FIRMWARE)
    text = encode_seed(SEED).replace(b"seed/v1", b"seed/v2")
    entry(folder).write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
    assert SeedStore(folder).seed(FIRMWARE) == SEED


def test_a_place_that_cannot_be_written_costs_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    assert SeedStore(tmp_path / "file" / "seeds").seed(FIRMWARE) == SEED


def test_the_folder_is_the_users_own(folder):
    SeedStore(folder).seed(FIRMWARE)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert entry(folder).stat().st_mode & 0o777 == 0o600
