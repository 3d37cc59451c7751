# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest

from cvmtool.flows.vmstate import Claim, Milestone, VmState, standing
from cvmtool.formats.control import Stage

ALIVE = (Claim.RUNNING, Claim.UNASKED)
CONSOLES = ((), ("CVM-STAGE initrd",), ("CVM-STAGE initrd", "CVM-STAGE agent"), ("CVM-STAGE initrd", "CVM-FAIL verity"))
EVERYTHING = tuple(itertools.product(Milestone, Claim, CONSOLES, (None, *Stage)))
PROVEN = {Milestone.ATTESTED, Milestone.UNLOCKED, Milestone.RUNNING, Milestone.DONE}


def test_what_a_host_says_never_proves_anything():
    """Attested, unlocked, running, ready: by the agent's own word in an attested session, or by the owner's record."""
    for milestone, claim, console, agent in EVERYTHING:
        found = standing(milestone, claim, console, agent)
        if found.ready:
            assert agent is not None
        if found.state in {VmState.ATTESTED, VmState.UNLOCKED, VmState.RUNNING}:
            assert agent is not None or milestone in PROVEN
        assert found.evidence


@pytest.mark.parametrize(
    ("agent", "state", "ready"),
    [
        (Stage.WAITING, VmState.ATTESTED, False),
        (Stage.CONFIGURED, VmState.ATTESTED, False),
        (Stage.UNLOCKED, VmState.UNLOCKED, True),
        (Stage.RUNNING, VmState.RUNNING, True),
        (Stage.DONE, VmState.DONE, True),
    ],
)
@pytest.mark.parametrize("claim", Claim)
@pytest.mark.parametrize("milestone", Milestone)
def test_an_attested_agent_is_believed_whatever_the_host_says(milestone, claim, agent, state, ready):
    found = standing(milestone, claim, (), agent)
    assert (found.state, found.ready) == (state, ready)


BY_RECORD_AND_HOST = {
    (Milestone.DEFINED, Claim.STOPPED): VmState.DEFINED,
    (Milestone.DEFINED, Claim.RUNNING): VmState.STARTING,  # somebody on the host started it
    (Milestone.STARTED, Claim.RUNNING): VmState.STARTING,
    (Milestone.STARTED, Claim.STOPPED): VmState.FAILED,
    (Milestone.REFUSED, Claim.RUNNING): VmState.REFUSED,
    (Milestone.REFUSED, Claim.STOPPED): VmState.REFUSED,
    (Milestone.REFUSED, Claim.SILENT): VmState.REFUSED,
    (Milestone.ATTESTED, Claim.RUNNING): VmState.ATTESTED,
    (Milestone.ATTESTED, Claim.STOPPED): VmState.DONE,
    (Milestone.UNLOCKED, Claim.RUNNING): VmState.UNLOCKED,
    (Milestone.RUNNING, Claim.RUNNING): VmState.RUNNING,
    (Milestone.RUNNING, Claim.CRASHED): VmState.FAILED,
    (Milestone.RUNNING, Claim.UNKNOWN): VmState.LOST,
    (Milestone.DONE, Claim.UNKNOWN): VmState.DONE,
    (Milestone.DONE, Claim.STOPPED): VmState.DONE,
}


@pytest.mark.parametrize(("known", "state"), BY_RECORD_AND_HOST.items())
def test_record_and_host_together(known, state):
    assert standing(*known, (), None).state is state


@pytest.mark.parametrize("milestone", [item for item in Milestone if item is not Milestone.REFUSED])
@pytest.mark.parametrize(
    ("claim", "state"),
    [(Claim.SILENT, VmState.LOST), (Claim.PAUSED, VmState.PAUSED), (Claim.NO_ROOM, VmState.PAUSED)],
)
def test_what_hides_everything_else(milestone, claim, state):
    assert standing(milestone, claim, (), None).state is state


@pytest.mark.parametrize("claim", ALIVE)
@pytest.mark.parametrize(
    ("console", "state"),
    list(zip(CONSOLES, (VmState.STARTING, VmState.STARTING, VmState.BOOTED, VmState.FAILED), strict=True)),
)
def test_a_boot_is_followed_on_its_console(claim, console, state):
    assert standing(Milestone.STARTED, claim, console, None).state is state


def test_a_guest_that_failed_is_no_finished_one():
    assert standing(Milestone.ATTESTED, Claim.STOPPED, ("CVM-FAIL agent",), None).state is VmState.FAILED
