# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Grants: made from the job that an owner looked at, signed, verified, and held against the job that asks for a passphrase.

Zone: owner (trusted). Pure: no I/O; the time, the randomness and what was used before come in.
Spec: docs/protocol.md section 16. What must hold (every check is made, and all that fail are listed):

    1  the job is the grant's coordinator's: the guest obeys that key
    2  it is the one manifest, if the grant is for one
    3  the packs that the manifest gives this owner are granted ones, by the names and with the UUIDs that were granted
    4  the container's pack, arguments, environment and working directory are the granted ones
    5  no other output may leave, of no other kind, and none larger
    6  outputs are sealed to granted recipients alone
    7  the container may not print more than granted
    8  it is not expired, and this guest is one of those that it was used for, or there is a use left

A manifest with parties has no network, no access, no checkpoint and no GPUs (`formats.parties`), so a grant says nothing of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cvmtool.errors import AppraisalError, ConfigError, Finding, VerificationError
from cvmtool.formats.exchange import Answer
from cvmtool.formats.grant import Grant, GrantedPack
from cvmtool.formats.job import JobManifest
from cvmtool.formats.pack import PackDescriptor
from cvmtool.formats.packheader import moment
from cvmtool.owner.keystore import OwnerKeys


class ConsentError(AppraisalError):
    """An owner of packs does not allow the job: `findings` has what is against it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What an owner decides about a grant beside the job that it is for."""

    expires: datetime
    uses: int
    any_manifest: bool
    """Whether later manifests are allowed, too, as long as all else in the grant holds for them."""


def packs_of(manifest: JobManifest, owner_key: str) -> tuple[PackDescriptor, ...]:
    """Return the packs that a manifest says this owner releases.

    Raises:
        ConfigError: the key is none of its parties'.
    """
    names = _names(manifest, owner_key)
    if not names:
        raise ConfigError(
            f"your key {owner_key[:16]}... is none of the {len(manifest.parties)} parties of job {manifest.name}",
            hint="cvmtool key show shows your key; the coordinator names it under parties: in the job file",
        )
    return tuple(pack for pack in manifest.packs if pack.name in names)


def make_grant(
    manifest: JobManifest, own: Mapping[str, PackDescriptor], terms: Terms, keys: OwnerKeys, *, identity: str
) -> Grant:
    """Return a signed grant for a job that its owner has looked at.

    Args:
        manifest: the job.
        own: the owner's packs by root hash, from their own signed headers: what a coordinator says of a pack is not enough.
        terms: how long, how often, and for which manifests.
        keys: the owner's.
        identity: 16 random bytes as hex.

    Raises:
        ConfigError: no party of the job has this key, or the job wants a pack that is not among `own`.
    """
    packs = []
    for pack in packs_of(manifest, keys.public.hex()):
        mine = own.get(pack.root_hash)
        if mine is None or replace(pack, name=mine.name) != mine:
            raise ConfigError(
                f"the job wants your pack {pack.name} with the root hash {pack.root_hash[:16]}..., which is none of those named",
                hint="name each pack that you allow with --pack; cvmtool data show FILE prints its root hash",
            )
        packs.append(GrantedPack(name=pack.name, root_hash=mine.root_hash, luks_uuid=mine.luks_uuid))
    return sign_grant(
        Grant(
            id=identity,
            coordinator=manifest.owner_key,
            manifest=None if terms.any_manifest else manifest.sha256.hex(),
            packs=tuple(sorted(packs, key=lambda pack: pack.root_hash)),
            container_root=manifest.container_pack.root_hash,
            container=manifest.container,
            outputs=manifest.outputs,
            recipients=manifest.recipients,
            log_mib=manifest.limits.log_mib,
            expires=moment(terms.expires),
            uses=terms.uses,
            owner_key="",
            signature="",
        ),
        keys,
    )


def sign_grant(grant: Grant, keys: OwnerKeys) -> Grant:
    """Return `grant` under the owner's key, with its signature."""
    unsigned = replace(grant, owner_key=keys.public.hex(), signature="")
    return replace(unsigned, signature=keys.sign(unsigned.signed).hex())


def verify_grant(grant: Grant) -> None:
    """Check that the holder of the key that a grant names has signed it.

    Raises:
        VerificationError: the signature is another's, or of something else.
    """
    if not _signed_by(grant.owner_key, grant.signature, grant.signed):
        raise VerificationError(f"grant {grant.id} is not signed by the key {grant.owner_key[:16]}... that it names")


def sign_answer(answer: Answer, keys: OwnerKeys) -> Answer:
    """Return `answer` under the owner's key, with its signature."""
    unsigned = replace(answer, owner_key=keys.public.hex(), signature="")
    return replace(unsigned, signature=keys.sign(unsigned.signed).hex())


def verify_answer(answer: Answer, *, owner_key: str, manifest: JobManifest, round_number: int) -> None:
    """Check that an answer is this party's, to this job, in this round.

    Raises:
        VerificationError: it is another's, or to something else: somebody else wrote it, or put an older one in its place.
    """
    expected = (owner_key, manifest.sha256, round_number)
    signed = _signed_by(answer.owner_key, answer.signature, answer.signed)
    if (answer.owner_key, answer.manifest_sha256, answer.round) != expected or not signed:
        raise VerificationError(
            f"an answer in round {round_number} is not that of the party {owner_key[:16]}... to this job",
            hint="somebody else can write to the exchange directory; share it among the owners alone",
        )


