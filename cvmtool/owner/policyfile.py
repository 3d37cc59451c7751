# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A policy as a TOML file: read strictly, written in one fixed order.

Zone: owner (trusted). Pure: no I/O.

`parse_policy(encode_policy(p)) == p`. Built-in floors are written out as rows, so a saved policy decides the same case
the same way after cvmtool's own floors have changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from cvmtool.errors import ConfigError
from cvmtool.formats.policybits import PLATFORM_BITS, POLICY_BITS
from cvmtool.formats.report import FirmwareVersion
from cvmtool.formats.tcb import ProductLine
from cvmtool.owner.floors import Floor, built_in_floors, read_floors
from cvmtool.owner.policy import (
    CHIP_BYTES,
    DIGEST_BYTES,
    HOST_DATA_BYTES,
    MEASUREMENT_BYTES,
    NAME_BYTES,
    OPTIONAL,
    POLICY_SCHEMA,
    IdBlock,
    KeyKind,
    MeasurementSet,
    Policy,
    RevocationRule,
    RootKind,
    Rule,
    stateable,
)
from cvmtool.owner.toml import Table, load_table

BUILT_IN = "built-in"
_UNKNOWN = "unknown"


def parse_policy(text: str) -> Policy:
    """Read a policy.

    Raises:
        ConfigError: not TOML, empty, another schema; a key unknown (the hint names the nearest), missing, of the wrong
            kind, or both stated and unchecked; or fields that contradict each other.
    """
    document = load_table(text, "policy")
    schema = document.text("schema")
    if schema != POLICY_SCHEMA:
        raise ConfigError(f"policy.schema is {schema!r}; required: {POLICY_SCHEMA!r}")
    keys = frozenset(document.choices("signing_keys", KeyKind))
    skipped = _unchecked(document, stateable(vlek=KeyKind.VLEK in keys, id_block=document.has("id_block")))
    platform = document.table("platform_info")
    unknown_platform_info = platform.choice(_UNKNOWN, Rule)
    policy = Policy(
        roots=document.choice("roots", RootKind),
        simulated_root=document.hex("simulated_root", 32) if document.has("simulated_root") else None,
        products=frozenset(document.choices("products", ProductLine)),
        allow_milan=document.has("allow_milan") and document.boolean("allow_milan"),
        signing_keys=keys,
        min_report_version=document.integer("min_report_version", 2, 5),
        measurements=_digests(document, "measurements", required=not document.has("measurement_sets")),
        measurement_sets=_measurement_sets(document),
        revoked_measurements=_digests(document, "revoked_measurements", required=False),
        vmpl=frozenset(document.integers("vmpl", 0, 3)),
        guest_policy=_rules(document.table("guest_policy"), POLICY_BITS),
        min_abi=_abi(document),
        platform_info=_rules(platform, PLATFORM_BITS),
        unknown_platform_info=unknown_platform_info,
        provisional_firmware=document.choice("provisional_firmware", Rule),
        revocation=document.choice("revocation", RevocationRule),
        host_data=None if "host-data" in skipped else frozenset(document.hexes("host_data", HOST_DATA_BYTES)),
        chips=None if "chips" in skipped else frozenset(document.hexes("chips", *CHIP_BYTES)),
        providers=None if "providers" in skipped else frozenset(document.texts("providers")),
        tcb_floors=None if "tcb-floors" in skipped else _floors(document),
        min_firmware=None if "min-firmware" in skipped else _firmware(document),
        mitigations=None if "mitigations" in skipped else document.integer("mitigations", 1, (1 << 63) - 1),
        id_block=None if "id-block" in skipped else _id_block(document.table("id_block")),
        family_ids=None if "family-ids" in skipped else frozenset(document.hexes("family_ids", NAME_BYTES)),
        image_ids=None if "image-ids" in skipped else frozenset(document.hexes("image_ids", NAME_BYTES)),
    )
    document.finish()
    return policy


def _unchecked(document: Table, stateable_names: set[str]) -> set[str]:
    """Return the optional names that are not stated; each of them must stand in `unchecked`."""
    listed = set(document.texts("unchecked")) if document.has("unchecked") else set()
    unknown = sorted(listed - OPTIONAL.keys())
    if unknown:
        raise ConfigError(
            f"policy.unchecked holds {unknown[0]!r}; required: some of {', '.join(OPTIONAL)}",
            hint="every other check is always made",
        )
    idle = sorted(listed - stateable_names)
    if idle:
        needed = "'vlek' in policy.signing_keys" if idle[0] == "providers" else "policy.id_block"
        raise ConfigError(f"policy.unchecked holds {idle[0]!r}, which means nothing; required: {needed}")
    for name, key in OPTIONAL.items():
        stated = document.has(key)
        if stated and name in listed:
            raise ConfigError(f"policy.{key} is stated and {name!r} stands in policy.unchecked; required: one of them")
        if not stated and name not in listed and name in stateable_names:
            raise ConfigError(
                f"policy lacks the key {key!r}; required: a value, or {name!r} in policy.unchecked",
                hint="leave a check out only by name",
            )
    return {name for name, key in OPTIONAL.items() if not document.has(key)}


def _digests(document: Table, key: str, *, required: bool) -> frozenset[bytes]:
    if not required and not document.has(key):
        return frozenset()
    return frozenset(document.hexes(key, MEASUREMENT_BYTES))


def _measurement_sets(document: Table) -> tuple[MeasurementSet, ...]:
    return tuple(
        _measurement_set(table)
        for table in (document.tables("measurement_sets") if document.has("measurement_sets") else ())
    )


