# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A job of three owners, each with a state directory of its own: the coordinator's container, a clinic's and a ward's data.

The guest is the real one on a simulated launch, without a machine; packs are files of the right size that nobody opens.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cvmtool.config import Settings, load_settings
from cvmtool.flows.consents import Consents
from cvmtool.flows.exchange import Exchange, exchange_of
from cvmtool.flows.grants import KeptGrant, give_grant
from cvmtool.flows.jobs import JobDir
from cvmtool.flows.packfile import write_header
from cvmtool.flows.party import Party
from cvmtool.flows.prepare import load_keys
from cvmtool.formats.channel import Open
from cvmtool.formats.evidence import Evidence
from cvmtool.formats.exchange import PooledJob
from cvmtool.formats.job import JobManifest
from cvmtool.formats.pack import Role
from cvmtool.formats.packheader import Action, Content, ContentKind, Metadata, Step
from cvmtool.formats.parties import Party as Named
from cvmtool.formats.release import Secrets
from cvmtool.owner.grants import Terms
from cvmtool.owner.seal import seal
from tests.fakes.guest import OWNER, FakeGuest
from tests.samples import DIGEST, pack, pooled_manifest

WEEK = timedelta(days=7)
UUIDS = {name: f"{number}1234567-89ab-cdef-0123-456789abcdef" for number, name in enumerate(("clinic", "ward"), 1)}


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A party with its one pack."""

    party: Party
    pack: Path

    @property
    def settings(self) -> Settings:
        return self.party.settings

    def grant(
        self, manifest: JobManifest, *, uses: int = 1, lasts: timedelta = WEEK, any_manifest: bool = False
    ) -> KeptGrant:
        terms = Terms(expires=datetime.now(UTC) + lasts, uses=uses, any_manifest=any_manifest)
        return give_grant(manifest, [self.pack], terms, settings=self.settings, keys=self.party.keys)

    @property
    def passphrase(self) -> bytes:
        return self.party.keys.pack_passphrase(UUIDS[self.pack.stem])


class Pool:
    """The coordinator with its guest, and the parties."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.guest: FakeGuest | None = None
        self.owners = {name: self._owner(name) for name in UUIDS}
        self.manifest = self.manifest_of()
        self.job = JobDir.create(folder / "coordinator" / "jobs", "pooled", simulated=True)
        self.said: list[str] = []

    def manifest_of(self, **changes) -> JobManifest:
        parties = (Named(owner_key=owner.party.keys.public.hex(), packs=(name,)) for name, owner in self.owners.items())
        base = pooled_manifest(
            owner_key=OWNER.public.hex(),
            packs=(pack("container", Role.CONTAINER), *(pack(name, luks_uuid=uuid) for name, uuid in UUIDS.items())),
            parties=tuple(sorted(parties, key=lambda party: party.owner_key)),
        )
        return replace(base, **changes)

    @property
    def pooled(self) -> PooledJob:
        names = {name: owner.party.keys.public.hex() for name, owner in self.owners.items()}
        return PooledJob(manifest=self.manifest, names=names)

    @property
    def exchange(self) -> Exchange:
        return exchange_of(self.folder / "exchange", self.manifest)

    @property
    def consents(self) -> Consents:
        return Consents(exchange=self.exchange, pooled=self.pooled, job=self.job, step=self.said.append)

    def step(self, name: str, **more):
        return self.owners[name].party.step(self.exchange, self.pooled, **more)

    def boot(self, manifest: JobManifest | None = None) -> FakeGuest:
        launched = manifest or self.manifest
        self.guest = FakeGuest(self.folder / f"guest-{secrets.token_hex(4)}", launched)
        self.show(b"c" * 32, launched)
        self.guest.life.configure(launched.encode(), certificates=b"")
        return self.guest

    def show(self, nonce: bytes, manifest: JobManifest | None = None) -> Evidence:
        """What the guest answers to that nonce."""
        assert self.guest is not None
        launched = manifest or self.manifest
        return self.guest.answer(Open(nonce=nonce, owner_key=OWNER.public, manifest_sha256=launched.sha256))

    def release_own(self) -> None:
        """Release the coordinator's own container."""
        assert self.guest is not None
        session = self.guest.session(b"c" * 32)
        session.challenge()
        verified = session.judge(self.show(b"c" * 32), datetime.now(UTC))
        own = {pack.root_hash: OWNER.pack_passphrase(pack.luks_uuid) for pack in self.manifest.own_packs}
        self.guest.life.release(seal(verified, Secrets(packs=own), manifest=self.manifest))

    def _owner(self, name: str) -> Owner:
        state = self.folder / name
        state.mkdir(mode=0o700)
        settings = replace(load_settings(), state_dir=state)
        keys = load_keys(settings)
        descriptor = pack("mine", luks_uuid=UUIDS[name], root_hash=pack(name).root_hash)
        path = state / f"{name}.pack"
        with path.open("wb") as file:
            file.truncate(descriptor.size)
        content = Content(kind=ContentKind.TREE, digest=DIGEST)
        step = Step(action=Action.PACKED, at="2026-11-21T02:27:02Z", by="cvmtool 1")
        write_header(path, descriptor, content, Metadata(), (step,), keys=keys)
        return Owner(party=Party(keys=keys, settings=settings, policy_of=self._policy), pack=path)

    def _policy(self, manifest: JobManifest):
        assert self.guest is not None
        return self.guest.policy(host_data=frozenset({manifest.host_data}))


def everything_below(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())
