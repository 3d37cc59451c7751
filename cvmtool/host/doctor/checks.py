# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Every check in the order of causes, and what they say together.

Zone: host. Pure: no I/O. A check whose precondition failed is skipped, so that one cause gives one failure.
"""

from __future__ import annotations

from dataclasses import dataclass

from cvmtool.host.doctor import processor, room, stack
from cvmtool.host.doctor.facts import Seen
from cvmtool.host.doctor.line import ALL_USES, DRY_RUNS, Check, Line, Outcome, Use, Verdict

_SNP = frozenset({Use.SNP})
_KVM = frozenset({Use.SNP, Use.KVM})

CHECKS: tuple[Check, ...] = (
    Check(
        code="cpu-vendor",
        why="SEV-SNP is a feature of AMD's processors",
        uses=_SNP,
        look=processor.vendor,
    ),
    Check(
        code="bare-metal",
        why="a virtual machine cannot host SEV-SNP guests, unless its hypervisor hands the RMP table on; Linux does not",
        uses=_SNP,
        needs=("cpu-vendor",),
        look=processor.bare_metal,
    ),
    Check(
        code="cpu-line",
        why="attestation differs by product line; processors before EPYC 7003 have no SNP",
        uses=_SNP,
        needs=("bare-metal",),
        look=processor.line,
        essential=True,
    ),
    Check(
        code="kernel",
        why="older kernels cannot start SNP guests, whatever the hardware can do",
        uses=_SNP,
        needs=("cpu-line",),
        look=processor.kernel,
    ),
    Check(
        code="bios-sme",
        why="memory encryption is the ground that SEV stands on",
        uses=_SNP,
        needs=("cpu-line",),
        look=processor.memory_encryption,
    ),
    Check(
        code="bios-sev",
        why="SNP builds on SEV and SEV-ES",
        uses=_SNP,
        needs=("bios-sme",),
        look=processor.sev,
    ),
    Check(
        code="bios-asids",
        why="an SNP guest needs an ASID below the limit that the BIOS sets; at the default there is none",
        uses=_SNP,
        needs=("bios-sev",),
        look=processor.asid_split,
    ),
    Check(
        code="bios-snp",
        why="the BIOS must reserve memory for the table that says which page is whose",
        uses=_SNP,
        needs=("bios-sev", "kernel"),
        look=processor.snp,
    ),
    Check(
        code="rmp-coverage",
        why="the kernel leaves SNP off if any memory lies outside the RMP table",
        uses=_SNP,
        needs=("bios-snp",),
        look=processor.rmp,
    ),
    Check(
        code="iommu",
        why="devices must be kept out of guest memory, so SNP is off where the IOMMU is off or passes through",
        uses=_SNP,
        needs=("bios-snp",),
        look=processor.iommu,
    ),
    Check(
        code="psp",
        why="the secure processor launches guests and signs their reports",
        uses=_SNP,
        needs=("bios-sev",),
        look=processor.psp,
    ),
    Check(
        code="psp-firmware",
        why="older firmware has no SNP, or a preliminary one that kernels refuse",
        uses=_SNP,
        needs=("psp",),
        look=processor.psp_firmware,
    ),
    Check(
        code="kvm-device",
        why="guests run through KVM; without it they are emulated, which no SNP guest can be",
        uses=_KVM,
        look=stack.kvm_device,
    ),
    Check(
        code="kvm-amd",
        why="KVM's own word on whether it starts SNP guests",
        uses=_SNP,
        needs=("kernel", "bios-asids", "bios-snp", "rmp-coverage", "iommu", "psp-firmware", "kvm-device"),
        look=stack.kvm_amd,
        essential=True,
    ),
    Check(
        code="asids-free",
        why="each running guest holds an ASID; without one the next launch ends in EBUSY",
        uses=_SNP,
        needs=("kvm-amd",),
        look=stack.asids,
    ),
    Check(
        code="dev-sev",
        why="QEMU launches guests through it",
        uses=_SNP,
        needs=("psp", "kvm-device"),
        look=stack.sev_device,
        essential=True,
    ),
    Check(
        code="platform",
        why="owners refuse reports that name no chip",
        uses=_SNP,
        needs=("dev-sev", "kvm-amd"),
        look=stack.platform,
    ),
    Check(
        code="tcb-floors",
        why="owners refuse machines whose firmware lacks published fixes; a guest would start and get no key",
        uses=_SNP,
        needs=("dev-sev", "kvm-amd"),
        look=stack.tcb_floors,
    ),
    Check(
        code="qemu",
        why="it runs the machine",
        uses=ALL_USES,
        look=stack.qemu,
        essential=True,
    ),
    Check(
        code="qemu-version",
        why="QEMU 9.1 cannot hand devices to SNP guests, older ones cannot start them",
        uses=_SNP,
        needs=("qemu",),
        look=stack.qemu_version,
    ),
    Check(
        code="qemu-object",
        why="a QEMU may be new and built without SEV-SNP, or old and have it",
        uses=_SNP,
        needs=("qemu",),
        look=stack.qemu_object,
        essential=True,
    ),
    Check(
        code="qemu-sev",
        why="position of the C-bit and lost address bits go into the launch",
        uses=_SNP,
        needs=("qemu-object", "kvm-amd", "dev-sev"),
        look=stack.qemu_sev,
    ),
    Check(
        code="libvirt",
        why="every machine is defined and started through it",
        uses=ALL_USES,
        look=stack.libvirt,
        essential=True,
    ),
    Check(
        code="libvirt-version",
        why="older ones have no launch security of type sev-snp",
        uses=_SNP,
        needs=("libvirt",),
        look=stack.libvirt_version,
    ),
    Check(
        code="libvirt-snp",
        why="libvirt starts only what its domain capabilities list",
        uses=_SNP,
        needs=("libvirt-version", "qemu-object", "kvm-amd", "dev-sev"),
        look=stack.libvirt_snp,
        essential=True,
    ),
    Check(
        code="firmware",
        why="a firmware without a measured page for kernel hashes boots whatever the host gives it",
        uses=ALL_USES,
        look=stack.firmware,
    ),
    Check(
        code="kvm-trial",
        why="a device that opens proves nothing; a guest that runs does",
        uses=_KVM,
        needs=("kvm-device", "qemu"),
        look=stack.kvm_trial,
        essential=True,
    ),
    Check(
        code="tcg-trial",
        why="without KVM a dry run is emulated",
        uses=frozenset({Use.TCG}),
        needs=("qemu",),
        look=stack.tcg_trial,
    ),
    Check(
        code="gpu",
        why="a GPU that the host's driver holds cannot be handed to a guest",
        uses=_SNP,
        look=room.gpus,
    ),
    Check(
        code="memlock",
        why="the memory of a guest with a device is locked; a low limit ends in ENOMEM",
        uses=_SNP,
        needs=("gpu",),
        look=room.memlock,
    ),
    Check(
        code="huge-pages",
        why="memory set aside in huge pages is lost to confidential guests",
        uses=ALL_USES,
        look=room.huge_pages,
    ),
    Check(
        code="memory",
        why="a guest's memory is taken when it starts",
        uses=ALL_USES,
        needs=("huge-pages",),
        look=room.memory,
    ),
    Check(
        code="disk",
        why="image and packs are copied to the host; a full disk pauses the machine in the middle of a job",
        uses=ALL_USES,
        look=room.disk,
    ),
    Check(
        code="clock",
        why="the guest takes its time from the host, and so do the times in logs and receipts",
        uses=_SNP,
        look=room.clock,
    ),
    Check(
        code="key-service",
        why="a report is verified with AMD's certificates",
        uses=_SNP,
        look=room.key_service,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Every line, the best use that nothing stands against, and what stands first against each better one."""

    lines: tuple[Line, ...]
    best: Use | None
    obstacles: dict[Use, Line]


