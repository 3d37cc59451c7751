# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Which root certificates are believed: AMD's, or one simulated root of one machine; never both.

Zone: owner (trusted). Pure: no I/O.
Spec: AMD 57230 VCEK and KDS (ARK of each product line).

Roots are pinned by SHA-256 of the whole certificate, so they may come from anywhere: evidence, a cache, a key server.
The two kinds are two types without a common constructor: no argument turns one into the other.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from cvmtool.errors import ConfigError
from cvmtool.formats.tcb import ProductLine

FINGERPRINT_BYTES = 32

AMD_ROOTS: dict[ProductLine, bytes] = {
    ProductLine.MILAN: bytes.fromhex("69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd"),
    ProductLine.GENOA: bytes.fromhex("4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1"),
    ProductLine.TURIN: bytes.fromhex("1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a"),
}
"""SHA-256 of the DER of ARK-Milan (serial 0x10000), ARK-Genoa (0x20000) and ARK-Turin (0x30000)."""


@dataclass(frozen=True, slots=True)
class AmdRoots:
    """AMD's own roots, one a product line. Takes no argument: there is nothing to add."""

    @property
    def simulated(self) -> bool:
        """False: these are real processors."""
        return False

    def accepts(self, line: ProductLine, fingerprint: bytes) -> bool:
        """Whether `fingerprint` (SHA-256 of the DER) is the root of `line`."""
        return hmac.compare_digest(AMD_ROOTS[line], fingerprint)

    def describe(self, line: ProductLine) -> str:
        """Return what is required of a root of `line`, for people."""
        return f"amd's ARK-{line}, {AMD_ROOTS[line].hex()}"


@dataclass(frozen=True, slots=True)
class SimulatedRoot:
    """The root of one machine's dry runs, by SHA-256 of its DER (32 bytes). It proves nothing.

    Raises:
        ConfigError: the fingerprint has another size, or is AMD's: a real root is never accepted as a simulated one.
    """

    fingerprint: bytes

    def __post_init__(self) -> None:
        if len(self.fingerprint) != FINGERPRINT_BYTES:
            raise ConfigError(
                f"simulated root fingerprint has {len(self.fingerprint)} bytes; required: {FINGERPRINT_BYTES}"
            )
        if self.fingerprint in AMD_ROOTS.values():
            raise ConfigError("simulated root fingerprint is amd's; required: that of a dry run's own root")

    @property
    def simulated(self) -> bool:
        """True: whatever this root endorses is simulated."""
        return True

    def accepts(self, line: ProductLine, fingerprint: bytes) -> bool:  # noqa: ARG002 - one shape for both kinds
        """Whether `fingerprint` (SHA-256 of the DER) is this root."""
        return hmac.compare_digest(self.fingerprint, fingerprint)

    def describe(self, line: ProductLine) -> str:
        """Return what is required of a root of `line`, for people."""
        return f"the simulated ARK-{line} of this machine, {self.fingerprint.hex()}"


Roots = AmdRoots | SimulatedRoot
