# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The secret that an owner releases to one verified guest: the passphrases of its packs.

Zone: shared. Pure: no I/O. The sealing itself is `cvmtool.owner.seal`, the opening `cvmtool.guest`.
Spec: docs/protocol.md section 6.
"""

from __future__ import annotations

from dataclasses import dataclass

from cvmtool.errors import FormatError
from cvmtool.formats.pack import PASSPHRASE_SIZE
from cvmtool.formats.wire import canonical_json, lp, members, parse_canonical_json, parse_hex, typed

MAX_SECRETS = 65_536  # bytes, sealed or not
_SCHEMA = "cvmtool/secrets/v1"
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
        if not isinstance(key, str) or len(key) != 2 * PASSPHRASE_SIZE:
            raise FormatError(f"secrets.packs value is not {2 * PASSPHRASE_SIZE} hex digits")
        try:
            packs[root] = bytes.fromhex(key)
        except ValueError:
            raise FormatError("secrets.packs value is not hex") from None
    return Secrets(packs=packs)


def release_info(*, report_data: bytes, host_data: bytes) -> bytes:
    """Return the HPKE `info` that ties a sealed secret to one attested session of one job."""
    return lp(_RELEASE, report_data, host_data)
