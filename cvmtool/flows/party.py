# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A party's side of a job of several owners: consent, look at the guest, release. The coordinator is a carrier, and not believed.

Zone: flows (a party's machine). Needs no host: only the exchange directory, the owner's keys and grants, and a policy of its own.
Spec: docs/protocol.md section 16.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cvmtool.config import Settings, private_dir
from cvmtool.errors import ConfigError, CvmError, FreshnessError
from cvmtool.flows.cases import save_case
from cvmtool.flows.exchange import Exchange, Part, open_exchanges
from cvmtool.flows.grants import KeptGrant, load_grants
from cvmtool.formats.evidence import Evidence
from cvmtool.formats.exchange import Answer, Consent, PooledJob
from cvmtool.formats.job import JobManifest
from cvmtool.formats.packheader import MAX_TEXT
from cvmtool.formats.release import Secrets
from cvmtool.owner.appraise import VerifiedGuest
from cvmtool.owner.grants import ConsentError, choose_grant, packs_of, sign_answer, verify_answer
from cvmtool.owner.keystore import OwnerKeys
from cvmtool.owner.policy import Policy
from cvmtool.owner.seal import seal
from cvmtool.owner.session import judge_evidence

PolicyOf = Callable[[JobManifest], Policy]
_LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that this party did: consented, or released its packs to a guest that it verified."""

    job: str
    """The job's id in the exchange."""
    name: str
    """Of the job, in its manifest."""
    round: int
    grant: str
    guest: VerifiedGuest | None
    """The guest that got the passphrases; None: a consent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    """A job in a round, and who is to answer."""

    exchange: Exchange
    manifest: JobManifest
    name: str
    number: int
    keys: OwnerKeys

    def put(self, part: Part, said: Consent | str | bytes) -> None:
        """Leave a signed answer."""
        answer = Answer(manifest_sha256=self.manifest.sha256, round=self.number, said=said, owner_key="", signature="")
        self.exchange.put_answer(self.name, part, sign_answer(answer, self.keys))

    def event(self, grant: str, guest: VerifiedGuest | None = None) -> Event:
        """Return what was done."""
        return Event(job=self.exchange.id, name=self.manifest.name, round=self.number, grant=grant, guest=guest)

    @contextmanager
    def telling(self, part: Part) -> Iterator[None]:
        """Tell the coordinator why not, if the block ends in a refusal. What is wrong on this machine is nobody else's business."""
        try:
            yield
        except ConfigError:
            raise
        except CvmError as error:
            self.put(part, _line(error.message))
            raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """One owner of packs, before the jobs of others."""

    keys: OwnerKeys
    settings: Settings
    policy_of: PolicyOf
    """What is acceptable of a guest with such a job: this owner's own word."""

    def step(self, exchange: Exchange, pooled: PooledJob, *, patient: bool = False) -> Event | None:
        """Do the next thing that is this party's to do in a job, if there is any.

        Raises:
            ConsentError: no grant allows it. The coordinator is told; not by a `patient` party, which may grant it yet.
            FormatError, VerificationError, FreshnessError, AppraisalError: the guest is not accepted. The coordinator is told.
            ConfigError: the job is nothing of ours, or a file cannot be read or written.
        """
        turn = _turn(self.keys, exchange, pooled)
        before = exchange.answer(turn.name, turn.number, Part.CONSENT)
        if before is None:
            return self._consent(turn, patient=patient)
        evidence = exchange.evidence(turn.name, turn.number)
        if evidence is None or not isinstance(before.said, Consent):
            return None
        # The directory could give back another consent than ours; which grant it was is part of what we signed.
        verify_answer(before, owner_key=self.keys.public.hex(), manifest=turn.manifest, round_number=turn.number)
        with turn.telling(Part.RELEASE):
            return self._release(turn, evidence, before.said.grant.id)

    def _consent(self, turn: _Turn, *, patient: bool) -> Event | None:
        # The coordinator may come to need another guest, or not: whether it could have one is said beforehand.
        again = turn.number > 1
        try:
            kept = self._choose(turn.manifest)
        except ConsentError as error:
            if again or not patient:
                turn.put(Part.CONSENT, _line(error.message))
            if again:
                return None
            raise
        turn.put(Part.CONSENT, Consent(nonce=kept.nonce(turn.manifest, turn.number), grant=kept.grant))
        return turn.event(kept.grant.id)

    def _release(self, turn: _Turn, evidence: Evidence, grant: str) -> Event:
        # 1. The guest: genuine, fresh for our own nonce, launched for this manifest, and accepted by our own policy.
        consented = next((kept for kept in load_grants(self.settings) if kept.grant.id == grant), None)
        if consented is None:
            raise FreshnessError(f"grant {grant[:8]} was revoked")
        guest = self._judge(turn.manifest, evidence, consented.given_nonce(turn.manifest, turn.number))
        # 2. The grant, still, and for this guest. The use is on the disk before anything is sealed.
        boot = evidence.hpke_key.hex()
        self._choose(turn.manifest, consented, boot=boot).use(boot)
        # 3. Our own packs, and nothing else.
        packs = packs_of(turn.manifest, self.keys.public.hex())
        released = Secrets(packs={pack.root_hash: self.keys.pack_passphrase(pack.luks_uuid) for pack in packs})
        turn.put(Part.RELEASE, seal(guest, released, manifest=turn.manifest))
        return turn.event(grant, guest)

    def _choose(self, manifest: JobManifest, kept: KeptGrant | None = None, *, boot: str | None = None) -> KeptGrant:
        grants = load_grants(self.settings) if kept is None else [kept]
        uses = [(item.grant, item.used()) for item in grants]
        chosen = choose_grant(uses, manifest, at=datetime.now(UTC), boot=boot)
        return next(item for item in grants if item.grant == chosen)

    def _judge(self, manifest: JobManifest, evidence: Evidence, nonce: bytes) -> VerifiedGuest:
        policy, at = self.policy_of(manifest), datetime.now(UTC)
        host_data = manifest.host_data
        try:
            return judge_evidence(evidence, policy=policy, nonce=nonce, host_data=host_data, at=at)
        except CvmError as error:
            folder = private_dir(self.settings.cases_dir)
            case = save_case(
                folder, evidence=evidence, policy=policy, nonce=nonce, host_data=host_data, at=at, error=error
            )
            error.hint = "; ".join(filter(None, (error.hint, f"decide it again: cvmtool attest replay {case}")))
            raise


def refuse(keys: OwnerKeys, exchange: Exchange, pooled: PooledJob, reason: str) -> None:
    """Say no to a job, in words that the coordinator shows.

    Raises:
        ConfigError: the job is nothing of ours, or was answered already.
    """
    turn = _turn(keys, exchange, pooled)
    if exchange.answer(turn.name, turn.number, Part.CONSENT) is not None:
        raise ConfigError(f"job {exchange.id} has your answer already", hint="cvmtool party revoke ID ends a grant")
    turn.put(Part.CONSENT, _line(reason))


def jobs_for(keys: OwnerKeys, folder: Path) -> list[tuple[Exchange, PooledJob]]:
    """Return the jobs in an exchange directory that are not over and want packs of this owner's.

    Raises:
        ConfigError: the directory cannot be read.
    """
    own = keys.public.hex()
    return [item for item in open_exchanges(folder) if own in item[1].names.values()]


def find_job(keys: OwnerKeys, folder: Path, beginning: str = "") -> tuple[Exchange, PooledJob]:
    """Return the one job for this owner whose id begins so.

    Raises:
        ConfigError: there is none, or there are several.
    """
    found = [item for item in jobs_for(keys, folder) if item[0].id.startswith(beginning)]
    if len(found) != 1:
        ids = ", ".join(exchange.id for exchange, _ in found)
        raise ConfigError(
            f"{folder} has {len(found)} jobs for your key {keys.public.hex()[:16]}...; 1 is required",
            hint=f"name one with --job: {ids}" if found else "cvmtool train --exchange leaves one there while it waits",
        )
    return found[0]


def answer(party: Party, folder: Path, *, told: Callable[[Event], None]) -> None:
    """Answer the jobs in an exchange directory, until one of them got its release.

    Raises:
        CvmError: as `Party.step`: the first refusal ends it.
    """
    while True:
        for exchange, pooled in jobs_for(party.keys, folder):
            event = party.step(exchange, pooled)
            if event is not None:
                told(event)
                if event.guest is not None:
                    return
        time.sleep(_LOOK_SECONDS)


def watch(
    party: Party, folder: Path, *, told: Callable[[Event], None], refused: Callable[[PooledJob, CvmError], None]
) -> None:
    """Answer the jobs in an exchange directory for ever. One that no grant allows is left for its owner to grant or refuse.

    `refused` gets each reason why something was not done, once.
    """
    known: set[tuple[str, str, tuple[str, ...]]] = set()
    while True:
        for exchange, pooled in jobs_for(party.keys, folder):
            try:
                event = party.step(exchange, pooled, patient=True)
            except CvmError as error:
                codes = tuple(finding.code for finding in getattr(error, "findings", ()))
                reason = (exchange.id, type(error).__name__, codes)
                if reason not in known:
                    known.add(reason)
                    refused(pooled, error)
                continue
            if event is not None:
                told(event)
        time.sleep(_LOOK_SECONDS)


def _turn(keys: OwnerKeys, exchange: Exchange, pooled: PooledJob) -> _Turn:
    """Return where a job is for this owner: in the round of the latest evidence that got no answer yet, or in a new one."""
    own = keys.public.hex()
    packs_of(pooled.manifest, own)
    name = next(name for name, key in pooled.names.items() if key == own)
    latest = exchange.round_without(name, Part.EVIDENCE) - 1
    answered = latest == 0 or exchange.answer(name, latest, Part.RELEASE) is not None
    return _Turn(exchange=exchange, manifest=pooled.manifest, name=name, number=latest + answered, keys=keys)


def _line(reason: str) -> str:
    """Return words as an answer may have them: one short line."""
    return "".join(char if char.isprintable() else " " for char in reason)[:MAX_TEXT].strip() or "refused"
