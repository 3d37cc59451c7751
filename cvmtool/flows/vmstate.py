# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The state of a machine, in one function of all that is known of it.

Zone: flows. Pure.

Three sources, of unlike worth: what the owner's own record says was done and proven in this launch; what the agent says in an
attested session; what the host says, which is a claim. A host that lies can make a machine look alive, or dead; it cannot make
it attested, unlocked or ready.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cvmtool.formats.control import Stage


class Milestone(StrEnum):
    """How far the owner came with one launch, by the owner's record."""

    DEFINED = "defined"
    """Not started yet, or stopped by its owner."""
    STARTED = "started"
    REFUSED = "refused"
    """The measured boot was refused: firmware or guest do not take what the host gave them."""
    ATTESTED = "attested"
    UNLOCKED = "unlocked"
    RUNNING = "running"
    DONE = "done"


class Claim(StrEnum):
    """What the host says of the domain."""

    RUNNING = "running"
    PAUSED = "paused"
    NO_ROOM = "no-room"
    """Paused: a disk of the host is full, or failed."""
    STOPPED = "stopped"
    CRASHED = "crashed"
    UNKNOWN = "unknown"
    """The host answers, and has no such domain."""
    SILENT = "silent"
    """The host does not answer."""
    UNASKED = "unasked"
    """libvirt runs inside one process of the owner's at a time, and was not asked; QEMU lives."""


class VmState(StrEnum):
    """The state of a machine."""

    DEFINED = "defined"
    STARTING = "starting"
    REFUSED = "refused-by-firmware"
    BOOTED = "booted"
    """The guest's agent is up, by the console. Nothing is proven."""
    ATTESTED = "attested"
    UNLOCKED = "unlocked"
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    LOST = "lost"
    """The owner's record has it; its host does not answer, or does not know it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A machine's state, and what speaks for it."""

    state: VmState
    ready: bool
    """The agent has just answered in an attested session, and holds what it needs."""
    evidence: str
    """One sentence."""


_WORDS_BOOTED = "CVM-STAGE agent"
_WORDS_FAILED = "CVM-FAIL"
_OF_AGENT = {
    Stage.WAITING: VmState.ATTESTED,
    Stage.CONFIGURED: VmState.ATTESTED,
    Stage.UNLOCKED: VmState.UNLOCKED,
    Stage.RUNNING: VmState.RUNNING,
    Stage.DONE: VmState.DONE,
}
_OF_MILESTONE = {
    Milestone.ATTESTED: VmState.ATTESTED,
    Milestone.UNLOCKED: VmState.UNLOCKED,
    Milestone.RUNNING: VmState.RUNNING,
    Milestone.DONE: VmState.DONE,
}


def standing(milestone: Milestone, claim: Claim, console: tuple[str, ...], agent: Stage | None) -> Standing:
    """Return a machine's state.

    Args:
        milestone: of the owner's record, for the running launch or the last.
        claim: what the host says.
        console: the stage words on its console: the host's claim as well.
        agent: what the agent has just said in an attested session; None if it was not asked or did not answer.
    """
    if agent is not None:
        ready = agent not in {Stage.WAITING, Stage.CONFIGURED}
        return Standing(
            state=_OF_AGENT[agent], ready=ready, evidence=f"its agent, attested just now, says {agent.value}"
        )
    if claim in {Claim.RUNNING, Claim.UNASKED}:
        return _alive(milestone, claim, console)
    if claim is Claim.PAUSED:
        return _not_ready(VmState.PAUSED, "somebody on its host paused it")
    if claim is Claim.NO_ROOM:
        return _not_ready(VmState.PAUSED, "a disk of its host is full, or failed")
    if milestone is Milestone.REFUSED:
        return _not_ready(VmState.REFUSED, "the measured boot was refused")
    if claim is Claim.SILENT:
        return _not_ready(VmState.LOST, "its host does not answer")
    if milestone is Milestone.DONE:
        return _not_ready(VmState.DONE, "its work was done, and brought home")
    if claim is Claim.UNKNOWN:
        return _not_ready(VmState.LOST, "its host does not know it")
    if claim is Claim.CRASHED:
        return _not_ready(VmState.FAILED, "QEMU was killed, or crashed")
    return _stopped(milestone, console)


def _alive(milestone: Milestone, claim: Claim, console: tuple[str, ...]) -> Standing:
    says = "its host says it runs" if claim is Claim.RUNNING else "its QEMU runs"
    if milestone is Milestone.REFUSED:
        return _not_ready(VmState.REFUSED, f"the measured boot was refused; {says}")
    if milestone in _OF_MILESTONE:
        return _not_ready(_OF_MILESTONE[milestone], f"the owner's record; {says}; its agent was not asked")
    failed = [word for word in console if word.startswith(_WORDS_FAILED)]
    if failed:
        return _not_ready(VmState.FAILED, f"its console says {failed[-1]}")
    if _WORDS_BOOTED in console:
        return _not_ready(VmState.BOOTED, f"its console says {_WORDS_BOOTED}; nothing is proven")
    return _not_ready(VmState.STARTING, f"{says}; its agent is not up yet")


def _stopped(milestone: Milestone, console: tuple[str, ...]) -> Standing:
    if milestone is Milestone.DEFINED:
        return _not_ready(VmState.DEFINED, "it is defined, and does not run")
    failed = [word for word in console if word.startswith(_WORDS_FAILED)]
    if failed or milestone is Milestone.STARTED:
        return _not_ready(VmState.FAILED, f"it stopped while booting, after {console[-1] if console else 'no word'}")
    return _not_ready(VmState.DONE, "it powered itself off, or its host stopped it")


def _not_ready(state: VmState, evidence: str) -> Standing:
    return Standing(state=state, ready=False, evidence=evidence)
