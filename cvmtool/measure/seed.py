# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A firmware's seed as a small JSON file: what a launch digest needs of an image of some megabytes.

Zone: measure (shared mathematics). Pure: no I/O.

    {"schema": "cvmtool/firmware-seed/v1", "size": bytes, "digest": 96 hex digits, "reset_eip": n, "hash_table_gpa": n or
     null, "hash_table_size": n, "sections": [{"gpa": n, "size": bytes, "kind": n}, ...]}

Whoever hands over a seed says what the firmware is, as whoever hands over the firmware does: take neither from a host.
"""

from __future__ import annotations

import json

from cvmtool.errors import FormatError
from cvmtool.formats.wire import JsonObject, members, natural, parse_hex, parse_json, typed
from cvmtool.measure.launch import DIGEST_BYTES, FirmwareSeed
from cvmtool.measure.ovmf import (
    ADDRESS_CEILING,
    MAX_FIRMWARE_BYTES,
    MAX_SECTIONS,
    Section,
    check_size,
    make_firmware,
    make_section,
)

SEED_SCHEMA = "cvmtool/firmware-seed/v1"
MAX_SEED_BYTES = 64 << 10

_KEYS = {"schema", "size", "digest", "reset_eip", "hash_table_gpa", "hash_table_size", "sections"}
_WHAT = "firmware seed"


def encode_seed(seed: FirmwareSeed) -> bytes:
    """Return the seed as JSON text, ending in a line feed."""
    firmware = seed.firmware
    document = {
        "schema": SEED_SCHEMA,
        "size": firmware.size,
        "digest": seed.digest.hex(),
        "reset_eip": firmware.reset_eip,
        "hash_table_gpa": firmware.hash_table_gpa,
        "hash_table_size": firmware.hash_table_size,
        "sections": [{"gpa": s.gpa, "size": s.size, "kind": int(s.kind)} for s in firmware.sections],
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def parse_seed(data: bytes) -> FirmwareSeed:
    """Read a seed of at most 64 KiB (unverified).

    Raises:
        FormatError: not JSON, another schema, a key missing or unknown, a number out of range, or ranges that overlap.
    """
    value = parse_json(data, what=_WHAT, limit=MAX_SEED_BYTES)
    members(value, what=_WHAT, required=_KEYS)
    if value["schema"] != SEED_SCHEMA:
        raise FormatError(f"{_WHAT}: schema is {str(value['schema'])[:48]!r}; required: {SEED_SCHEMA!r}")
    size = natural(value, "size", what=_WHAT, most=MAX_FIRMWARE_BYTES)
    check_size(size)
    table = None
    if value["hash_table_gpa"] is not None:
        table = natural(value, "hash_table_gpa", what=_WHAT, most=ADDRESS_CEILING)
    rows = typed(value, "sections", list, what=_WHAT)
    if not 1 <= len(rows) <= MAX_SECTIONS:
        raise FormatError(f"{_WHAT} has {len(rows)} sections; required: 1 to {MAX_SECTIONS}")
    firmware = make_firmware(
        size=size,
        reset_eip=natural(value, "reset_eip", what=_WHAT, most=ADDRESS_CEILING - 1),
        hash_table_gpa=table,
        hash_table_size=natural(value, "hash_table_size", what=_WHAT, most=ADDRESS_CEILING - 1),
        sections=tuple(_section(row) for row in rows),
    )
    return FirmwareSeed(firmware=firmware, digest=parse_hex(value["digest"], DIGEST_BYTES, what=f"{_WHAT}: digest"))


def _section(row: object) -> Section:
    if not isinstance(row, dict):
        raise FormatError(f"{_WHAT}: a section is {type(row).__name__}; required: an object")
    value: JsonObject = row
    members(value, what=f"{_WHAT} section", required={"gpa", "size", "kind"})
    numbers = {name: natural(value, name, what=f"{_WHAT} section", most=ADDRESS_CEILING) for name in value}
    return make_section(numbers["gpa"], numbers["size"], numbers["kind"])
