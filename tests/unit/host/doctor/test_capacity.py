# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What a host has left, as recorded hosts and this machine say it."""

import shutil

import pytest

from cvmtool.host.doctor.capacity import capacity, cpu_features
from cvmtool.host.doctor.local import LocalView
from tests.unit.host.doctor.recorded import RecordedHost

QEMU = shutil.which("qemu-system-x86_64")


def test_a_recorded_host_says_what_is_left():
    left = capacity(RecordedHost("genoa"), store="/var/lib/cvmtool/machines")
    assert left.memory.value.available > 0
    assert left.disk.value > 0
    assert left.asids.value.total > left.asids.value.used
    assert left.processors.missing  # that host was recorded before anybody asked


def test_what_a_host_keeps_to_itself_is_not_known():
    full = capacity(RecordedHost("disk-full"), store="/var/lib/cvmtool/machines")
    assert full.disk.value < capacity(RecordedHost("genoa"), store="/var/lib/cvmtool/machines").disk.value


def test_this_machine_counts_its_processors():
    assert capacity(LocalView(), store="/").processors.value >= 1


@pytest.mark.skipif(QEMU is None, reason="QEMU is not installed")
def test_emulation_has_avx2_and_no_avx512_whatever_the_model():
    found = {
        model: cpu_features(LocalView(), emulator=QEMU, accelerator="tcg", model=model).value
        for model in ("EPYC-Milan", "EPYC-Genoa")
    }
    assert all("avx2" in features and "avx512f" not in features for features in found.values())


@pytest.mark.skipif(QEMU is None, reason="QEMU is not installed")
def test_a_model_that_qemu_does_not_know_has_no_features():
    found = cpu_features(LocalView(), emulator=QEMU, accelerator="tcg", model="EPYC-Nowhere")
    assert found.value is None
    assert found.problem
