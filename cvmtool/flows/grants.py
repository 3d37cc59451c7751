# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""An owner's grants on disk: what was allowed, which nonces were given, and who used them.

Zone: flows (a party's machine). A use is a file that only one process can make, and it is on the disk before anything is sealed.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cvmtool.config import Settings, private_dir, write_once
from cvmtool.errors import ConfigError, Finding, FormatError
from cvmtool.flows.attempts import now
from cvmtool.flows.packfile import read_pack
from cvmtool.formats.evidence import NONCE_SIZE
from cvmtool.formats.grant import ID_SIZE, MAX_GRANT, Grant, encode_grant, parse_grant
from cvmtool.formats.job import JobManifest
from cvmtool.formats.pack import PackDescriptor
from cvmtool.formats.wire import JsonObject, members, parse_hex, parse_json
from cvmtool.owner.grants import ConsentError, Terms, make_grant, verify_grant
from cvmtool.owner.keystore import OwnerKeys

GRANT_FILE = "grant.json"
_USE = "use-{}.json"
_NONCE = "nonce-{}-{}"
_MAX_SMALL = 4_096  # bytes of a use or a nonce


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptGrant:
    """A grant in its directory."""

    folder: Path
    grant: Grant

    def used(self) -> Mapping[str, str]:
        """Return the guests that got the passphrases: HPKE key as hex -> when.

        Raises:
            ConfigError, FormatError: a use cannot be read, or is damaged: then nobody knows, and nothing is released.
        """
        found = {}
        for number in range(1, self.grant.uses + 1):
            data = _read(self.folder / _USE.format(number))
            if data is not None:
                use = _use(data)
                found[use["boot"]] = use["at"]
        return found

    def use(self, boot: str) -> None:
        """Count a guest, on the disk, before it gets anything. One that was counted already is no other use.

        Raises:
            ConsentError: every use is taken.
        """
        for number in range(1, self.grant.uses + 1):
            path = self.folder / _USE.format(number)
            said = json.dumps({"boot": boot, "at": now()}).encode("ascii") + b"\n"
            if write_once(path, said):
                _sync(self.folder)
                return
            data = _read(path)
            if data is not None and _use(data)["boot"] == boot:
                return
        finding = Finding(
            code="grant-uses",
            field="grant uses",
            actual=f"{self.grant.uses} before",
            required=f"at most {self.grant.uses}",
            why="each use is a guest that gets the passphrases",
        )
        raise ConsentError(f"grant {self.grant.id[:8]} was used {self.grant.uses} times", findings=(finding,))

    def nonce(self, manifest: JobManifest, number: int) -> bytes:
        """Return the nonce of a round (32 bytes), made at the first call: whoever waits for the guest may be another process.

        Raises:
            ConfigError: it cannot be kept.
        """
        path = self._nonce_path(manifest, number)
        try:
            write_once(path, secrets.token_bytes(NONCE_SIZE))
        except OSError as error:
            raise ConfigError(f"{path} cannot be written", detail=str(error)) from error
        return self.given_nonce(manifest, number)

    def given_nonce(self, manifest: JobManifest, number: int) -> bytes:
        """Return the nonce that was given in a round.

        Raises:
            ConfigError: none was, for this grant.
        """
        data = _read(self._nonce_path(manifest, number))
        if data is None or len(data) != NONCE_SIZE:
            raise ConfigError(f"grant {self.grant.id[:8]} gave no nonce in round {number}")
        return data

    def _nonce_path(self, manifest: JobManifest, number: int) -> Path:
        return self.folder / _NONCE.format(manifest.sha256.hex(), number)


def give_grant(
    manifest: JobManifest, packs: list[Path], terms: Terms, *, settings: Settings, keys: OwnerKeys
) -> KeptGrant:
    """Allow a job with these packs of ours, and keep the signed grant.

    Raises:
        ConfigError: we are no party of it, a pack cannot be read, or the job wants another one of ours.
        VerificationError: a header is not signed by whom it names.
    """
    own: dict[str, PackDescriptor] = {}
    for path in packs:
        found = read_pack(path)
        if found.header is None or found.header.owner_key != keys.public.hex():
            raise ConfigError(
                f"pack {path} has no header of yours",
                hint="cvmtool data pack signs one; only its maker can grant a pack",
            )
        own[found.descriptor.root_hash] = found.descriptor
    grant = make_grant(manifest, own, terms, keys, identity=secrets.token_hex(ID_SIZE))
    folder = private_dir(settings.grants_dir / grant.id)
    write_once(folder / GRANT_FILE, encode_grant(grant))
    _sync(folder)
    return KeptGrant(folder=folder, grant=grant)


def load_grants(settings: Settings) -> list[KeptGrant]:
    """Return every grant, the first to expire first.

    Raises:
        ConfigError, FormatError, VerificationError: one cannot be read, is damaged or not signed.
    """
    found = []
    for path in settings.grants_dir.glob(f"*/{GRANT_FILE}"):
        data = _read(path, MAX_GRANT)
        if data is None:
            continue
        grant = parse_grant(data)
        verify_grant(grant)
        found.append(KeptGrant(folder=path.parent, grant=grant))
    return sorted(found, key=lambda kept: (kept.grant.expires, kept.grant.id))


def find_grant(settings: Settings, beginning: str) -> KeptGrant:
    """Return the grant whose id begins so.

    Raises:
        ConfigError: none does, or several.
    """
    found = [kept for kept in load_grants(settings) if beginning and kept.grant.id.startswith(beginning)]
    if len(found) != 1:
        raise ConfigError(
            f"{len(found)} grants begin with {beginning[:32]!r}; 1 is required", hint="cvmtool party grants"
        )
    return found[0]


def revoke_grant(settings: Settings, beginning: str) -> Grant:
    """Take a grant back: nothing is released under it any more. What a guest got before, it has.

    Raises:
        ConfigError: there is no such grant, or it cannot be removed.
    """
    kept = find_grant(settings, beginning)
    try:
        (kept.folder / GRANT_FILE).unlink()
        shutil.rmtree(kept.folder)
    except OSError as error:
        raise ConfigError(f"{kept.folder} cannot be removed", detail=str(error)) from error
    return kept.grant


def is_expired(grant: Grant) -> bool:
    """Whether a grant has ended by this machine's clock."""
    return datetime.now(UTC) >= datetime.fromisoformat(grant.expires)


def _use(data: bytes) -> JsonObject:
    value = parse_json(data, what="use of a grant", limit=_MAX_SMALL)
    members(value, what="use of a grant", required={"boot", "at"})
    parse_hex(value["boot"], 32, what="use.boot")
    if not isinstance(value["at"], str):
        raise FormatError("use.at is no text")
    return value


def _read(path: Path, limit: int = _MAX_SMALL) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read", detail=str(error)) from error


def _sync(folder: Path) -> None:
    """Have the names in a directory on the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
