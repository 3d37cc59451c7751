# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
from dataclasses import fields
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.formats.tcb import Cpuid
from cvmtool.measure.deviations import (
    ADDED_WORDS,
    COMMON_FEATURES,
    FEATURE_NAMES,
    MOST_FEATURES,
    SILICON,
    Launch,
    Part,
    boot_files,
    command_lines,
    cpu_text,
    every_feature_set,
    every_signature,
    features_text,
    vcpus_text,
    virtual_cpus,
)
from cvmtool.measure.hashes import kernel_hashes
from cvmtool.measure.vmsa import CPU_SIGNATURES, Vmm

LINE = "console=ttyS0 quiet panic=-1"


def hashed(line):
    return kernel_hashes(b"", b"", line).cmdline


def test_a_deviation_changes_fields_of_a_launch_and_nothing_else():
    names = {field.name for field in fields(Launch)} - {"vcpus"}
    for deviation in (*virtual_cpus(), *boot_files(), *command_lines(LINE)):
        assert deviation.values
        assert deviation.values.keys() <= names


def test_every_model_processor_and_monitor_is_tried():
    found = virtual_cpus()
    assert {d.values["cpu"] for d in found if d.part is Part.CPU} >= {*CPU_SIGNATURES.values(), *SILICON.values()}
    assert {d.values["vmm"] for d in found if d.part is Part.VMM} == set(Vmm)
    assert [d.values["guest_features"] for d in found if d.part is Part.FEATURES] == list(COMMON_FEATURES)


def test_the_reports_own_processor_comes_first():
    assert virtual_cpus(0xB00F24)[0].values == {"cpu": 0xB00F24}
    signatures = [d.values["cpu"] for d in virtual_cpus(CPU_SIGNATURES["EPYC-Milan"]) if d.part is Part.CPU]
    assert len(signatures) == len(set(signatures))


def test_the_processors_are_those_that_reports_know():
    for name, signature in SILICON.items():
        family, model = 0xF + (signature >> 20), (signature >> 16 & 0xF) << 4 | signature >> 4 & 0xF
        silicon = Cpuid(family=family, model=model, stepping=signature & 0xF).silicon
        assert silicon is not None, name
    assert set(SILICON.values()) <= {d.values["cpu"] for d in every_signature()}


def test_each_set_of_features_is_tried_once_and_has_snp():
    sets = [d.values["guest_features"] for d in every_feature_set()]
    assert len(sets) == len(set(sets)) == sum(comb(len(FEATURE_NAMES) - 1, count) for count in range(MOST_FEATURES + 1))
    assert all(features & 1 for features in sets)
    assert set(COMMON_FEATURES) <= set(sets)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"{LINE}\n", "line feed"),
        (f"{LINE} ", "ends in a space"),
        (f" {LINE}", "begins with a space"),
        (f'"{LINE}"', "double quotes"),
        ("", "empty"),
        (f"{LINE} initrd=initrd", "'initrd=initrd' added behind"),
        (f"initrd=initrd {LINE}", "'initrd=initrd' added before"),
        (f"init=/bin/sh {LINE}", "'init=/bin/sh' added before"),
        ("console=ttyS0 panic=-1", "without 'quiet'"),
        ("console=ttyS0 quiet  panic=-1", "two spaces before 'panic=-1'"),
    ],
)
def test_what_happens_to_command_lines_is_tried(line, said):
    (found,) = [d for d in command_lines(LINE) if d.values["cmdline"] == hashed(line)]
    assert said in found.actual


def test_the_closing_nul_may_be_missing_or_double():
    import hashlib

    tried = {d.values["cmdline"] for d in command_lines(LINE)}
    assert {hashlib.sha256(LINE.encode() + nul).digest() for nul in (b"", b"\0\0")} <= tried


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60))
def test_any_line_has_deviations_with_words_of_their_own(line):
    found = command_lines(line)
    assert len(found) > len(ADDED_WORDS)
    assert len({d.values["cmdline"] for d in found}) == len(found)


def test_words():
    assert features_text(1) == "SEV_FEATURES 0x1 (SNP alone)"
    assert features_text(0x221) == "SEV_FEATURES 0x221 (DebugSwap, SecureTSC)"
    assert features_text(1 | 1 << 40) == "SEV_FEATURES 0x10000000001 (bit 40)"
    assert cpu_text(0xA00F11) == "CPU signature 0xa00f11 (EPYC-Milan, -cpu host on Milan)"
    assert cpu_text(0x123) == "CPU signature 0x123"
    assert (vcpus_text(1), vcpus_text(2)) == ("1 vCPU", "2 vCPUs")