def diagnose(seen: Seen, *, dry_run: bool = False) -> Diagnosis:
    """Look at everything; with `dry_run` at what matters to a dry run alone."""
    uses = tuple(use for use in Use if not dry_run or use in DRY_RUNS)
    lines: dict[str, Line] = {}
    roots: dict[str, str] = {}
    for check in CHECKS:
        if check.uses.isdisjoint(uses):
            continue
        root = next((roots[code] for code in check.needs if code in roots), None)
        outcome = check.look(seen) if root is None else Outcome(verdict=Verdict.SKIPPED, evidence=f"needs {root}")
        if outcome.verdict in {Verdict.FAIL, Verdict.SKIPPED}:
            roots[check.code] = root or check.code
        lines[check.code] = Line(check=check, outcome=outcome)
    told = tuple(lines.values())
    obstacles: dict[Use, Line] = {}
    for use in uses:
        obstacle = _first_against(told, use)
        if obstacle is None:
            return Diagnosis(lines=told, best=use, obstacles=obstacles)
        obstacles[use] = obstacle
    return Diagnosis(lines=told, best=None, obstacles=obstacles)


def _first_against(lines: tuple[Line, ...], use: Use) -> Line | None:
    """Return what stands against a use: the first failure, else the first essential thing that is unknown."""
    blocking = [line for line in lines if use in line.check.uses and line.blocks]
    return min(blocking, key=lambda line: line.outcome.verdict is not Verdict.FAIL, default=None)
