# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
from cvmtool.measure.hashes import kernel_hashes
from cvmtool.measure.launch import PageType, firmware_seed, launch_digest
from cvmtool.measure.trace import page_counts, trace
from cvmtool.measure.vmsa import Vmm
from tests.unit.measure.test_ovmf import firmware

FIRMWARE = firmware(pages=2)
HASHES = kernel_hashes(b"kernel", b"initrd", "quiet")
GIVEN = {"cpu": "EPYC-Milan-v2", "vcpus": 7, "guest_features": 0x21, "vmm": Vmm.QEMU_LEGACY}


def test_a_trace_ends_in_the_launch_digest():
    steps = trace(FIRMWARE, HASHES, **GIVEN)
    assert steps[-1].digest == launch_digest(FIRMWARE, hashes=HASHES, **GIVEN)
    assert [(step.kind, step.count) for step in steps] == [
        (PageType.NORMAL, 2),
        (PageType.ZERO, 9),
        (PageType.SECRETS, 1),
        (PageType.CPUID, 1),
        (PageType.NORMAL, 1),
        (PageType.VMSA, 7),
    ]
    assert steps[1].gpa == 0x800000


def test_a_trace_starts_with_the_firmwares_seed_and_takes_one():
    seed = firmware_seed(FIRMWARE)
    steps = trace(FIRMWARE, None, **GIVEN)
    assert steps[0].digest == seed.digest
    assert trace(seed, None, **GIVEN) == steps


def test_pages_are_counted_by_type():
    assert page_counts(trace(FIRMWARE, HASHES, **GIVEN)) == {
        PageType.NORMAL: 3,
        PageType.ZERO: 9,
        PageType.SECRETS: 1,
        PageType.CPUID: 1,
        PageType.VMSA: 7,
    }
