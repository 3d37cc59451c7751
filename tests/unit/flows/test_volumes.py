# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import json
import stat
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import ConfigError, CvmError, FormatError
from cvmtool.flows.volumes import VolumeRecord, Volumes
from cvmtool.owner.epochs import History

UUID = "4b5ba483-9246-4cd1-94bb-1ac21f3c052c"
RECORD = VolumeRecord(
    luks_uuid=UUID,
    name="data",
    size=256 << 20,
    host="lab",
    path="/machines/.volumes/x.img",
    machine="one",
    history=History(),
)


@pytest.fixture
def volumes(tmp_path):
    return Volumes(tmp_path / "volumes")


def test_a_volume_is_found_again_and_forgotten(volumes, tmp_path):
    record = RECORD.begun().acknowledged().begun()
    volumes.save(record)
    assert volumes.load(UUID) == record
    assert list(volumes.all()) == [record]
    assert stat.S_IMODE((tmp_path / "volumes" / f"{UUID}.json").stat().st_mode) == 0o600
    volumes.forget(UUID)
    volumes.forget(UUID)
    with pytest.raises(ConfigError) as missing:
        volumes.load(UUID)
    assert missing.value.hint == "cvmtool vm volumes"


def test_no_two_states_have_one_mark():
    marks = {RECORD.begun().history.next.mark for _ in range(50)}
    assert len(marks) == 50


def test_a_volume_may_be_made_until_a_guest_said_that_it_was():
    assert RECORD.volume().create
    assert RECORD.begun().volume().create
    assert not RECORD.begun().acknowledged().volume().create


def test_what_was_begun_and_refused_is_withdrawn():
    acknowledged = RECORD.begun().acknowledged()
    assert acknowledged.begun().withdrawn() == acknowledged


def test_the_disk_is_writable_and_found_by_its_uuid():
    disk = RECORD.disk()
    assert (disk.path, disk.writable, disk.serial) == (RECORD.path, True, "4b5ba48392464cd194bb")


def test_volumes_come_by_machine_and_name(volumes):
    for number, (machine, name) in enumerate([("two", "a"), ("one", "b"), ("", "c"), ("one", "a")]):
        luks_uuid = f"{number}{UUID[1:]}"
        volumes.save(replace(RECORD, luks_uuid=luks_uuid, machine=machine, name=name))
    assert [(item.machine, item.name) for item in volumes.all()] == [
        ("", "c"),
        ("one", "a"),
        ("one", "b"),
        ("two", "a"),
    ]


@pytest.mark.parametrize("name", ["", "..", "../x", "x", UUID.upper(), f"{UUID}/..", f"{UUID}\n"])
def test_no_uuid_leads_elsewhere(volumes, name):
    with pytest.raises(FormatError):
        volumes.load(name)
    with pytest.raises(FormatError):
        volumes.forget(name)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "x"},
        {"size": "1"},
        {"size": True},
        {"path": 5},
        {"history": {}},
        {"history": "{}"},
        {"luks_uuid": "x"},
        {"more": 1},
    ],
)
def test_a_damaged_record_is_named_and_hides_no_other(volumes, tmp_path, change):
    volumes.save(RECORD)
    other = replace(RECORD, luks_uuid=f"5{UUID[1:]}")
    volumes.save(other)
    path = tmp_path / "volumes" / f"{UUID}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(FormatError):
        volumes.load(UUID)
    assert list(volumes.all()) == [other]


@given(st.binary(max_size=300))
def test_any_bytes_are_a_record_or_refused(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("volumes")
    (folder / f"{UUID}.json").write_bytes(content)
    with pytest.raises(CvmError):
        Volumes(folder).load(UUID)
