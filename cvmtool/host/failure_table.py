# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What the errors of QEMU, libvirt, KVM and the secure processor mean, as rows; the first that matches counts.

Zone: host. Data alone; `cvmtool.host.failures` reads it. `source` says where a row was learnt.
Spec: AMD 56860 SEV-SNP Firmware ABI; a status alone is told by `cvmtool.host.firmware_status`.
"""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """A pattern over one message, and what it means. `code` is stable."""

    code: str
    pattern: str
    cause: str
    remedy: str
    source: str


_QEMU = "QEMU target/i386/sev.c"
_KVM = "Linux arch/x86/kvm/svm/sev.c"
_ABI = "AMD 56860"
_TRIED = "seen with QEMU 10.0 and libvirt 11.3"
_DOCTOR = "cvmtool doctor"

ROWS: tuple[Row, ...] = (
    # The launch: what the firmware refuses, then what KVM refuses before the firmware is asked (fw_error=0).
    Row(
        "id-block-measurement",
        r"SNP_LAUNCH_FINISH ret=-?\d+ fw_error=11\b",
        "the launch digest is not the one in the owner's ID block: another firmware, kernel, initrd, command line or CPU",
        "cvmtool measure explain BUNDLE --digest HEX names the input that differs",
        f"{_ABI}, SNP_LAUNCH_FINISH: BAD_MEASUREMENT; AMDESE/AMDSEV #195",
    ),
    Row(
        "id-auth-signature",
        r"SNP_LAUNCH_FINISH ret=-?\d+ fw_error=10\b",
        "the signature over the ID block or over its key is wrong",
        "cvmtool measure id-check, then make both anew: cvmtool measure id-block",
        f"{_ABI}, SNP_LAUNCH_FINISH: BAD_SIGNATURE",
    ),
    Row(
        "id-block-policy",
        r"SNP_LAUNCH_FINISH ret=-?\d+ fw_error=7\b",
        "the policy in the ID block is not the policy of the launch",
        "cvmtool measure id-block with the policy that the machine is started with",
        f"{_ABI}, SNP_LAUNCH_FINISH: POLICY_FAILURE",
    ),
    Row(
        "id-key",
        r"SNP_LAUNCH_FINISH ret=-?\d+ fw_error=39\b",
        "the ID key or the author key is no P-384 key that the firmware takes",
        "make the ID block with cvmtool measure id-block",
        f"{_ABI}, SNP_LAUNCH_FINISH: INVALID_KEY",
    ),
    Row(
        "policy-refused",
        r"SNP_LAUNCH_START ret=-?\d+ fw_error=7\b",
        "the platform does not meet the guest policy: SMT, one socket, a newer ABI, ciphertext hiding or RAPL off",
        "cvmtool doctor; then a policy that this platform meets, or the BIOS setting that the policy asks for",
        f"{_ABI}, SNP_LAUNCH_START: POLICY_FAILURE",
    ),
    Row(
        "launch-refused-by-kvm",
        r"SNP_LAUNCH_START ret=-22 fw_error=0\b",
        "KVM refused the launch before the firmware saw it: policy bit 17 is not set, or the firmware is on pflash",
        "policy 0x30000 and <loader type='rom' stateless='yes'>: cvmtool vm render shows a domain that is right",
        f"{_KVM}, snp_launch_start; AMDESE/AMDSEV #223",
    ),
    Row(
        "kernel-and-qemu-differ",
        r"SNP_LAUNCH_\w+ ret=-25\b",
        "the kernel does not know the command that QEMU gave: one of them comes from a development branch",
        "use Linux 6.11 or later with QEMU 9.2 or later, both of releases",
        "AMDESE/AMDSEV #216",
    ),
    Row(
        "asids-exhausted",
        r"(?:failed to initialize ret=-16\b|SNP_LAUNCH_START ret=-16\b|request rejected by the misc controller)",
        "every ASID for SEV-ES and SNP guests is taken, or the misc control group allows no more",
        "virsh list, and stop guests that are not needed; more: SEV-ES ASID Space Limit in the BIOS",
        f"{_KVM}, sev_asid_new",
    ),
    Row(
        "cpuid-refused",
        r"CPUID validation failed for function|SEV-SNP: failed update CPUID page",
        "the firmware refuses CPUID values that this chip does not have: `-cpu host`, a model newer than the chip, an odd topology",
        "take the model of the chip's line: EPYC-Milan, EPYC-Genoa or EPYC-Turin, one socket and one die",
        f"{_QEMU}; NVIDIA/nvtrust #91",
    ),
    Row(
        "launch-update-refused-by-kvm",
        r"SNP_LAUNCH_UPDATE ret=-22 fw_error=0\b",
        "KVM refused a page of the launch: the memory behind it is not private (guest_memfd), or outside the guest's memory",
        "memory backing memfd, shared, and no pflash: cvmtool vm render shows a domain that is right",
        f"{_KVM}, snp_launch_update",
    ),
    # The firmware image.
    Row(
        "firmware-without-hashes",
        r"guest firmware hashes table area is invalid|guest firmware has no hashes table GUID",
        "a generic OVMF: it has no page for the hashes of kernel, initrd and command line, so the kernel would not be measured",
        "use OVMF.amdsev.fd: apt-get install ovmf-amdsev",
        _QEMU,
    ),
    Row(
        "firmware-without-snp",
        r"Failed to locate SEV metadata header|SEV-ES reset address is zero|Failed to add metadata page",
        "the firmware has no SEV-SNP metadata",
        "use OVMF.amdsev.fd: apt-get install ovmf-amdsev",
        f"{_QEMU}, hw/i386/pc_sysfw_ovmf.c",
    ),
    Row(
        "firmware-on-pflash",
        r"Failed to encrypt pflash rom|not found in pflash rom|pflash with kvm requires KVM readonly memory support",
        "the firmware is on pflash, which SNP guests cannot have: it would be neither measured nor private",
        "<loader readonly='yes' type='rom' stateless='yes'>; with plain QEMU: -bios",
        "AMDESE/AMDSEV #223, #253",
    ),
    Row(
        "firmware-not-found",
        r"doesn't support it|[Uu]nable to find .*firmware that is compatible",
        "libvirt found no firmware description with the feature amd-sev-snp",
        "name the firmware's path in <loader>; it has to be measured anyway",
        "libvirt src/qemu/qemu_firmware.c",
    ),
    Row("smm", r"SEV-SNP does not support SMM", "system management mode is on", "<smm state='off'/>", _QEMU),
    # What KVM and QEMU can do.
    Row(
        "kvm-without-snp",
        r"vm-type SEV-SNP not supported by KVM|does not support requested SEV-SNP VM type",
        "KVM does not start SEV-SNP guests: the kernel is too old, or kvm_amd.sev_snp is N",
        _DOCTOR,
        _QEMU,
    ),
    Row(
        "needs-kvm",
        r"cannot set up private guest memory for sev-snp-guest|accelerator does not support confidential guest",
        "an SEV-SNP guest cannot be emulated",
        "<domain type='kvm'>; without SNP: cvmtool train JOB.yaml --dry-run",
        _TRIED,
    ),
    Row(
        "sev-off",
        r"SEV is not enabled in KVM|SEV feature is not available|host SEV-ES support unavailable"
        r"|does not support the requested SEV configuration",
        "SEV, SEV-ES or SNP is off in KVM, mostly because of a BIOS setting",
        _DOCTOR,
        _QEMU,
    ),
    Row(
        "sev-device",
        r"Path '/dev/sev' is not accessible|SEV: Failed to open|/dev/sev.*(?:Permission denied|No such file)",
        "/dev/sev is missing or closed to QEMU's user",
        "modprobe ccp; use libvirt's system daemon, which opens the device for QEMU",
        _TRIED,
    ),
    Row(
        "sev-type-unsupported",
        r"'sev-snp' launch security is not supported with this QEMU binary|QEMU does not support SEV guest",
        "libvirt's QEMU has no sev-snp-guest, or libvirt remembers what it was before",
        "rm /var/cache/libvirt/qemu/capabilities/*; systemctl restart libvirtd; cvmtool doctor",
        _TRIED,
    ),
    Row(
        "libvirt-too-old",
        r"unsupported launch security type|Invalid value for attribute 'type' in element 'launchSecurity'",
        "this libvirt does not know sev-snp",
        "libvirt 10.5 or later",
        "libvirt 10.5.0 release notes",
    ),
    Row(
        "launch-data-length",
        r"Unexpected length of '(?:idBlock|idAuth|hostData|guestVisibleWorkarounds)'|parameter length of \d+ not equal to",
        "ID block (96 bytes), ID authentication (4096), HOST_DATA (32) or workarounds (16) have another size",
        "cvmtool vm render makes them in their sizes",
        _TRIED,
    ),
    Row(
        "kvm-closed",
        r"Could not access KVM kernel module: Permission denied",
        "this user may not open /dev/kvm",
        'usermod -aG kvm "$USER"; log in again',
        _TRIED,
    ),
    Row(
        "kvm-missing",
        r"Could not access KVM kernel module: No such file|does not support virt type 'kvm'|failed to initialize kvm: No such",
        "there is no /dev/kvm: SVM is off in the BIOS, the module is not loaded, or this is a virtual machine",
        "modprobe kvm_amd; cvmtool doctor --dry-run",
        _TRIED,
    ),
    Row(
        "kvm-emulates",
        r"KVM internal error\. Suberror|failed to set MSR 0x",
        "this KVM does not run guests: /dev/kvm of a virtual machine that emulates",
        "use bare metal; dry runs are emulated there: cvmtool doctor --dry-run",
        _TRIED,
    ),
    Row(
        "kvm-memory-fault",
        r"kvm run failed Bad address",
        "the guest's private memory was touched as if it were shared: an old QEMU, or a device without an IOMMU",
        "QEMU 9.2 or later, <driver iommu='on'/> on every virtio device, no balloon",
        "Linux Documentation/virt/kvm/api.rst, KVM_EXIT_MEMORY_FAULT",
    ),
    Row(
        "kvm-run-refused",
        r"kvm run failed Invalid argument",
        "the processor refused the guest's first state: firmware without SEV support, or a host without the kernel's SNP part",
        "use OVMF.amdsev.fd, then cvmtool doctor",
        "AMDESE/AMDSEV #138",
    ),
    Row(
        "cpu-unknown",
        r"[Uu]nable to find CPU model|unknown CPU model|CPU is incompatible with host CPU|CPU .* not provided by hypervisor",
        "QEMU or the chip does not have this CPU model",
        "qemu-system-x86_64 -cpu help; the model is measured, so measure again after changing it",
        _TRIED,
    ),
    Row(
        "machine-type-unknown",
        r"does not support machine type|unsupported machine type",
        "QEMU there does not have this machine type",
        "qemu-system-x86_64 -machine help; install the QEMU that the image was measured for",
        _TRIED,
    ),
    # Devices.
    Row(
        "vfio-and-snp",
        r"Cannot set discarding of RAM broken",
        "QEMU 9.1 cannot hand devices to SNP guests",
        "QEMU 9.2 or later",
        "kubevirt #16407",
    ),
    Row(
        "memlock",
        r"cannot limit locked memory|VFIO_MAP_DMA.*(?:Cannot allocate memory|-12)|vfio_(?:container_)?dma_map.*-12\b"
        r"|Unable to change max memlock limit",
        "the limit of locked memory is lower than the guest, whose memory a device needs in place",
        "LimitMEMLOCK=infinity for libvirtd (systemctl edit libvirtd); in a container: --ulimit memlock=-1",
        _TRIED,
    ),
    Row(
        "vfio-group",
        r"group \d+ is not viable",
        "a device of the same IOMMU group is still the host's",
        "bind every device of the group to vfio-pci",
        "QEMU hw/vfio",
    ),
    Row(
        "vfio-busy",
        r"/dev/vfio/\d+.*Device or resource busy|PCI device [\d:.a-f]+ is in use by",
        "another guest holds the device",
        "virsh list, and stop that guest",
        "QEMU hw/vfio; libvirt src/util/virhostdev",
    ),
    # Room.
    Row(
        "disk-locked",
        r'Failed to get "write" lock|Failed to get shared "write" lock',
        "another QEMU has this disk",
        "cvmtool vm list; cvmtool vm destroy MACHINE",
        _TRIED,
    ),
    Row(
        "disk-full",
        r"No space left on device|\benospc\b",
        "the disk of the host is full; a running machine is paused and can go on",
        "make room there, then virsh resume MACHINE; cvmtool doctor says how much is free",
        _TRIED,
    ),
    Row(
        "huge-pages",
        r"unable to map backing store for guest RAM|Unable to find any usable hugetlbfs mount|hugepages? .*not supported",
        "the guest asks for huge pages that are not there",
        "sysctl vm.nr_hugepages=N, or a domain without <hugepages/>",
        "QEMU system/physmem.c; libvirt src/qemu",
    ),
    Row(
        "no-memory",
        r"cannot set up guest memory|Cannot allocate memory",
        "the host has not the memory that the guest asks for",
        "a smaller resources.memory in the job, or stop what else runs there",
        _TRIED,
    ),
    # The kernel's log.
    Row(
        "rmp-not-reserved",
        r"Memory for the RMP table has not been reserved by BIOS",
        "SNP is off in the BIOS, or its table has no memory",
        "AMD CBS: SNP Memory (RMP Table) Coverage = Enabled, SEV-SNP Support = Enabled",
        "Linux arch/x86/virt/svm/sev.c; AMDESE/AMDSEV #68",
    ),
    Row(
        "rmp-too-small",
        r"RMP .*does not cover full system RAM",
        "the BIOS reserved an RMP table for a part of the memory",
        "AMD CBS: SNP Memory (RMP Table) Coverage = Enabled, not Custom",
        "Linux arch/x86/virt/svm/sev.c",
    ),
    Row(
        "iommu",
        r"SNP: IOMMU .*SNP cannot be supported",
        "the IOMMU is off, passes through, or has version 2 page tables",
        "take iommu=pt and amd_iommu=off off the kernel's command line; IOMMU = Enabled in the BIOS",
        "Linux drivers/iommu/amd/init.c",
    ),
    Row(
        "psp-init-config",
        r"SEV-SNP: (?:failed to INIT|SNP_INIT(?:_EX)? failed) rc -?\d+, error 0x3\b",
        "the firmware does not accept the platform's configuration, mostly the IOMMU's",
        "IOMMU = Enabled in the BIOS, no iommu=pt; then a BIOS update",
        "Linux commit message of iommu/amd, SNP_INIT; AMDESE/AMDSEV #189",
    ),
    Row(
        "processors-offline",
        r"DF_FLUSH failed.*\b0xe\b",
        "a processor was taken offline after the firmware counted them, so freed ASIDs cannot be used again",
        "no nosmt, maxcpus= or offline processors: switch SMT off in the BIOS; reboot",
        f"{_ABI}, SNP_DF_FLUSH: WBINVD_REQUIRED",
    ),
    Row(
        "psp-silent",
        r"timed out, disabling PSP|SEV: failed to get status|psp: unable to access the device",
        "the secure processor does not answer",
        "switch the machine off and on, update the BIOS, and try again",
        "Linux drivers/crypto/ccp",
    ),
    # libvirt itself.
    Row(
        "virtlogd",
        r"virtlogd-sock",
        "libvirt's log daemon does not run",
        "systemctl start virtlogd.socket",
        _TRIED,
    ),
    Row(
        "libvirt-not-running",
        r"Failed to connect socket to '[^']*libvirt[^']*'(?!.*Permission denied)",
        "no libvirt daemon answers there",
        "systemctl start libvirtd (or virtqemud.socket)",
        _TRIED,
    ),
    Row(
        "libvirt-closed",
        r"authentication unavailable|access denied by policy|Failed to connect socket to '[^']*libvirt[^']*': Permission denied",
        "this user may not use libvirt's system daemon",
        'usermod -aG libvirt "$USER"; log in again',
        "libvirt src/remote",
    ),
    Row(
        "embedded-driver-busy",
        r"Failed to acquire pid file '[^']*driver\.pid'",
        "another process has this embedded libvirt open",
        "cvmtool vm list says which",
        _TRIED,
    ),
    Row(
        "name-taken",
        r"already exists with uuid|is already defined with uuid",
        "there is a machine of this name",
        "cvmtool vm list; cvmtool vm destroy MACHINE",
        _TRIED,
    ),
    Row(
        "host-key",
        r"Host key verification failed|host key.*not found in known_hosts|SSH host key",
        "the host's SSH key is not the one that is known, or not known yet",
        "compare it with the provider's word before it goes into known_hosts; never switch the check off",
        _TRIED,
    ),
    Row(
        "file-closed",
        r"Could not open '[^']*': Permission denied|Cannot access storage file",
        "QEMU's user may not read one of the machine's files",
        "machines_dir below a directory that QEMU's user can enter: /var/lib/cvmtool/machines",
        _TRIED,
    ),
)
