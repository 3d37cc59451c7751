# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What a coordinator and the parties of its job leave for each other in an exchange directory. Nothing in it is secret.

Zone: shared. Pure: no I/O. Which file is whose is `cvmtool.flows.exchange`'s.
Spec: docs/protocol.md section 16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cvmtool.errors import FormatError
from cvmtool.formats.evidence import NONCE_SIZE
from cvmtool.formats.grant import MAX_GRANT, Grant, read_grant
from cvmtool.formats.job import MAX_MANIFEST, JobManifest, parse_job_manifest
from cvmtool.formats.pack import NAME
from cvmtool.formats.packheader import text
from cvmtool.formats.release import MAX_SECRETS
from cvmtool.formats.wire import (
    JsonObject,
    canonical_json,
    lp,
    members,
    natural,
    parse_base64,
    parse_canonical_json,
    parse_hex,
    to_base64,
    typed,
)

MAX_ROUNDS = 1_000
MAX_INVITATION = 2 * MAX_MANIFEST  # bytes
MAX_ANSWER = MAX_GRANT + 2 * MAX_SECRETS  # bytes
_INVITATION = "cvmtool/exchange-job/v1"
_ANSWER = "cvmtool/exchange-answer/v1"
_LABEL = b"cvmtool/v1/party-answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledJob:
    """The coordinator's word, unsigned: what the guest shows is over the manifest, or there is no passphrase."""

    manifest: JobManifest
    names: Mapping[str, str]
    """What the coordinator calls each party -> its Ed25519 key, as hex."""

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        document = {"schema": _INVITATION, "manifest": to_base64(self.manifest.encode()), "names": dict(self.names)}
        return canonical_json(document)


def parse_pooled_job(data: bytes) -> PooledJob:
    """Read what a coordinator asks of parties.

    Raises:
        FormatError: not canonical, a key missing, unknown or out of range, or other parties than the manifest's.
    """
    what = "pooled job"
    value = parse_canonical_json(data, what=what, limit=MAX_INVITATION)
    members(value, what=what, required={"schema", "manifest", "names"})
    if value["schema"] != _INVITATION:
        raise FormatError(f"{what}.schema is {str(value['schema'])[:48]!r}; {_INVITATION} is required")
    manifest = parse_job_manifest(parse_base64(value["manifest"], what=f"{what}.manifest", limit=MAX_MANIFEST))
    names = typed(value, "names", dict, what=what)
    if not all(NAME.fullmatch(name) for name in names):
        raise FormatError(f"{what}.names has one that is not plain")
    keys = [parse_hex(key, 32, what=f"{what}.names").hex() for key in names.values()]
    if sorted(keys) != [party.owner_key for party in manifest.parties]:
        raise FormatError(f"{what}.names are not the keys of the manifest's parties, once each")
    return PooledJob(manifest=manifest, names=names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Consent:
    """A party's yes: its grant, and the nonce that its own look at the guest begins with (32 bytes)."""

    nonce: bytes
    grant: Grant


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One signed answer of a party, to one job in one round: yes, no, or the sealed passphrases."""

    manifest_sha256: bytes
    round: int
    """From 1; each guest that is to be opened begins one."""
    said: Consent | str | bytes
    """A consent; a refusal in words; or what was sealed to the verified guest."""
    owner_key: str
    signature: str
    """64 bytes as hex, over `signed`; empty before it is signed."""

    @property
    def signed(self) -> bytes:
        """The bytes under the signature: a label, and all but the signature in canonical JSON."""
        document = self._document()
        del document["signature"]
        return lp(_LABEL, canonical_json(document))

    def encode(self) -> bytes:
        """Return the canonical bytes."""
        return canonical_json(self._document())

    def _document(self) -> JsonObject:
        said = self.said
        body: JsonObject
        if isinstance(said, Consent):
            body = {"nonce": said.nonce.hex(), "grant": said.grant.to_json()}
        else:
            body = {"refusal": said} if isinstance(said, str) else {"sealed": to_base64(said)}
        return body | {
            "schema": _ANSWER,
            "manifest": self.manifest_sha256.hex(),
            "round": self.round,
            "owner_key": self.owner_key,
            "signature": self.signature,
        }


def parse_answer(data: bytes) -> Answer:
    """Read a party's answer. Its signature, and its grant's, are not verified here.

    Raises:
        FormatError: not canonical, a key missing, unknown or out of range, or more than one thing said.
    """
    what = "party answer"
    value = parse_canonical_json(data, what=what, limit=MAX_ANSWER)
    common = {"schema", "manifest", "round", "owner_key", "signature"}
    body = value.keys() - common
    if body not in ({"nonce", "grant"}, {"refusal"}, {"sealed"}):
        raise FormatError(f"{what} is neither nonce and grant, nor a refusal, nor something sealed")
    members(value, what=what, required=common | body)
    if value["schema"] != _ANSWER:
        raise FormatError(f"{what}.schema is {str(value['schema'])[:48]!r}; {_ANSWER} is required")
    return Answer(
        manifest_sha256=parse_hex(value["manifest"], 32, what=f"{what}.manifest"),
        round=natural(value, "round", what=what, most=MAX_ROUNDS, least=1),
        said=_said(value, what),
        owner_key=parse_hex(value["owner_key"], 32, what=f"{what}.owner_key").hex(),
        signature=parse_hex(value["signature"], 64, what=f"{what}.signature").hex(),
    )


def _said(value: JsonObject, what: str) -> Consent | str | bytes:
    if "refusal" in value:
        return text(value["refusal"], what=f"{what}.refusal")
    if "sealed" in value:
        return parse_base64(value["sealed"], what=f"{what}.sealed", limit=MAX_SECRETS)
    return Consent(
        nonce=parse_hex(value["nonce"], NONCE_SIZE, what=f"{what}.nonce"),
        grant=read_grant(typed(value, "grant", dict, what=what)),
    )
