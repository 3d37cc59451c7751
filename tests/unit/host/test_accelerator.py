# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import json
import os
from pathlib import Path

import pytest

from cvmtool.host.accelerator import Acceleration, ProbeBoot, probe_kvm

TALKS = """#!/bin/sh
echo run >> {log}
for argument; do case "$argument" in file:*) console="${{argument#file:}}";; esac; done
{body}
"""


@pytest.fixture
def probe(tmp_path):
    """A function that probes with an emulator of a given shell script, and counts how often it ran."""
    cache = tmp_path / "cache"
    cache.mkdir()
    log = tmp_path / "log"
    device = tmp_path / "kvm"
    device.write_bytes(b"")

    class Probe:
        runs = property(lambda self: len(log.read_text().splitlines()) if log.exists() else 0)
        kept = property(lambda self: sorted(cache.iterdir()))

        def __call__(self, body, *, seconds=20.0, device=device, **changes):
            emulator = tmp_path / "qemu"
            if not emulator.exists():
                emulator.write_text(TALKS.format(log=log, body=body))
                emulator.chmod(0o755)
            boot = {
                "emulator": str(emulator),
                "cpu": "EPYC-Genoa",
                "firmware": Path("/f"),
                "kernel": Path("/k"),
                "initrd": Path("/i"),
                "cmdline": "quiet",
                "hash_table": b"table",
                "hash_table_gpa": 0x810C00,
            }
            return probe_kvm(ProbeBoot(**{**boot, **changes}), cache=cache, device=device, seconds=seconds)

    return Probe()


PROVES = 'echo "CVM-STAGE initrd" > "$console"; exec sleep 60'


def test_a_guest_that_speaks_proves_kvm(probe):
    assert probe(PROVES) == Acceleration(domain_type="kvm", reason="a guest booted under KVM")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('echo "KVM internal error. Suberror: 1" >&2; exec sleep 60', "KVM internal error"),
        ('echo "one" >&2; echo "Could not access KVM" >&2; exit 1', "Could not access KVM"),
        ("exit 3", "ended with 3"),
        ('echo "other words" > "$console"; exit 0', "ended with 0"),
    ],
)
def test_an_emulator_that_fails_means_emulation_and_says_why(probe, body, reason):
    answer = probe(body)
    assert answer.domain_type == "qemu"
    assert reason in answer.reason


def test_a_guest_that_hangs_is_given_up(probe):
    answer = probe("exec sleep 60", seconds=0.3)
    assert answer.domain_type == "qemu"
    assert "printed nothing" in answer.reason


def test_an_emulator_that_cannot_be_started_means_emulation(probe, tmp_path):
    (tmp_path / "qemu").write_bytes(b"no program")
    answer = probe("")
    assert answer.domain_type == "qemu"
    assert "cannot be started" in answer.reason
    assert "cannot be started" in probe("", emulator="/missing/qemu").reason


def test_no_device_no_probe(probe, tmp_path, monkeypatch):
    assert "does not exist" in probe(PROVES, device=tmp_path / "missing").reason
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "may not be opened" in probe(PROVES).reason
    assert probe.runs == 0


def test_the_answer_is_kept_for_the_same_boot_alone(probe):
    first = probe(PROVES)
    assert probe(PROVES) == first
    assert probe.runs == 1
    for changes in ({"cpu": "EPYC-Milan"}, {"cmdline": "loud"}, {"hash_table": b"other"}):
        probe(PROVES, **changes)
    assert probe.runs == 4


def test_a_failure_is_asked_about_again_after_a_day(probe):
    fails = "exit 1"
    probe(fails)
    probe(fails)
    assert probe.runs == 1
    yesterday = probe.kept[0].stat().st_mtime - 90_000
    os.utime(probe.kept[0], (yesterday, yesterday))
    probe(fails)
    assert probe.runs == 2


def test_nothing_of_a_probe_is_left_but_its_answer(probe):
    probe(PROVES)
    assert [path.suffix for path in probe.kept] == [".json"]


@pytest.mark.parametrize("content", ["", "{", "[]", "1", "{}", '{"domain_type": "xen", "reason": ""}', "null"])
def test_a_kept_answer_that_cannot_be_read_is_found_again(probe, content):
    first = probe(PROVES)
    probe.kept[0].write_text(content)
    assert probe(PROVES) == first
    assert probe.runs == 2
    assert json.loads(probe.kept[0].read_text())["domain_type"] == "kvm"


def test_the_emulator_gets_the_machines_own_boot_chain(probe, tmp_path):
    seen = tmp_path / "seen"
    probe(f'printf "%s\\n" "$@" > {seen}; exit 1')
    arguments = seen.read_text().splitlines()
    given = {"-bios": "/f", "-kernel": "/k", "-initrd": "/i", "-append": "quiet", "-accel": "kvm", "-cpu": "EPYC-Genoa"}
    for option, value in given.items():
        assert arguments[arguments.index(option) + 1] == value
    assert any(argument.startswith("loader,addr=0x810c00,file=") for argument in arguments)


def test_the_emulator_finds_the_hash_table_where_it_is_told(probe, tmp_path):
    seen = tmp_path / "seen"
    take = 'case "$a" in loader,*) f="${a#*file=}"; cat "${f%,force-raw=on}";; esac'
    probe(f"for a; do {take}; done > {seen}; exit 1")
    assert seen.read_bytes() == b"table"
