# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Rules as a YAML file, read strictly.

Zone: owner (trusted). Pure: no I/O.

Every key is required. What shall not be restricted is written `any`; an empty list allows nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar

from cvmtool.errors import ConfigError
from cvmtool.formats.job import MAX_OUTPUT_BYTES, Network, OutputKind
from cvmtool.formats.pack import NAME
from cvmtool.formats.packheader import Sensitivity
from cvmtool.formats.receipt import Access
from cvmtool.owner.pipeline import ANY, SAID, Rules
from cvmtool.owner.policy import OPTIONAL
from cvmtool.owner.strictyaml import Reader, in_short, load_yaml

RULES_SCHEMA = "cvmtool/rules/v1"
PAGE = "docs/reference/policy-pipeline.md"
BUILT_IN = "built-in"
_HEX = re.compile("[0-9a-f]{64}")
_OCI = re.compile("sha256:[0-9a-f]{64}")
_RECIPIENT = re.compile("[0-9a-f]{64}|age1[02-9ac-hj-np-z]{58}")
_PLACE = re.compile(r"([a-z0-9.-]{1,253}|\[[0-9a-f:.]{2,45}\]):[0-9]{1,5}")
_TEXT = re.compile("[ -~]{1,256}")
_MOST_BYTES = MAX_OUTPUT_BYTES << 8  # of all outputs: as many as a job may have

KEYS = (
    "images",
    "containers",
    "inputs",
    "network",
    "destinations",
    "plaintext",
    "access",
    "clients",
    "outputs",
    "recipients",
    "evidence",
)
"""All but the schema, in the order of docs/reference/policy-pipeline.md."""

E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")


def parse_rules(text: str) -> Rules:
    """Read rules.

    Raises:
        ConfigError: not YAML, another schema; a key missing, unknown or of the wrong kind; a value twice. The message names it.
    """
    rules = Reader(load_yaml(text, "the rules"), "the rules", page=PAGE)
    rules.only("schema", *KEYS)
    if rules.require("schema") != RULES_SCHEMA:
        raise ConfigError(f"schema is {in_short(rules.value['schema'])}; {RULES_SCHEMA!r} is required")
    inputs, outputs, evidence = (rules.child(key) for key in ("inputs", "outputs", "evidence"))
    inputs.only("must_say", "sensitivity", "licences", "must_be_scrubbed", "pipelines", "in_dry_runs")
    outputs.only("kinds", "largest", "together")
    evidence.only("floors", "unchecked")
    floors = evidence.text("floors", re.compile(f"{BUILT_IN}|{ANY}"), f"{BUILT_IN} or {ANY}")
    return Rules(
        images=_or_any(rules, "images", _images),
        containers=_or_any(rules, "containers", lambda r, k: _texts(r, k, _OCI, "sha256: and 64 hex digits")),
        must_say=frozenset(_texts(inputs, "must_say", re.compile("|".join(SAID)), f"some of {', '.join(SAID)}")),
        sensitivity=_or_any(inputs, "sensitivity", lambda r, k: _members(r, k, Sensitivity)),
        licences=_or_any(inputs, "licences", lambda r, k: _texts(r, k, _TEXT, "names of licences")),
        must_be_scrubbed=_members(inputs, "must_be_scrubbed", Sensitivity),
        pipelines=_or_any(inputs, "pipelines", lambda r, k: _texts(r, k, _OCI, "sha256: and 64 hex digits")),
        in_dry_runs=_or_any(inputs, "in_dry_runs", lambda r, k: _members(r, k, Sensitivity)),
        network=_members(rules, "network", Network),
        destinations=_or_any(rules, "destinations", _places),
        plaintext=_or_any(rules, "plaintext", _places),
        access=_members(rules, "access", Access),
        clients=_or_any(rules, "clients", lambda r, k: _texts(r, k, _HEX, "Ed25519 keys of 64 hex digits")),
        output_kinds=_or_any(outputs, "kinds", lambda r, k: _members(r, k, OutputKind)),
        largest_output=_or_any(outputs, "largest", lambda r, k: r.size(k, MAX_OUTPUT_BYTES)),
        all_outputs=_or_any(outputs, "together", lambda r, k: r.size(k, _MOST_BYTES)),
        recipients=_or_any(
            rules, "recipients", lambda r, k: _texts(r, k, _RECIPIENT, "owner keys of 64 hex digits and age recipients")
        ),
        unchecked=_texts(evidence, "unchecked", re.compile("|".join(OPTIONAL)), f"some of {', '.join(OPTIONAL)}"),
        built_in_floors=floors == BUILT_IN,
    )


def unrestricted(rules: Rules) -> tuple[str, ...]:
    """Return the keys of what these rules leave to anybody, in the file's order."""
    stated = {
        "images": rules.images,
        "containers": rules.containers,
        "inputs.sensitivity": rules.sensitivity,
        "inputs.licences": rules.licences,
        "inputs.pipelines": rules.pipelines,
        "inputs.in_dry_runs": rules.in_dry_runs,
        "destinations": rules.destinations,
        "plaintext": rules.plaintext,
        "clients": rules.clients,
        "outputs.kinds": rules.output_kinds,
        "outputs.largest": rules.largest_output,
        "outputs.together": rules.all_outputs,
        "recipients": rules.recipients,
        "evidence.floors": rules.built_in_floors or None,
    }
    return tuple(key for key, value in stated.items() if value is None)


def _or_any(reader: Reader, key: str, read: Callable[[Reader, str], T]) -> T | None:
    return None if reader.require(key) == ANY else read(reader, key)


def _images(reader: Reader, key: str) -> dict[str, frozenset[str]]:
    named = reader.child(key)
    for name in named.value:
        if not NAME.fullmatch(name):
            raise ConfigError(f"{reader.name(key)} has the name {name[:64]!r}; that of a guest image is required")
    return {name: _texts(named, name, _HEX, "manifest digests of 64 hex digits") for name in named.value}


def _places(reader: Reader, key: str) -> frozenset[str]:
    return _texts(reader, key, _PLACE, "places such as example.org:443")


def _texts(reader: Reader, key: str, pattern: re.Pattern[str], expected: str) -> frozenset[str]:
    reader.require(key)
    values = reader.strings(key)
    for value in values:
        if not pattern.fullmatch(value):
            raise ConfigError(f"{reader.name(key)} holds {value[:80]!r}; {expected} are required")
    if len(set(values)) != len(values):
        raise ConfigError(f"{reader.name(key)} names something twice")
    return frozenset(values)


def _members(reader: Reader, key: str, kind: type[E]) -> frozenset[E]:
    expected = f"some of {', '.join(kind)}"
    return frozenset(kind(value) for value in _texts(reader, key, re.compile("|".join(kind)), expected))
