# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The two bit fields of a report: POLICY, what the guest demanded, and PLATFORM_INFO, what the host has switched on.

Zone: shared. Pure: no I/O.
Spec: AMD 56860 SEV-SNP Firmware ABI, GUEST_POLICY and ATTESTATION_REPORT.PLATFORM_INFO.

Names are AMD's in lower case with dashes. What a bit should be is the owner's policy, not decided here.
"""

from __future__ import annotations

from dataclasses import dataclass

from cvmtool.errors import FormatError

POLICY_BITS: dict[str, int] = {
    "smt": 16,
    "migrate-ma": 18,
    "debug": 19,
    "single-socket": 20,
    "cxl-allow": 21,
    "mem-aes-256-xts": 22,
    "rapl-dis": 23,
    "ciphertext-hiding-dram": 24,
    "page-swap-disable": 25,
}
"""Bit of GUEST_POLICY by name. `smt` and `cxl-allow` permit; `mem-aes-256-xts` to `page-swap-disable` demand."""

PLATFORM_BITS: dict[str, int] = {
    "smt-en": 0,
    "tsme-en": 1,
    "ecc-en": 2,
    "rapl-dis": 3,
    "ciphertext-hiding-dram-en": 4,
    "alias-check-complete": 5,
    "iommu-write-safe": 6,
    "tio-en": 7,
}
"""Bit of PLATFORM_INFO by name. Bits 8 to 63 are reserved."""

_RESERVED_ONE = 17
_POLICY_TOP = 26
_PLATFORM_TOP = 8


@dataclass(frozen=True, slots=True)
class GuestPolicy:
    """GUEST_POLICY, 64 bits: bit 17 is 1, bits 26 to 63 are 0."""

    value: int

    def __post_init__(self) -> None:
        if not self.value >> _RESERVED_ONE & 1:
            raise FormatError(f"policy is {self.value:#x}; required: reserved bit {_RESERVED_ONE} set")
        if self.value >> _POLICY_TOP:
            raise FormatError(f"policy is {self.value:#x}; required: bits {_POLICY_TOP} to 63 zero")

    @property
    def abi_major(self) -> int:
        """Lowest firmware ABI major version the guest accepts, 0 to 255."""
        return self.value >> 8 & 0xFF

    @property
    def abi_minor(self) -> int:
        """Lowest firmware ABI minor version the guest accepts, 0 to 255."""
        return self.value & 0xFF

    def has(self, name: str) -> bool:
        """Whether the bit called `name` (a key of `POLICY_BITS`) is set."""
        return bool(self.value >> POLICY_BITS[name] & 1)

    def names(self) -> tuple[str, ...]:
        """Return the names of the bits that are set."""
        return tuple(name for name in POLICY_BITS if self.has(name))


@dataclass(frozen=True, slots=True)
class PlatformInfo:
    """PLATFORM_INFO, 64 bits. New firmware sets new bits, so unknown ones are kept for the policy to judge."""

    value: int

    def __post_init__(self) -> None:
        if not 0 <= self.value < 1 << 64:
            raise FormatError(f"platform_info is {self.value:#x}; required: 64 bits")

    @property
    def unknown(self) -> int:
        """The bits that have no name here, in place."""
        return self.value >> _PLATFORM_TOP << _PLATFORM_TOP

    def has(self, name: str) -> bool:
        """Whether the bit called `name` (a key of `PLATFORM_BITS`) is set."""
        return bool(self.value >> PLATFORM_BITS[name] & 1)

    def names(self) -> tuple[str, ...]:
        """Return the names of the bits that are set."""
        return tuple(name for name in PLATFORM_BITS if self.has(name))
