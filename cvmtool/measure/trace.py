# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A launch as steps: which pages were added, how many of each type, and the digest after them.

Zone: measure (shared mathematics). Pure: no I/O.

Two calculators that disagree about the last digest agree up to some step; that step names what they disagree about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cvmtool.measure.hashes import KernelHashes
from cvmtool.measure.launch import FirmwareSeed, PageType, extend, section_pages, seed_of, vcpu_pages
from cvmtool.measure.ovmf import PAGE_SIZE
from cvmtool.measure.vmsa import Vmm


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """`count` pages of `kind` in a row, the first at guest address `gpa`, and the digest (48 bytes) after them."""

    kind: PageType
    gpa: int
    count: int
    digest: bytes


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


def page_counts(steps: Sequence[Step]) -> dict[PageType, int]:
    """Return how many pages of each type a launch adds, in the order in which the types first appear."""
    counts: Counter[PageType] = Counter()
    for step in steps:
        counts[step.kind] += step.count
    return dict(counts)
