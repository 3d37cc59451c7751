# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The head of a safetensors file: names, types, shapes and places of its tensors.

Zone: shared. Pure: no I/O.
Spec: the safetensors format: u64 little-endian length, JSON header, then tensors that fill the rest without gap or overlap.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from cvmtool.errors import FormatError
from cvmtool.formats.wire import JsonObject, members, parse_json, typed

MAX_TENSOR_HEADER = 16 << 20  # bytes
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip


def read_tensor_names(read: Callable[[int], bytes], size: int) -> frozenset[str]:
    """Return the names of the tensors; arguments and refusals are those of `read_tensors`."""
    return frozenset(read_tensors(read, size))


def read_tensors(read: Callable[[int], bytes], size: int) -> dict[str, int]:
    """Check the head of a safetensors file of `size` bytes and return how many elements each of its tensors has.

    `read(n)` returns the next n bytes of the file, fewer at its end.

    Raises:
        FormatError: it is not one, or its tensors do not fill it.
    """
    length = int.from_bytes(read(8), "little")
    most = min(MAX_TENSOR_HEADER, size - 8)
    if length > most:
        raise FormatError(f"safetensors header claims {length} bytes; at most {most} are possible")
    header = parse_json(read(length), what="safetensors header", limit=MAX_TENSOR_HEADER)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(item, str) for item in metadata.values()):
        raise FormatError("safetensors __metadata__ is not an object of strings")
    end = 0
    for begin, stop in sorted(_extent(name, tensor) for name, tensor in header.items()):
        if begin != end:
            raise FormatError(f"safetensors tensor begins at byte {begin}; {end} is required, without gap or overlap")
        end = stop
    if end != size - 8 - length:
        raise FormatError(f"safetensors tensors end at byte {end} of {size - 8 - length}; they must fill the file")
    return {name: math.prod(tensor["shape"]) for name, tensor in header.items()}


def _extent(name: str, tensor: object) -> tuple[int, int]:
    what = f"safetensors tensor {name[:64]!r}"
    if not isinstance(tensor, dict):
        raise FormatError(f"{what} is a {type(tensor).__name__}; an object is required")
    members(tensor, what=what, required={"dtype", "shape", "data_offsets"})
    bits = _BITS.get(typed(tensor, "dtype", str, what=what))
    if bits is None:
        raise FormatError(f"{what} dtype is {tensor['dtype'][:32]!r}; one of {', '.join(_BITS)} is required")
    shape, offsets = _naturals(tensor, "shape", what), _naturals(tensor, "data_offsets", what)
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * bits // 8:
        raise FormatError(
            f"{what} data_offsets are {str(offsets)[:40]}; they must span {str(shape)[:40]} of {bits} bits"
        )
    return offsets[0], offsets[1]


def _naturals(tensor: JsonObject, key: str, what: str) -> list[int]:
    items = typed(tensor, key, list, what=what)
    if len(items) > 64 or not all(type(item) is int and 0 <= item < 1 << 48 for item in items):
        raise FormatError(f"{what} {key} is {str(items)[:60]}; a short list of natural numbers is required")
    return items
