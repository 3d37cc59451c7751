# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A healthy host, one fact changed, and the verdict of the check that looks at it. Bounds from both sides."""

from dataclasses import replace

import pytest

from cvmtool.host.doctor import processor, room, stack
from cvmtool.host.doctor.checks import diagnose
from cvmtool.host.doctor.facts import Asids, Firmware, Gpu, Memory
from cvmtool.host.doctor.line import Use, Verdict
from cvmtool.host.doctor.source import Claim, FileKind
from tests.unit.host.doctor.recorded import RecordedHost, seen

HEALTHY = seen(RecordedHost("genoa"))
NOTHING = Claim(source="x", problem="this user may not look at it")
MISSING = Claim(source="x", problem="does not exist", missing=True)
GPU = Gpu(slot="0000:41:00.0", driver="vfio-pci", group=1)


def host(**changes):
    claims = {
        name: value if isinstance(value, Claim) else Claim(source="x", value=value) for name, value in changes.items()
    }
    return replace(HEALTHY, host=replace(HEALTHY.host, **claims))


def owner(**changes):
    return replace(HEALTHY, owner=replace(HEALTHY.owner, **changes))


def log(**changes):
    return host(log=replace(HEALTHY.host.log.value, **changes))


def platform(**changes):
    status = replace(HEALTHY.trials.platform.value, **changes)
    return replace(HEALTHY, trials=replace(HEALTHY.trials, platform=Claim(source="x", value=status)))


def daemon(**changes):
    return host(daemon=replace(HEALTHY.host.daemon.value, **changes), gpus=(GPU,))


def remote(skew):
    changed = host(skew=skew)
    return replace(changed, owner=replace(changed.owner, remote=True))


def afar(**changes):
    changed, trials = host(**changes), replace(HEALTHY.trials, kvm=NOTHING, tcg=NOTHING)
    return replace(changed, owner=replace(changed.owner, remote=True), trials=trials)


def memory(available, huge=0, huge_free=0):
    return host(memory=Memory(total=1 << 30, available=available, huge=huge, huge_free=huge_free))


OK, WARN, FAIL, UNKNOWN = Verdict.OK, Verdict.WARN, Verdict.FAIL, Verdict.UNKNOWN
GIB = 1 << 20  # KiB

