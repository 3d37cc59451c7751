# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What job.yaml says of the other owners of its packs.

Zone: owner. Pure.
Spec: docs/protocol.md section 16; docs/reference/job.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from cvmtool.errors import ConfigError
from cvmtool.formats.pack import NAME
from cvmtool.formats.packheader import PackHeader
from cvmtool.formats.parties import MAX_PARTIES, Party
from cvmtool.owner.strictyaml import Reader

_KEY = re.compile(r"[0-9a-f]{64}")


def read_parties(job: Reader) -> dict[str, str]:
    """Return what the coordinator calls each party -> its Ed25519 key, as hex.

    Raises:
        ConfigError: a name or a key is none, or a key stands twice.
    """
    reader = job.child("parties", default={})
    for name in reader.value:
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"parties has the name {name!r}; lower-case letters, digits, '.', '_' and '-' are required"
            )
        reader.text(name, _KEY, "64 hex digits")
    keys = list(reader.value.values())
    if len(keys) > MAX_PARTIES or len(set(keys)) != len(keys):
        raise ConfigError(f"parties has {len(keys)} entries; at most {MAX_PARTIES} are allowed, no key twice")
    return dict(reader.value)


def parties_of(names: Mapping[str, str], own: str, packs: Iterable[tuple[str, PackHeader | None]]) -> tuple[Party, ...]:
    """Return the parties as a manifest has them.

    Args:
        names: of `read_parties`.
        own: the coordinator's key.
        packs: the job's packs by name, with what is said of each.

    Raises:
        ConfigError: a party has no pack in the job, or is its owner.
    """
    theirs: dict[str, list[str]] = {key: [] for key in names.values()}
    for name, header in packs:
        if header is not None and header.owner_key in theirs:
            theirs[header.owner_key].append(name)
    for name, key in names.items():
        if not theirs[key] or key == own:
            raise ConfigError(
                f"party {name} has {'your own key' if key == own else 'no pack in the job'}",
                hint="parties: names the owners of packs among the inputs, and nobody else",
            )
    return tuple(Party(owner_key=key, packs=tuple(sorted(theirs[key]))) for key in sorted(theirs))
