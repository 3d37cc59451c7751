# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import json
import os
import stat
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import ConfigError, CvmError, FormatError, HostError
from cvmtool.flows.records import MachineRecord, forget_record, load_record, process_lives, records, save_record

RECORD = MachineRecord(name="m1", job="digits", host="lab", uri="qemu:///session", machines="/m", pid=1234)
VALUE = {"name": "m1", "job": "digits", "host": "lab", "uri": "qemu:///session", "machines": "/m", "pid": 1234}


def test_a_record_is_found_again_and_forgotten(tmp_path):
    folder = tmp_path / "machines"
    save_record(folder, RECORD)
    assert load_record(folder, "m1") == RECORD
    assert list(records(folder)) == [RECORD]
    assert stat.S_IMODE((folder / "m1.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    forget_record(folder, "m1")
    forget_record(folder, "m1")
    assert load_record(folder, "m1") is None


def test_a_name_is_given_once(tmp_path):
    save_record(tmp_path, RECORD)
    with pytest.raises(HostError) as refusal:
        save_record(tmp_path, RECORD)
    assert refusal.value.hint == "cvmtool vm destroy m1"


@pytest.mark.parametrize("name", ["..", "../x", "", "/etc/passwd", "A", ".store"])
def test_no_name_leads_elsewhere(tmp_path, name):
    with pytest.raises(ConfigError):
        load_record(tmp_path, name)
    with pytest.raises(ConfigError):
        forget_record(tmp_path, name)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff", b"x" * 70_000]
    + [
        json.dumps({**VALUE, **change}).encode()
        for change in (
            {"name": "m2"},
            {"name": "../m1"},
            {"job": None},
            {"pid": 0},
            {"pid": -1},
            {"pid": True},
            {"pid": "5"},
            {"extra": 1},
        )
    ]
    + [json.dumps({key: value for key, value in VALUE.items() if key != lacking}).encode() for lacking in VALUE],
)
def test_a_damaged_record_is_named_and_hides_no_other(tmp_path, content):
    save_record(tmp_path, MachineRecord(**{**VALUE, "name": "m2"}))
    (tmp_path / "m1.json").write_bytes(content)
    with pytest.raises(FormatError):
        load_record(tmp_path, "m1")
    assert [record.name for record in records(tmp_path)] == ["m2"]


@given(st.binary(max_size=300))
def test_any_bytes_are_a_record_or_refused(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("records")
    (folder / "m1.json").write_bytes(content)
    with pytest.raises(CvmError):
        load_record(folder, "m1")


def test_no_machines_at_all(tmp_path):
    assert list(records(tmp_path / "missing")) == []


def test_a_process_lives_until_it_ends(monkeypatch):
    assert process_lives(os.getpid())
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert not process_lives(process.pid)
    assert not process_lives(1 << 70)

    def forbidden(_pid, _signal):
        raise PermissionError

    monkeypatch.setattr(os, "kill", forbidden)
    assert process_lives(1)
