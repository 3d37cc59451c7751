# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Do KVM, the secure processor's device, QEMU, libvirt and the guest firmware work together?

Zone: host. Pure: no I/O.
"""

from __future__ import annotations

from cvmtool.host.doctor.facts import Seen
from cvmtool.host.doctor.line import Outcome, fail, ok, unknown, warn
from cvmtool.host.doctor.source import FileKind
from cvmtool.host.failures import hint

FIRST_QEMU = (9, 2)
"""9.1 brought the object sev-snp-guest and broke VFIO with it ("Cannot set discarding of RAM broken")."""
FIRST_LIBVIRT = (10, 5)
SNP_OBJECT = "sev-snp-guest"
_FEW_ASIDS = 4
_QEMU_PACKAGE = "apt-get install qemu-system-x86 (Debian 13; on Debian 12: -t bookworm-backports)"
_LIBVIRT_PACKAGE = "apt-get install libvirt-daemon-system (Debian 13; on Debian 12: -t bookworm-backports)"


def dotted(version: tuple[int, ...]) -> str:
    """Return a version as it is written."""
    return ".".join(map(str, version))


def kvm_device(seen: Seen) -> Outcome:
    """May /dev/kvm be opened?"""
    device, cpu = seen.host.dev_kvm, seen.host.cpu.value
    if device.value is None and not device.missing:
        return unknown(device)
    if device.value is None or device.value.kind is not FileKind.DEVICE:
        off = cpu is not None and not cpu.flags & {"svm", "vmx"}
        return fail(
            f"{device.source} is not there" + (", and the processor shows no flag svm" if off else ""),
            "in the BIOS: SVM Mode = Enabled" if off else "modprobe kvm_amd",
        )
    if not device.value.open_to(seen.owner.uid, seen.owner.groups):
        return fail(
            f"{device.source}: mode {device.value.mode:o}, closed to this user", 'usermod -aG kvm "$USER"; log in again'
        )
    return ok(f"{device.source} may be opened")


def kvm_trial(seen: Seen) -> Outcome:
    """Does a guest run under KVM? Found by running one."""
    tried = seen.trials.kvm
    if tried.value is not None:
        return ok(tried.value)
    if seen.owner.remote:
        return _kvm_from_afar(seen)
    return fail(
        tried.evidence,
        "in a virtual machine there is nothing to mend; on bare metal: modprobe -r kvm_amd; modprobe kvm_amd; dmesg",
    )


def _kvm_from_afar(seen: Seen) -> Outcome:
    """On bare metal KVM works where its module is loaded; in a virtual machine only a trial could tell."""
    cpu, modules = seen.host.cpu.value, seen.host.modules.value or frozenset()
    loaded = modules & {"kvm_amd", "kvm_intel"}
    if cpu is None or "hypervisor" in cpu.flags or not loaded:
        return unknown(seen.trials.kvm, "run it on the machine itself")
    return ok(f"{seen.host.modules.source}: bare metal with {', '.join(sorted(loaded))}; not tried from here")


def tcg_trial(seen: Seen) -> Outcome:
    """Does an emulated guest run? Found by running one."""
    tried = seen.trials.tcg
    if tried.value is not None:
        return ok(tried.value)
    return unknown(tried) if seen.owner.remote else fail(tried.evidence, _QEMU_PACKAGE)


def kvm_amd(seen: Seen) -> Outcome:
    """Did KVM switch SEV-SNP on?"""
    module = seen.host.kvm_amd
    if module.value is None:
        if not module.missing:
            return unknown(module)
        return fail(f"{module.source}: kvm_amd is not loaded", "modprobe kvm_amd")
    states = {"sev": module.value.sev, "sev_es": module.value.sev_es, "sev_snp": module.value.sev_snp}
    said = ", ".join(f"{name}={'?' if state is None else 'NY'[state]}" for name, state in states.items())
    # Firmware with the fix of AMD-SB-3023 has no SEV-ES beside SNP, so sev_es may be off.
    if module.value.sev and module.value.sev_snp:
        return ok(f"{module.source}: {said}")
    words = [word for word in seen.host.cmdline.value or () if word.startswith("kvm_amd.sev")]
    because = f"; {seen.host.cmdline.source}: {' '.join(words)}" if words else ""
    return fail(
        f"{module.source}: {said}{because}",
        "take kvm_amd.sev*=0 off the command line and out of /etc/modprobe.d, then: "
        "modprobe -r kvm_amd && modprobe kvm_amd sev=1 sev_es=1 sev_snp=1",
    )


def asids(seen: Seen) -> Outcome:
    """Is an ASID left for one more guest?"""
    counts = seen.host.asids
    if counts.value is None or counts.value.used is None:
        return unknown(
            counts if counts.value is None else f"{counts.source}: {counts.value.total} in all, used unknown"
        )
    free = counts.value.total - counts.value.used
    said = f"{counts.source}: {free} of {counts.value.total} free"
    if free <= 0:
        return fail(said, "stop guests that are not needed (virsh list), or raise SEV-ES ASID Space Limit in the BIOS")
    if free < _FEW_ASIDS:
        return warn(said, "raise SEV-ES ASID Space Limit in the BIOS if more guests are to run")
    return ok(said)


def sev_device(seen: Seen) -> Outcome:
    """Can QEMU talk to the secure processor?"""
    device = seen.host.dev_sev
    if device.value is None and not device.missing:
        return unknown(device)
    if device.value is None or device.value.kind is not FileKind.DEVICE:
        return fail(f"{device.source} is no device", "modprobe -r ccp && modprobe ccp; dmesg | grep ccp")
    if not device.value.open_to(seen.owner.uid, seen.owner.groups):
        return fail(
            f"{device.source}: mode {device.value.mode:o}, owner {device.value.uid}; libvirt runs as user {seen.owner.uid} here",
            "use libvirt's system daemon, which opens it: cvmtool doctor --host qemu:///system",
        )
    return ok(f"{device.source}: mode {device.value.mode:o}")


def platform(seen: Seen) -> Outcome:
    """Is the platform initialised, and does it sign with a chip that can be named?"""
    status = seen.trials.platform
    if status.value is None:
        return unknown(status, "run it on the machine itself, as root")
    said = f"{status.source}: {status.value.guests} guests"
    if not (status.value.initialised and status.value.rmp_initialised):
        return fail(
            f"{status.source}: SNP is not initialised", "modprobe -r kvm_amd ccp && modprobe kvm_amd; dmesg | grep ccp"
        )
    if status.value.mask_chip_id or status.value.mask_chip_key:
        what = "MaskChipId" if status.value.mask_chip_id else "MaskChipKey"
        return fail(
            f"{status.source}: {what} is set",
            "snphost config reset: owners refuse reports without a chip or a signature",
        )
    return ok(said)


def tcb_floors(seen: Seen) -> Outcome:
    """Does the firmware carry the fixes that owners ask for?"""
    if seen.owner.shortfalls is None:
        return unknown(seen.trials.platform, "run it on the machine itself, as root")
    if seen.owner.shortfalls:
        return fail(
            f"{seen.trials.platform.source}: {'; '.join(seen.owner.shortfalls)}",
            "update BIOS and SEV firmware, then commit it: snphost commit (docs/howto/prepare-a-host.md)",
        )
    return ok(f"{seen.trials.platform.source}: the reported and current TCB reach every built-in floor")


def qemu(seen: Seen) -> Outcome:
    """Is there a QEMU for x86-64 that answers?"""
    found = seen.host.qemu
    if found.value is None:
        return fail(found.evidence, _QEMU_PACKAGE) if found.missing else unknown(found)
    return ok(f"{found.source}: QEMU {dotted(found.value.version)} over QMP")


def qemu_version(seen: Seen) -> Outcome:
    """Is it free of the faults of the first release with SEV-SNP?"""
    found = seen.host.qemu
    if found.value is None:
        return unknown(found)
    said = f"{found.source}: {dotted(found.value.version)}"
    if found.value.version < FIRST_QEMU:
        return fail(f"{said}; required: 9.2 or later", _QEMU_PACKAGE)
    return ok(said)


def qemu_object(seen: Seen) -> Outcome:
    """Was it built with SEV-SNP? Asked of QEMU itself: version numbers lie."""
    found = seen.host.qemu
    if found.value is None:
        return unknown(found)
    if SNP_OBJECT not in found.value.confidential:
        has = ", ".join(sorted(found.value.confidential)) or "none"
        return fail(f"{found.source}: confidential-guest-support objects: {has}; required: {SNP_OBJECT}", _QEMU_PACKAGE)
    return ok(f"{found.source}: has the object {SNP_OBJECT}")


def qemu_sev(seen: Seen) -> Outcome:
    """Does QEMU find SEV in KVM?"""
    found = seen.host.qemu
    if found.value is None:
        return unknown(found)
    if found.value.sev is None:
        # Asked as this user, who may lack the rights that libvirt's daemon has.
        return unknown(f"{found.source}: query-sev-capabilities: {found.value.sev_problem}")
    return ok(f"{found.source}: C-bit {found.value.sev[0]}, reduced physical bits {found.value.sev[1]}")


def libvirt(seen: Seen) -> Outcome:
    """Does libvirt answer?"""
    found = seen.owner.libvirt
    if found.value is None:
        return fail(found.evidence, hint(found.problem, None) or _LIBVIRT_PACKAGE)
    return ok(f"{found.source}: libvirt {dotted(found.value.version)}")


def libvirt_version(seen: Seen) -> Outcome:
    """Does this libvirt know sev-snp?"""
    found = seen.owner.libvirt
    if found.value is None:
        return unknown(found)
    said = f"{found.source}: {dotted(found.value.version)}"
    if found.value.version < FIRST_LIBVIRT:
        return fail(f"{said}; required: 10.5 or later", _LIBVIRT_PACKAGE)
    return ok(said)


def libvirt_snp(seen: Seen) -> Outcome:
    """Does libvirt offer sev-snp with this QEMU? It does wherever SEV works, so this does not show that SNP is on."""
    found = seen.owner.libvirt
    if found.value is None:
        return unknown(found)
    if "sev-snp" not in found.value.launch_security:
        has = ", ".join(sorted(found.value.launch_security)) or "none"
        return fail(
            f"{found.source}: domain capabilities, launchSecurity: {has}",
            "make libvirt ask QEMU again: rm /var/cache/libvirt/qemu/capabilities/*; systemctl restart libvirtd",
        )
    return ok(f"{found.source}: domain capabilities list sev-snp")


def firmware(seen: Seen) -> Outcome:
    """Does the guest firmware check the kernel that it is given?"""
    found = seen.owner.firmware
    if not found:
        return warn("no guest image was built yet; it brings its firmware", "cvmtool image build base")
    good = next((item for item in found if not item.problem), None)
    if good is not None:
        return ok(f"{good.path}: SEV-SNP metadata, and a measured page for kernel hashes")
    return fail(
        "; ".join(f"{item.path}: {item.problem}" for item in found),
        "apt-get install ovmf-amdsev (Fedora: edk2-ovmf), and use OVMF.amdsev.fd: the generic OVMF boots any kernel",
    )