CASES = [
    # The kernel: by what KVM offers, else by version.
    (processor.kernel, host(kvm_amd=MISSING, release="6.11.0"), OK),
    (processor.kernel, host(kvm_amd=MISSING, release="6.10.14"), FAIL),
    (processor.kernel, host(kvm_amd=MISSING, release="7.0.0"), OK),
    (processor.kernel, host(kvm_amd=MISSING, release=NOTHING), UNKNOWN),
    (processor.kernel, host(release="5.14.0"), OK),
    # The MSR outweighs the flags.
    (processor.memory_encryption, host(syscfg=0), FAIL),
    (processor.memory_encryption, host(syscfg=1 << 23), OK),
    (processor.memory_encryption, host(syscfg=NOTHING), OK),
    (processor.memory_encryption, host(syscfg=NOTHING, cpu=NOTHING), UNKNOWN),
    (processor.asid_split, host(log=NOTHING), OK),
    (processor.asid_split, host(log=NOTHING, asids=Asids(total=0, used=0)), FAIL),
    (processor.asid_split, host(log=NOTHING, asids=NOTHING), UNKNOWN),
    (processor.rmp, log(rmp_size=None), UNKNOWN),
    (processor.rmp, log(rmp_size=None, rmp_segmented=True), OK),
    (processor.rmp, log(rmp_size=791_000_000 * 1024 // 256 // 16 * 16 - 4096), FAIL),
    (processor.rmp, host(log=NOTHING), UNKNOWN),
    (processor.iommu, host(log=NOTHING), OK),
    (processor.iommu, host(log=NOTHING, kvm_amd=NOTHING), UNKNOWN),
    (processor.iommu, host(log=NOTHING, kvm_amd=NOTHING, cmdline=("iommu=pt",)), FAIL),
    # What the log says of now outweighs what stands on the command line.
    (processor.iommu, host(cmdline=("iommu=pt",)), OK),
    (processor.psp, host(log=NOTHING), OK),
    (processor.psp, host(log=NOTHING, dev_sev=MISSING), UNKNOWN),
    (processor.psp, host(log=NOTHING, dev_sev=MISSING, modules=frozenset({"kvm"})), FAIL),
    (processor.psp, log(sev_error="SEV: failed to INIT"), OK),
    (processor.psp, log(psp_error="SEV-SNP: failed to INIT"), FAIL),
    (processor.psp_firmware, platform(api=(1, 51, 0)), OK),
    (processor.psp_firmware, platform(api=(1, 50, 9)), FAIL),
    (stack.kvm_device, host(dev_kvm=MISSING), FAIL),
    (stack.kvm_device, host(dev_kvm=NOTHING), UNKNOWN),
    (stack.kvm_device, host(dev_kvm=replace(HEALTHY.host.dev_kvm.value, kind=FileKind.FILE)), FAIL),
    (stack.kvm_trial, afar(), OK),
    (stack.kvm_trial, afar(modules=frozenset({"kvm", "kvm_intel"})), OK),
    (stack.kvm_trial, afar(modules=frozenset({"kvm", "kvm_pvm"})), UNKNOWN),
    (stack.kvm_trial, afar(modules=NOTHING), UNKNOWN),
    (stack.kvm_trial, afar(cpu=replace(HEALTHY.host.cpu.value, flags=frozenset({"hypervisor"}))), UNKNOWN),
    (stack.tcg_trial, afar(), UNKNOWN),
    (stack.kvm_amd, host(kvm_amd=replace(HEALTHY.host.kvm_amd.value, sev_es=False)), OK),
    (stack.kvm_amd, host(kvm_amd=replace(HEALTHY.host.kvm_amd.value, sev=False)), FAIL),
    (stack.kvm_amd, host(kvm_amd=replace(HEALTHY.host.kvm_amd.value, sev_snp=None)), FAIL),
    (stack.kvm_amd, host(kvm_amd=MISSING), FAIL),
    (stack.kvm_amd, host(kvm_amd=NOTHING), UNKNOWN),
    (stack.asids, host(asids=Asids(total=99, used=95)), OK),
    (stack.asids, host(asids=Asids(total=99, used=96)), WARN),
    (stack.asids, host(asids=Asids(total=99, used=99)), FAIL),
    (stack.asids, host(asids=Asids(total=99, used=None)), UNKNOWN),
    (stack.sev_device, host(dev_sev=replace(HEALTHY.host.dev_sev.value, kind=FileKind.FILE)), FAIL),
    (stack.platform, platform(initialised=False), FAIL),
    (stack.platform, platform(rmp_initialised=False), FAIL),
    (stack.platform, platform(mask_chip_key=True), FAIL),
    (stack.tcb_floors, owner(shortfalls=None), UNKNOWN),
    (stack.qemu_version, host(qemu=replace(HEALTHY.host.qemu.value, version=(9, 2, 0))), OK),
    (stack.qemu_version, host(qemu=replace(HEALTHY.host.qemu.value, version=(9, 1, 9))), FAIL),
    (stack.qemu, host(qemu=NOTHING), UNKNOWN),
    (stack.qemu_sev, host(qemu=replace(HEALTHY.host.qemu.value, sev=None, sev_problem="no")), UNKNOWN),
    (stack.libvirt_version, owner(libvirt=Claim(source="x", value=replace(HEALTHY.owner.libvirt.value, version=(10, 5, 0)))), OK),
    (stack.libvirt_version, owner(libvirt=Claim(source="x", value=replace(HEALTHY.owner.libvirt.value, version=(10, 4, 9)))), FAIL),
    (stack.firmware, owner(firmware=()), WARN),
    # One image that is right is enough: the owner chooses it.
    (stack.firmware, owner(firmware=(Firmware(path="a", problem="no"), Firmware(path="b", problem=""))), OK),
    (room.gpus, host(gpus=NOTHING), UNKNOWN),
    (room.gpus, host(gpus=(GPU,)), OK),
    (room.gpus, host(gpus=(replace(GPU, driver=""),)), OK),
    (room.gpus, host(gpus=(replace(GPU, driver="nvidia"),)), WARN),
    (room.gpus, host(gpus=(replace(GPU, group=None),)), WARN),
    (room.memlock, daemon(may_raise=True, memlock=0), OK),
    (room.memlock, daemon(may_raise=False, memlock=None), OK),
    (room.memlock, daemon(may_raise=False, memlock=(1024 << 20) - 1), FAIL),
    (room.memlock, daemon(may_raise=False, memlock=1024 << 20), WARN),
    (room.memlock, host(gpus=(GPU,), daemon=NOTHING), UNKNOWN),
    (room.memlock, host(daemon=NOTHING), OK),
    (room.memory, host(memory=NOTHING), UNKNOWN),
    (room.huge_pages, host(memory=NOTHING), UNKNOWN),
    (room.memory, memory(GIB), OK),
    (room.memory, memory(GIB - 1), FAIL),
    (room.huge_pages, memory(GIB - 1, huge=GIB, huge_free=GIB), FAIL),
    (room.huge_pages, memory(GIB - 1, huge=GIB, huge_free=GIB - 1), OK),
    (room.huge_pages, memory(GIB, huge=1 << 28, huge_free=1 << 28), OK),
    (room.huge_pages, memory(GIB, huge=1 << 29, huge_free=(1 << 28) + 1), WARN),
    (room.disk, host(disk=2 << 30), OK),
    (room.disk, host(disk=(2 << 30) - 1), FAIL),
    (room.disk, host(disk=NOTHING), UNKNOWN),
    (room.clock, remote(5.0), OK),
    (room.clock, remote(-5.1), WARN),
    (room.clock, remote(300.0), WARN),
    (room.clock, remote(-300.1), FAIL),
    (room.clock, host(synchronised=False), WARN),
    (room.clock, host(skew=NOTHING), UNKNOWN),
    (room.key_service, owner(key_service=Claim(source="x", value="answers")), OK),
]  # fmt: skip


@pytest.mark.parametrize(
    ("check", "changed", "verdict"), CASES, ids=[f"{at}-{case[0].__name__}" for at, case in enumerate(CASES)]
)
def test_one_fact_decides(check, changed, verdict):
    outcome = check(changed)
    assert outcome.verdict is verdict
    assert outcome.evidence
    assert outcome.remedy or verdict not in {WARN, FAIL}


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (room.memory(memory(GIB)), "1024 of 1048576 MiB available"),
        (room.huge_pages(memory(GIB, huge=4096, huge_free=2048)), "4 MiB in huge pages, 2 of them unused"),
        (room.disk(host(disk=3 << 30)), "3072 MiB free"),
        (processor.rmp(log(rmp_size=1 << 30)), "an RMP table of 1024 MiB covers 256 of 754 GiB"),
        (stack.asids(host(asids=Asids(total=99, used=3))), "96 of 99 free"),
        (room.gpus(host(gpus=(replace(GPU, driver=""),))), "0000:41:00.0 driver none"),
    ],
)
def test_evidence_has_the_numbers_in_their_units(outcome, said):
    assert said in outcome.evidence