def _measurement_set(table: Table) -> MeasurementSet:
    value = MeasurementSet(
        name=table.text("name"),
        digests=frozenset(table.hexes("digests", MEASUREMENT_BYTES)),
        not_before=table.moment("not_before") if table.has("not_before") else None,
        not_after=table.moment("not_after") if table.has("not_after") else None,
    )
    table.finish()
    return value


def _rules(table: Table, bits: Iterable[str]) -> dict[str, Rule]:
    rules = {name: table.choice(name, Rule) for name in bits}
    table.finish()
    return rules


def _numbers(document: Table, key: str, count: int) -> tuple[int, ...]:
    text = document.text(key)
    numbers = tuple(map(int, text.split("."))) if re.fullmatch(r"\d{1,3}(\.\d{1,3})*", text, re.ASCII) else ()
    if len(numbers) != count or not all(number <= 255 for number in numbers):
        raise document.wrong(key, text, f"{count} numbers from 0 to 255 with dots between")
    return numbers


def _abi(document: Table) -> tuple[int, int]:
    major, minor = _numbers(document, "min_abi", 2)
    return major, minor


def _firmware(document: Table) -> FirmwareVersion:
    major, minor, build = _numbers(document, "min_firmware", 3)
    return FirmwareVersion(major=major, minor=minor, build=build)


def _floors(document: Table) -> tuple[Floor, ...]:
    try:
        name = document.text("tcb_floors")
    except ConfigError:
        return read_floors(document.tables("tcb_floors"))
    if name != BUILT_IN:
        raise document.wrong("tcb_floors", name, f"{BUILT_IN!r} or an array of tables")
    return built_in_floors()


def _id_block(table: Table) -> IdBlock:
    block = IdBlock(
        id_keys=frozenset(table.hexes("id_keys", DIGEST_BYTES)) if table.has("id_keys") else frozenset(),
        author_keys=frozenset(table.hexes("author_keys", DIGEST_BYTES)) if table.has("author_keys") else frozenset(),
        min_guest_svn=table.integer("min_guest_svn", 0, (1 << 32) - 1),
    )
    table.finish()
    return block


def encode_policy(policy: Policy) -> str:
    """Return the policy as TOML, in a fixed order, ending in a line feed."""
    lines = [
        f"schema = {_text(POLICY_SCHEMA)}",
        f"roots = {_text(policy.roots)}",
        *([] if policy.simulated_root is None else [f"simulated_root = {_text(policy.simulated_root.hex())}"]),
        f"products = {_texts(policy.products)}",
        *(["allow_milan = true"] if policy.allow_milan else []),
        f"signing_keys = {_texts(policy.signing_keys)}",
        f"min_report_version = {policy.min_report_version}",
        *([f"measurements = {_hexes(policy.measurements)}"] if policy.measurements else []),
        *([f"revoked_measurements = {_hexes(policy.revoked_measurements)}"] if policy.revoked_measurements else []),
        f"vmpl = [{', '.join(map(str, sorted(policy.vmpl)))}]",
        f'min_abi = "{policy.min_abi[0]}.{policy.min_abi[1]}"',
        f"provisional_firmware = {_text(policy.provisional_firmware)}",
        f"revocation = {_text(policy.revocation)}",
        *([] if policy.host_data is None else [f"host_data = {_hexes(policy.host_data)}"]),
        *([] if policy.chips is None else [f"chips = {_hexes(policy.chips)}"]),
        *([] if policy.providers is None else [f"providers = {_texts(policy.providers)}"]),
        *([] if policy.min_firmware is None else [f"min_firmware = {_text(str(policy.min_firmware))}"]),
        *([] if policy.mitigations is None else [f"mitigations = {policy.mitigations:#x}"]),
        *([] if policy.family_ids is None else [f"family_ids = {_hexes(policy.family_ids)}"]),
        *([] if policy.image_ids is None else [f"image_ids = {_hexes(policy.image_ids)}"]),
        *([f"unchecked = [{', '.join(map(_text, policy.unchecked))}]"] if policy.unchecked else []),
        "",
        "[guest_policy]",
        *(f"{name} = {_text(policy.guest_policy[name])}" for name in POLICY_BITS),
        "",
        "[platform_info]",
        *(f"{name} = {_text(policy.platform_info[name])}" for name in PLATFORM_BITS),
        f"{_UNKNOWN} = {_text(policy.unknown_platform_info)}",
    ]
    if policy.id_block is not None:
        block = policy.id_block
        lines += ["", "[id_block]"]
        lines += [f"id_keys = {_hexes(block.id_keys)}"] if block.id_keys else []
        lines += [f"author_keys = {_hexes(block.author_keys)}"] if block.author_keys else []
        lines += [f"min_guest_svn = {block.min_guest_svn}"]
    for entry in policy.measurement_sets:
        lines += ["", "[[measurement_sets]]", f"name = {_text(entry.name)}", f"digests = {_hexes(entry.digests)}"]
        lines += [f"not_before = {entry.not_before.isoformat()}"] if entry.not_before else []
        lines += [f"not_after = {entry.not_after.isoformat()}"] if entry.not_after else []
    for floor in policy.tcb_floors or ():
        lines += [
            "",
            "[[tcb_floors]]",
            f"bulletin = {_text(floor.bulletin)}",
            f"silicon = [{', '.join(map(_text, floor.silicon))}]",
            f"component = {_text(floor.component)}",
            f"value = {floor.value}",
            f"source = {_text(floor.source)}",
            f"checked = {floor.checked.isoformat()}",
        ]
    return "\n".join(lines) + "\n"


def _text(value: str) -> str:
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in quoted) + '"'


def _texts(values: Iterable[str]) -> str:
    return f"[{', '.join(_text(value) for value in sorted(values))}]"


def _hexes(values: Iterable[bytes]) -> str:
    return _texts(value.hex() for value in values)
