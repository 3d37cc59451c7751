# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Say why a launch digest is not the expected one: find the inputs that give it, and show the digest step by step.

Zone: measure (shared mathematics). Pure: no I/O.

A digest says only that something differs. But the space of honest mistakes is small (CPU count, CPU model, feature
bits, monitor, the other command line, no kernel at all), and a digest for n virtual CPUs is a step on the way to n + 1,
so the whole of it takes a second to search. What is found this way is a hint for people and never a reason to trust.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cvmtool.measure.hashes import KernelHashes
from cvmtool.measure.launch import FirmwareSeed, PageType, extend, image_digest, section_pages, seed_of, vcpu_pages
from cvmtool.measure.ovmf import PAGE_SIZE
from cvmtool.measure.vmsa import CPU_SIGNATURES, Vmm

SEARCHED_VCPUS = 512
SEARCHED_FEATURES = (0x1, 0x21, 0x201, 0x221)
"""SNP alone; with DebugSwap (Linux 6.6 and 6.7 turned it on by themselves); with SecureTSC; with both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Inputs that give a digest. `kernel`: which of the offered kernels; `cpus`: every model with that signature."""

    kernel: str
    cpus: tuple[str, ...]
    vcpus: int
    guest_features: int
    vmm: Vmm


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """`count` pages of `kind` in a row, the first at guest address `gpa`, and the digest (48 bytes) after them."""

    kind: PageType
    gpa: int
    count: int
    digest: bytes


def find_inputs(
    firmware: bytes | FirmwareSeed,
    kernels: Mapping[str, KernelHashes | None],
    digest: bytes,
    *,
    vcpus: int = SEARCHED_VCPUS,
) -> Iterator[Match]:
    """Yield every combination that gives `digest` (48 bytes): the `kernels` by name, and up to `vcpus` virtual CPUs.

    Raises:
        FormatError: `firmware` is malformed.
        ConfigError: a kernel with a firmware that would not measure it, or an impossible count.
    """
    seed = seed_of(firmware)
    reset_eip = seed.firmware.reset_eip
    models: dict[int, list[str]] = {}
    for model, signature in CPU_SIGNATURES.items():
        models.setdefault(signature, []).append(model)
    for kernel, hashes in kernels.items():
        for vmm in Vmm:
            base = image_digest(seed, hashes, vmm)
            for signature, names in models.items():
                for features in SEARCHED_FEATURES:
                    current = base
                    pages = vcpu_pages(reset_eip, cpu=signature, vcpus=vcpus, guest_features=features, vmm=vmm)
                    for count, page in enumerate(pages, 1):
                        current = extend(current, page)
                        if current == digest:
                            yield Match(kernel=kernel, cpus=tuple(names), vcpus=count, guest_features=features, vmm=vmm)


def trace(
    firmware: bytes | FirmwareSeed,
    hashes: KernelHashes | None,
    *,
    cpu: str | int,
    vcpus: int,
    guest_features: int,
    vmm: Vmm,
) -> tuple[Step, ...]:
    """Return the launch as steps: the firmware is the first, then pages of one kind in a row are one step.

    The last step's digest is the launch digest; the first one's is the firmware's seed.

    Raises:
        FormatError, ConfigError: as `launch_digests`.
    """
    seed = seed_of(firmware)
    parsed, digest = seed.firmware, seed.digest
    steps = [Step(kind=PageType.NORMAL, gpa=parsed.gpa, count=parsed.size // PAGE_SIZE, digest=digest)]
    vcpu = vcpu_pages(parsed.reset_eip, cpu=cpu, vcpus=vcpus, guest_features=guest_features, vmm=vmm)
    for page in (*section_pages(parsed, hashes, vmm), *vcpu):
        digest = extend(digest, page)
        last = steps[-1]
        if len(steps) > 1 and last.kind is page.kind:
            steps[-1] = Step(kind=last.kind, gpa=last.gpa, count=last.count + 1, digest=digest)
        else:
            steps.append(Step(kind=page.kind, gpa=page.gpa, count=1, digest=digest))
    return tuple(steps)