def judge_grant(
    grant: Grant, manifest: JobManifest, *, at: datetime, used: Collection[str] = (), boot: str | None = None
) -> tuple[Finding, ...]:
    """Return all that is against a job in a (verified) grant; nothing means that it is allowed.

    Args:
        grant: the grant.
        manifest: the job.
        at: now, by the clock of who decides.
        used: the guests (HPKE keys, as hex) that got the passphrases before.
        boot: the guest that is to get them; None asks whether any other one may.
    """
    wanted = {pack for pack in manifest.packs if pack.name in _names(manifest, grant.owner_key)}
    granted = {(pack.name, pack.root_hash, pack.luks_uuid) for pack in grant.packs}
    allowed = {output.name: output for output in grant.outputs}
    more = [
        output
        for output in manifest.outputs
        if (known := allowed.get(output.name)) is None
        or known.kind is not output.kind
        or output.max_bytes > known.max_bytes
    ]
    strangers = sorted(set(manifest.recipients) - set(grant.recipients))
    checks = (
        ("coordinator", manifest.owner_key, grant.coordinator, manifest.owner_key == grant.coordinator),
        (
            "manifest",
            manifest.sha256.hex(),
            str(grant.manifest),
            grant.manifest in {None, manifest.sha256.hex()},
        ),
        (
            "packs",
            _listed(sorted(f"{pack.name} ({pack.root_hash[:16]}...)" for pack in wanted)),
            _listed(f"{pack.name} ({pack.root_hash[:16]}...)" for pack in grant.packs),
            bool(wanted) and {(pack.name, pack.root_hash, pack.luks_uuid) for pack in wanted} <= granted,
        ),
        (
            "container",
            f"{manifest.container_pack.root_hash[:16]}... {list(manifest.container.args)!r:.200}",
            f"{grant.container_root[:16]}... {list(grant.container.args)!r:.200}, environment and directory included",
            (manifest.container_pack.root_hash, manifest.container) == (grant.container_root, grant.container),
        ),
        (
            "outputs",
            _listed(f"{output.name} ({output.kind}, {output.max_bytes} bytes)" for output in more),
            _listed(f"{output.name} ({output.kind}, {output.max_bytes} bytes)" for output in grant.outputs),
            not more,
        ),
        (
            "recipients",
            _listed(f"{key[:16]}..." for key in strangers),
            _listed(f"{key[:16]}..." for key in grant.recipients),
            bool(manifest.recipients) and not strangers,
        ),
        ("log", f"{manifest.limits.log_mib} MiB", f"{grant.log_mib} MiB", manifest.limits.log_mib <= grant.log_mib),
        ("expired", moment(at), f"before {grant.expires}", at < datetime.fromisoformat(grant.expires)),
        ("uses", f"{len(used)} before", f"at most {grant.uses}", boot in used or len(used) < grant.uses),
    )
    return tuple(
        Finding(code=f"grant-{name}", field=f"grant {name}", actual=actual, required=required, why=_WHY[name])
        for name, actual, required, holds in checks
        if not holds
    )


def choose_grant(
    grants: Sequence[tuple[Grant, Collection[str]]], manifest: JobManifest, *, at: datetime, boot: str | None = None
) -> Grant:
    """Return the first (verified) grant that allows a job; each comes with the guests that used it.

    Raises:
        ConsentError: none does. The findings are those of the one that has the least against it.
    """
    judged = [(judge_grant(grant, manifest, at=at, used=used, boot=boot), grant) for grant, used in grants]
    allowed = next((grant for findings, grant in judged if not findings), None)
    if allowed is not None:
        return allowed
    if not judged:
        raise ConsentError(
            f"no grant for job {manifest.name} of the coordinator {manifest.owner_key[:16]}...",
            findings=(
                Finding(
                    code="grant-missing", field="grant", actual="none", required="one for this job", why=_WHY["missing"]
                ),
            ),
            hint="cvmtool party show DIR tells the job; cvmtool party grant DIR allows it",
        )
    findings, grant = min(judged, key=lambda item: len(item[0]))
    raise ConsentError(
        f"grant {grant.id[:8]} does not allow job {manifest.name}: "
        + "; ".join(f"{finding.field} is {finding.actual}; required: {finding.required}" for finding in findings),
        findings=findings,
    )


_WHY = {
    "coordinator": "the guest obeys the key of whoever the job belongs to",
    "manifest": "the grant is for one manifest, and this is another",
    "packs": "a passphrase opens the pack that it was granted for, where the container was to find it, and no other one leaves",
    "container": "what runs, and how it is called, decides what becomes of the data",
    "outputs": "what is not granted stays in the guest",
    "recipients": "whoever is a recipient reads the outputs",
    "log": "the coordinator reads what the container prints, in clear",
    "expired": "consent has an end",
    "uses": "each use is a guest that gets the passphrases",
    "missing": "nothing is released without its owner's signed consent",
}


def _names(manifest: JobManifest, owner_key: str) -> set[str]:
    return {name for party in manifest.parties if party.owner_key == owner_key for name in party.packs}


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(texts) or "none"


def _signed_by(owner_key: str, signature: str, data: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(owner_key)).verify(bytes.fromhex(signature), data)
    except (InvalidSignature, ValueError):
        return False
    return True
