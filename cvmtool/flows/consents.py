# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The coordinator's side of a job of several owners: who consents, what the guest shows each of them, and what they release.

Zone: flows (the coordinator's machine). What a party seals is for the guest alone; here it is only carried.
Spec: docs/protocol.md section 16.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from cvmtool.errors import ConfigError, Finding, VerificationError
from cvmtool.flows.exchange import Exchange, Part
from cvmtool.flows.jobs import JobDir
from cvmtool.formats.evidence import Evidence
from cvmtool.formats.exchange import Answer, Consent, PooledJob
from cvmtool.formats.grant import encode_grant
from cvmtool.owner.grants import ConsentError, judge_grant, verify_answer, verify_grant
from cvmtool.owner.jobfile import JobFile

GRANT_FILE = "grant-{}.json"
"""In a job's directory: what a party consented with."""
CONSENT_SECONDS = 7 * 86_400.0
"""For people to look at a job. Nothing runs meanwhile."""
RELEASE_SECONDS = 3_600.0
"""For a party to look at the guest, which runs meanwhile."""
_LOOK_SECONDS = 0.3
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A party whose packs are closed, in a round for which it gave a nonce."""

    name: str
    number: int
    nonce: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Consents:
    """The parties of one run."""

    exchange: Exchange
    pooled: PooledJob
    job: JobDir
    """Keeps their grants."""
    step: Callable[[str], None]
    """Is told who is waited for."""

    def ask(self) -> None:
        """Ask every party, and wait until each has consented; before any machine is started.

        Raises:
            ConsentError: one refused: who, and why.
            FormatError, VerificationError: an answer is not the party's.
            ConfigError: the exchange cannot be read or written.
        """
        self.exchange.publish(self.pooled)
        names = sorted(self.pooled.names)
        self.step(f"waiting for the consent of {', '.join(names)} in {self.exchange.folder}")
        self._await(names, CONSENT_SECONDS, self._consented)

    def close(self) -> None:
        """Tell the parties that the run has ended."""
        with suppress(ConfigError):  # they notice when they wait in vain
            self.exchange.close()

    def turns(self, closed: Collection[str]) -> Iterator[Turn]:
        """Yield the parties whose packs are among those closed, each once it has given its nonce.

        Raises:
            ConsentError, FormatError, VerificationError, ConfigError: as `ask`.
        """
        owners = {party.owner_key for party in self.pooled.manifest.parties if set(party.packs) & set(closed)}
        for name in sorted(name for name, key in self.pooled.names.items() if key in owners):
            number = self.exchange.round_without(name, Part.EVIDENCE)
            self.step(f"waiting for the nonce of {name}")
            consent = self._await([name], CONSENT_SECONDS, self._consented)[name]
            yield Turn(name=name, number=number, nonce=consent.nonce)

    def release(self, turn: Turn, evidence: Evidence) -> bytes:
        """Show a party what the guest showed for its nonce; return what it sealed to the guest.

        Raises:
            ConsentError: it refused: why.
            FormatError, VerificationError: the answer is not the party's.
            ConfigError: the exchange cannot be read or written.
        """
        self.exchange.put_evidence(turn.name, turn.number, evidence)
        self.step(f"{turn.name} looks at the guest")

        def released(name: str) -> bytes | None:
            answer = self._answer(name, turn.number, Part.RELEASE)
            if answer is not None and not isinstance(answer.said, bytes):
                raise VerificationError(f"{name} released nothing: its answer is another one's")
            return answer.said if answer is not None and isinstance(answer.said, bytes) else None

        return self._await([turn.name], RELEASE_SECONDS, released)[turn.name]

    def _consented(self, name: str) -> Consent | None:
        """Return a party's consent in its current round, its grant verified and kept; None if it said nothing yet."""
        answer = self._answer(name, self.exchange.round_without(name, Part.EVIDENCE), Part.CONSENT)
        if answer is None:
            return None
        consent, manifest = answer.said, self.pooled.manifest
        if not isinstance(consent, Consent) or consent.grant.owner_key != answer.owner_key:
            raise VerificationError(f"{name} consents with no grant of its own")
        verify_grant(consent.grant)
        # How often it was used is the party's to count. Whatever else it says holds for everybody, the recipients above all.
        findings = judge_grant(consent.grant, manifest, at=datetime.now(UTC))
        if findings:
            raise ConsentError(f"the grant of {name} does not allow this job", findings=findings)
        self.job.write(GRANT_FILE.format(name), encode_grant(consent.grant))
        return consent

    def _answer(self, name: str, number: int, part: Part) -> Answer | None:
        answer = self.exchange.answer(name, number, part)
        if answer is None:
            return None
        verify_answer(answer, owner_key=self.pooled.names[name], manifest=self.pooled.manifest, round_number=number)
        if isinstance(answer.said, str):
            raise _refusal(name, answer.said, "consent")
        return answer

    def _await(self, names: Collection[str], seconds: float, look: Callable[[str], Found | None]) -> dict[str, Found]:
        """Look until something is found for every name."""
        end, found = time.monotonic() + seconds, dict[str, Found]()
        while True:
            for name in names:
                if name not in found and (item := look(name)) is not None:
                    found[name] = item
                    self.step(f"{name} answered")
            missing = [name for name in names if name not in found]
            if not missing:
                return found
            if time.monotonic() > end:
                raise _refusal(", ".join(missing), f"no answer for {seconds:.0f} s", "an answer")
            time.sleep(_LOOK_SECONDS)


def require_exchange(job: JobFile, folder: Path | None) -> None:
    """Check that a job of several owners, and no other, has a directory where they meet.

    Raises:
        ConfigError: it has none, or it has one and needs none.
    """
    if (folder is None) == bool(job.parties):
        raise ConfigError(
            f"job {job.name} has {len(job.parties)} parties, and the exchange directory is {folder or 'missing'}",
            hint="parties: in the job file and --exchange DIR go together",
        )


def _refusal(name: str, said: str, required: str) -> ConsentError:
    return ConsentError(
        f"{name} refuses: {said}",
        findings=(
            Finding(
                code="party-refused",
                field=f"party {name}",
                actual=said,
                required=required,
                why="a job of several owners runs if each of them lets it",
            ),
        ),
        hint=f"settle it with {name}, then run the job again",
    )
