# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import pytest

from cvmtool.measure.explain import find_inputs, trace
from cvmtool.measure.hashes import kernel_hashes
from cvmtool.measure.launch import PageType, firmware_seed, launch_digest
from cvmtool.measure.vmsa import Vmm
from tests.unit.measure.test_ovmf import firmware

FIRMWARE = firmware(pages=2)
KERNELS = {
    "production": kernel_hashes(b"kernel", b"initrd", "quiet"),
    "dryrun": kernel_hashes(b"kernel", b"initrd", "quiet cvmtool.dryrun=1"),
    "none": None,
}
GIVEN = {"cpu": "EPYC-Milan-v2", "vcpus": 7, "guest_features": 0x21, "vmm": Vmm.QEMU_LEGACY}


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_inputs_of_a_digest_are_found(kernel):
    digest = launch_digest(FIRMWARE, hashes=KERNELS[kernel], **GIVEN)
    (match,) = find_inputs(FIRMWARE, KERNELS, digest, vcpus=9)
    assert (match.kernel, match.vcpus, match.guest_features, match.vmm) == (kernel, 7, 0x21, Vmm.QEMU_LEGACY)
    assert "EPYC-Milan-v2" in match.cpus
    assert all(model.startswith("EPYC-Milan") for model in match.cpus)


def test_another_digest_is_not_found():
    assert list(find_inputs(FIRMWARE, KERNELS, b"\1" * 48, vcpus=3)) == []


def test_a_count_beyond_the_search_is_not_found():
    digest = launch_digest(FIRMWARE, hashes=None, **GIVEN)
    assert list(find_inputs(FIRMWARE, {"none": None}, digest, vcpus=6)) == []


def test_a_trace_ends_in_the_launch_digest():
    steps = trace(FIRMWARE, KERNELS["production"], **GIVEN)
    assert steps[-1].digest == launch_digest(FIRMWARE, hashes=KERNELS["production"], **GIVEN)
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
    assert list(find_inputs(seed, {"none": None}, steps[-1].digest, vcpus=7))
