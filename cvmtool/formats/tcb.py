# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""TCB_VERSION: the security versions of a processor's firmware, and which processor a CPUID signature belongs to.

Zone: shared. Pure: no I/O.
Spec: AMD 56860 SEV-SNP Firmware ABI, TCB_VERSION; AMD 57230 VCEK and KDS (product lines).

The eight bytes mean different things on different lines (Turin moved them), so they are never decoded by guess and
never compared as one number: microcode in the highest byte would outweigh everything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cvmtool.errors import FormatError

TCB_BYTES = 8


class ProductLine(StrEnum):
    """A line of processors with its own AMD root certificate."""

    MILAN = "Milan"
    GENOA = "Genoa"
    TURIN = "Turin"


class Silicon(StrEnum):
    """What microcode versions are comparable within: a line can hold several."""

    MILAN = "Milan"
    MILAN_X = "Milan-X"
    GENOA = "Genoa"
    GENOA_X = "Genoa-X"
    BERGAMO_SIENA = "Bergamo-Siena"
    TURIN = "Turin"
    TURIN_DENSE = "Turin-Dense"

    @property
    def line(self) -> ProductLine:
        """The product line whose root endorses this silicon."""
        return _LINES[self]


_LINES = {
    Silicon.MILAN: ProductLine.MILAN,
    Silicon.MILAN_X: ProductLine.MILAN,
    Silicon.GENOA: ProductLine.GENOA,
    Silicon.GENOA_X: ProductLine.GENOA,
    Silicon.BERGAMO_SIENA: ProductLine.GENOA,
    Silicon.TURIN: ProductLine.TURIN,
    Silicon.TURIN_DENSE: ProductLine.TURIN,
}

# By family and the upper half of the model.
_SILICON = {
    (0x19, 0x0): Silicon.MILAN,
    (0x19, 0x1): Silicon.GENOA,
    (0x19, 0xA): Silicon.BERGAMO_SIENA,
    (0x1A, 0x0): Silicon.TURIN,
    (0x1A, 0x1): Silicon.TURIN_DENSE,
}
_STACKED: dict[Silicon | None, Silicon] = {Silicon.MILAN: Silicon.MILAN_X, Silicon.GENOA: Silicon.GENOA_X}
_CACHE_STEPPING = 2  # of the parts with stacked cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpuid:
    """CPUID_FAM_ID, CPUID_MOD_ID and CPUID_STEP: one byte each, family and model combined (family 0x19, model 0x11)."""

    family: int
    model: int
    stepping: int

    @property
    def silicon(self) -> Silicon | None:
        """The silicon of this processor, None for one that cvmtool does not know (its TCB layout is unknown, too)."""
        plain = _SILICON.get((self.family, self.model >> 4))
        return plain if self.stepping != _CACHE_STEPPING else _STACKED.get(plain, plain)

    @property
    def line(self) -> ProductLine | None:
        """The product line, None when unknown."""
        silicon = self.silicon
        return None if silicon is None else silicon.line

    def __str__(self) -> str:
        return f"{self.family:02x}/{self.model:02x}/{self.stepping:02x}"


COMPONENTS = ("fmc", "bootloader", "tee", "snp", "microcode")
"""Names of the parts of a TCB, in the order in which the processor starts them."""

_OFFSETS = {
    ProductLine.MILAN: {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7},
    ProductLine.GENOA: {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7},
    ProductLine.TURIN: {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7},
}


_RESERVED = {
    line: sum(0xFF << 8 * offset for offset in range(TCB_BYTES) if offset not in offsets.values())
    for line, offsets in _OFFSETS.items()
}
"""The bits, as one little-endian number, that each line leaves zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tcb:
    """Security versions, 0 to 255 each. `fmc` exists on Turin alone and is None elsewhere."""

    line: ProductLine
    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None = None

    def __post_init__(self) -> None:
        for name in COMPONENTS:
            present = name in _OFFSETS[self.line]
            value = getattr(self, name)
            if (value is not None) != present or (present and not 0 <= value <= 255):
                required = "0 to 255" if present else "none"
                raise FormatError(f"tcb {name} is {value} on {self.line}; required: {required}")

    def components(self) -> dict[str, int]:
        """Return the parts that this line has, by name."""
        return {name: getattr(self, name) for name in _OFFSETS[self.line]}

    def below(self, floor: Tcb) -> tuple[str, ...]:
        """Return the names of the parts that are lower than in `floor`; empty when every part reaches it.

        Raises:
            FormatError: the two are of different lines, whose versions cannot be compared.
        """
        if self.line is not floor.line:
            raise FormatError(f"tcb of {self.line} cannot be compared with one of {floor.line}")
        if self == floor:
            return ()
        theirs = floor.components()
        return tuple(name for name, value in self.components().items() if value < theirs[name])

    def encode(self) -> bytes:
        """Return the 8 bytes as they stand in a report of this line."""
        data = bytearray(TCB_BYTES)
        for name, offset in _OFFSETS[self.line].items():
            data[offset] = getattr(self, name)
        return bytes(data)

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.components().items())


def parse_tcb(data: bytes, line: ProductLine, *, field: str = "tcb") -> Tcb:
    """Read the 8 bytes of a TCB_VERSION in the layout of `line`; `field` is what a refusal calls it.

    Raises:
        FormatError: another size, or a byte that this layout reserves is not zero.
    """
    if len(data) != TCB_BYTES:
        raise FormatError(f"{field} has {len(data)} bytes; required: {TCB_BYTES}")
    if int.from_bytes(data, "little") & _RESERVED[line]:
        reserved = [offset for offset in range(TCB_BYTES) if offset not in _OFFSETS[line].values()]
        raise FormatError(f"{field} is {data.hex()}; required: zero in bytes {reserved} on {line}")
    return Tcb(line=line, **{name: data[offset] for name, offset in _OFFSETS[line].items()})
