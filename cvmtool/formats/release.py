# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The secret that an owner releases to one verified guest: the passphrases of its packs.

Zone: shared. Pure: no I/O. The sealing itself is `cvmtool.owner.seal`, the opening `cvmtool.guest`.
Spec: docs/protocol.md section 6.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cvmtool.errors import FormatError
from cvmtool.formats.pack import PASSPHRASE_SIZE
from cvmtool.formats.wire import canonical_json, lp, members, parse_canonical_json, parse_hex, typed

MAX_SECRETS = 65_536  # bytes, sealed or not
_SCHEMA = "cvmtool/secrets/v1"
_PASSPHRASE = re.compile(f"[0-9a-f]{{{2 * PASSPHRASE_SIZE}}}")
_RELEASE = b"cvmtool/v1/release"


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """Passphrases (32 bytes each) by the root hash (64 hex digits) of the pack they open. Never printed."""

    packs: dict[str, bytes]

    def __repr__(self) -> str:
        return f"<secrets of {len(self.packs)} packs>"

    def encode(self) -> bytes:
        """Return the canonical JSON that is sealed."""
        return canonical_json({"schema": _SCHEMA, "packs": {root: key.hex() for root, key in self.packs.items()}})


def parse_secrets(data: bytes) -> Secrets:
    """Read opened secrets. No message repeats a value.

    Raises:
        FormatError: anything but the one form that `Secrets.encode` gives.
    """
    value = parse_canonical_json(data, what="secrets", limit=MAX_SECRETS)
    members(value, what="secrets", required={"schema", "packs"})
    if value["schema"] != _SCHEMA:
        raise FormatError(f"secrets.schema is not {_SCHEMA}")
    packs = {}
    for root, key in typed(value, "packs", dict, what="secrets").items():
        parse_hex(root, 32, what="secrets.packs key")
        # Not parse_hex, whose message would repeat the value; not bytes.fromhex alone, which passes over spaces.
        if not isinstance(key, str) or not _PASSPHRASE.fullmatch(key):
            raise FormatError(f"secrets.packs value is not {2 * PASSPHRASE_SIZE} lower-case hex digits")
        packs[root] = bytes.fromhex(key)
    return Secrets(packs=packs)


def release_info(*, report_data: bytes, host_data: bytes) -> bytes:
    """Return the HPKE `info` that ties a sealed secret to one attested session of one job."""
    return lp(_RELEASE, report_data, host_data)
