# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Is it the right processor, and did the BIOS switch on what SEV-SNP needs? Questions about CPU, RMP table, IOMMU and PSP.

Zone: host. Pure: no I/O.
Spec: AMD APM volume 2, 15.34 and 15.36 (SME, SEV, SNP, RMP); AMD 56860 SEV-SNP Firmware ABI.
The kernel clears a flag of /proc/cpuinfo that the BIOS did not enable (arch/x86/kernel/cpu/amd.c, early_detect_mem_encrypt,
bsp_determine_snp), so a missing flag on a processor that has the feature is a BIOS setting.
"""

from __future__ import annotations

from cvmtool.formats.tcb import ProductLine
from cvmtool.host.doctor.facts import Seen
from cvmtool.host.doctor.line import Outcome, fail, ok, unknown, warn
from cvmtool.host.doctor.texts import parse_version

FIRST_KERNEL = (6, 11)
"""The first release that hosts SEV-SNP guests (KVM's part was merged there)."""

_SYSCFG_MEMORY_ENCRYPTION = 1 << 23
_LEAST_API = (1, 51)  # SNP_MIN_API, drivers/crypto/ccp/sev-dev.c
_BYTES_PER_RMP_ENTRY = 16
_BIOS = "in the BIOS, AMD CBS > CPU Common Options"


def vendor(seen: Seen) -> Outcome:
    """Is it AMD's?"""
    cpu = seen.host.cpu
    if cpu.value is None:
        return unknown(cpu)
    if cpu.value.vendor != "AuthenticAMD":
        return fail(f"{cpu.source}: {cpu.value.name or cpu.value.vendor}", "use a server with an AMD EPYC processor")
    return ok(f"{cpu.source}: {cpu.value.name}")


def bare_metal(seen: Seen) -> Outcome:
    """Is it a machine, or a guest of another hypervisor?"""
    cpu = seen.host.cpu
    if cpu.value is None:
        return unknown(cpu)
    if "hypervisor" in cpu.value.flags:
        module = seen.host.kvm_amd.value
        if module is not None and module.sev_snp:
            return ok(f"{cpu.source}: flag hypervisor, and its hypervisor hands SNP on: kvm_amd says sev_snp=Y")
        nested = " and kvm_pvm, which emulates" if "kvm_pvm" in (seen.host.modules.value or ()) else ""
        return fail(
            f"{cpu.source}: flag hypervisor{nested}: this is a virtual machine itself",
            "use the machine below it, or rent a bare-metal one",
        )
    return ok(f"{cpu.source}: no hypervisor flag")


def line(seen: Seen) -> Outcome:
    """Which product line and silicon?"""
    cpu = seen.host.cpu
    if cpu.value is None:
        return unknown(cpu)
    cpuid = cpu.value.cpuid
    where = f"family {cpuid.family:#x} model {cpuid.model:#x} stepping {cpuid.stepping}"
    if cpuid.silicon is None:
        return fail(
            f"{cpu.source}: {where} is no silicon that cvmtool knows",
            "SEV-SNP needs an EPYC 7003 (Milan), 9004 or 8004 (Genoa, Bergamo, Siena) or 9005 (Turin)",
        )
    if cpuid.line is ProductLine.MILAN:
        return warn(
            f"{cpu.source}: {cpuid.silicon}, {where}",
            "Milan's chip keys can be extracted by whoever owns the chip: the policy has to list it (docs/limitations.md)",
        )
    return ok(f"{cpu.source}: {cpuid.silicon}, {where}")


def kernel(seen: Seen) -> Outcome:
    """Can this kernel host SEV-SNP guests? A distribution may have brought it to an older release."""
    release, module = seen.host.release, seen.host.kvm_amd.value
    if module is not None and module.sev_snp is not None:
        return ok(f"{seen.host.kvm_amd.source}: kvm_amd has the parameter sev_snp; Linux {release.value or 'unknown'}")
    if release.value is None:
        return unknown(release)
    if parse_version(release.value)[:2] < FIRST_KERNEL:
        return fail(
            f"{release.source}: {release.value}; required: 6.11 or later",
            "Debian 13 and Ubuntu 25.04 have one; on Debian 12: apt-get install -t bookworm-backports linux-image-amd64",
        )
    return ok(f"{release.source}: {release.value}")


def memory_encryption(seen: Seen) -> Outcome:
    """Is SME on?"""
    cpu, syscfg = seen.host.cpu, seen.host.syscfg
    if syscfg.value is not None:
        if not syscfg.value & _SYSCFG_MEMORY_ENCRYPTION:
            return fail(f"{syscfg.source}: MemEncryptionModEn (SYSCFG bit 23) is 0", f"{_BIOS}: SMEE = Enabled")
        return ok(f"{syscfg.source}: MemEncryptionModEn is 1")
    if cpu.value is None:
        return unknown(cpu)
    if "sme" not in cpu.value.flags:
        return fail(f"{cpu.source}: no flag sme", f"{_BIOS}: SMEE = Enabled")
    return ok(f"{cpu.source}: flag sme")


def sev(seen: Seen) -> Outcome:
    """Are SEV and SEV-ES on?"""
    cpu = seen.host.cpu
    if cpu.value is None:
        return unknown(cpu)
    missing = [flag for flag in ("sev", "sev_es") if flag not in cpu.value.flags]
    if missing:
        return fail(f"{cpu.source}: no flag {' nor '.join(missing)}", f"{_BIOS}: SEV Control = Enabled")
    return ok(f"{cpu.source}: flags sev, sev_es")


def asid_split(seen: Seen) -> Outcome:
    """Did the BIOS leave ASIDs for SEV-ES and SNP guests?"""
    log, counts = seen.host.log.value, seen.host.asids
    shared = None if log is None else log.asids.get("SEV-ES")
    last = shared.last if shared is not None else counts.value.total if counts.value is not None else None
    source = seen.host.log.source if shared is not None else counts.source
    if last is None:
        return unknown(
            counts if seen.host.log.value is not None else seen.host.log, "run as root to read the kernel's log"
        )
    if last == 0:
        return fail(
            f"{source}: no ASID for SEV-ES and SNP guests",
            f"{_BIOS}: SEV ASID Space Limit Control = Manual, SEV-ES ASID Space Limit = 100 (ASIDs 1 to 99)",
        )
    return ok(f"{source}: ASIDs 1 to {last}")


def snp(seen: Seen) -> Outcome:
    """Did the BIOS switch on SNP and reserve memory for the RMP table?"""
    cpu, log = seen.host.cpu, seen.host.log.value
    error = None if log is None else log.rmp_error
    remedy = (
        "in the BIOS, AMD CBS: CPU Common Options > SNP Memory (RMP Table) Coverage = Enabled, "
        "and NBIO Common Options > SEV-SNP Support = Enabled"
    )
    if error is not None and "not been reserved" in error:
        return fail(f"{seen.host.log.source}: {error}", remedy)
    if cpu.value is None:
        return unknown(cpu)
    if "sev_snp" not in cpu.value.flags:
        return fail(f"{cpu.source}: no flag sev_snp", remedy)
    return ok(f"{cpu.source}: flag sev_snp")


def rmp(seen: Seen) -> Outcome:
    """Does the RMP table cover all memory?"""
    log, memory = seen.host.log, seen.host.memory.value
    if log.value is None:
        return unknown(log, "run as root to read the kernel's log")
    remedy = (
        "in the BIOS, AMD CBS > CPU Common Options: SNP Memory (RMP Table) Coverage = Enabled (all memory), not Custom"
    )
    if log.value.rmp_error is not None:
        return fail(f"{log.source}: {log.value.rmp_error}", remedy)
    if log.value.rmp_segmented:
        return ok(f"{log.source}: a segmented RMP table")
    size = log.value.rmp_size
    if size is None:
        return unknown(f"{log.source}: no line about the RMP table; the log may have lost its beginning")
    covered = size // _BYTES_PER_RMP_ENTRY * 4  # KiB
    if memory is not None and covered < memory.total:
        return fail(
            f"{log.source}: an RMP table of {size >> 20} MiB covers {covered >> 20} of {memory.total >> 20} GiB", remedy
        )
    return ok(f"{log.source}: an RMP table of {size >> 20} MiB, for up to {covered >> 20} GiB")


def iommu(seen: Seen) -> Outcome:
    """Is the IOMMU on, translating, and in a mode that SNP works with?"""
    log, module = seen.host.log, seen.host.kvm_amd.value
    remedy = (
        "take iommu=pt, iommu=off, amd_iommu=off and amd_iommu=pgtbl_v2 off the kernel's command line (update-grub, reboot); "
        "in the BIOS, AMD CBS > NBIO Common Options: IOMMU = Enabled"
    )
    if log.value is not None and log.value.iommu_error is not None:
        return fail(f"{log.source}: {log.value.iommu_error}", remedy)
    if log.value is not None and log.value.iommu_snp:
        return ok(f"{log.source}: IOMMU SNP support enabled")
    if module is not None and module.sev_snp:
        return ok(f"{seen.host.kvm_amd.source}: sev_snp is on, which needs the IOMMU")
    words = set(seen.host.cmdline.value or ()) & {"iommu=pt", "iommu=off", "amd_iommu=off", "amd_iommu=pgtbl_v2"}
    if words:
        return fail(f"{seen.host.cmdline.source}: {' '.join(sorted(words))}", remedy)
    return unknown(f"{log.source}: no line about the IOMMU and SNP", remedy)


def psp(seen: Seen) -> Outcome:
    """Does the secure processor answer?"""
    log, module = seen.host.log, seen.host.kvm_amd.value
    error = None if log.value is None else log.value.psp_error
    if error is None and log.value is not None and not (module is not None and module.sev_snp):
        error = log.value.sev_error
    if error is not None:
        return fail(
            f"{log.source}: {error}",
            "update the BIOS and its SEV firmware; cvmtool doctor --explain knows the error codes",
        )
    if log.value is not None and log.value.psp:
        return ok(f"{log.source}: ccp: sev enabled")
    if seen.host.dev_sev.value is not None:
        return ok(f"{seen.host.dev_sev.source} exists")
    if seen.host.modules.value is not None and "ccp" not in seen.host.modules.value:
        return fail(f"{seen.host.modules.source}: ccp is not loaded", "modprobe ccp")
    return unknown(log, "run as root to read the kernel's log")


def psp_firmware(seen: Seen) -> Outcome:
    """Is the SEV firmware new enough for SNP?"""
    log, status = seen.host.log, seen.trials.platform
    api = status.value.api if status.value is not None else None
    source = status.source
    if api is None and log.value is not None:
        api, source = log.value.snp_api or log.value.sev_api, log.source
    if api is None:
        return unknown(log, "run as root to read the kernel's log")
    said = f"{source}: SEV firmware {'.'.join(map(str, api))}"
    remedy = "update the BIOS, or put AMD's newer SEV firmware into /lib/firmware/amd and reload ccp (docs/howto/prepare-a-host.md)"
    if api[:2] < _LEAST_API:
        return fail(f"{said}; required: 1.51 or later", remedy)
    return ok(said)