def test_kvm_that_was_switched_off_is_shown_where():
    off = replace(HEALTHY.host.kvm_amd.value, sev_snp=False)
    outcome = stack.kvm_amd(host(kvm_amd=off, cmdline=("ro", "kvm_amd.sev_snp=0")))
    assert "sev_snp=N" in outcome.evidence
    assert "kvm_amd.sev_snp=0" in outcome.evidence


def test_a_processor_without_virtualisation_is_sent_to_the_bios():
    cpu = replace(HEALTHY.host.cpu.value, flags=frozenset({"sme"}))
    assert "SVM Mode" in stack.kvm_device(host(cpu=cpu, dev_kvm=MISSING)).remedy
    assert stack.kvm_device(host(dev_kvm=MISSING)).remedy == "modprobe kvm_amd"
    assert stack.kvm_device(host(cpu=NOTHING, dev_kvm=MISSING)).remedy == "modprobe kvm_amd"


def test_nothing_is_promised_of_a_host_that_shows_nothing():
    blind = host(**dict.fromkeys(type(HEALTHY.host).__slots__, NOTHING))
    found = diagnose(blind)
    assert found.best is None
    assert {line.outcome.verdict for line in found.lines if line.check.code in {"cpu-vendor", "kvm-amd", "qemu"}} == {
        UNKNOWN
    }


def test_what_is_unknown_and_not_essential_is_no_obstacle():
    assert diagnose(host(log=NOTHING, syscfg=NOTHING, asids=NOTHING, skew=NOTHING)).best is Use.SNP
