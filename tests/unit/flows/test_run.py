# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Keys released to the real guest code, whose operations are called without a connection."""

from datetime import UTC, datetime

import pytest

from cvmtool.errors import HostError
from cvmtool.flows.attach import Attached
from cvmtool.flows.run import configure, release_keys
from cvmtool.formats.channel import find_last_open
from cvmtool.formats.control import ControlError, Op, Stage
from cvmtool.guest.control import ControlService
from cvmtool.guest.refusal import RefusedError
from cvmtool.host.channel import GuestError
from tests.fakes.guest import OWNER, FakeGuest


class Channel:
    """Passes operations on to a guest of this process; `breaks`: at those the connection breaks before the answer arrives."""

    def __init__(self, guest):
        self._service = ControlService(guest.life, pytest.fail, address=("127.0.0.1", 0))
        self.breaks = set()

    def request(self, op, **fields):
        try:
            answer, _ = self._service._do(op, {"op": op.value, **fields})
        except RefusedError as error:
            raise GuestError(op, error.error, error.message, pack=None) from error
        if op in self.breaks:
            raise HostError("the connection broke")
        return answer


@pytest.fixture
def guest(tmp_path):
    return FakeGuest(tmp_path / "guest")


def attach(guest, nonce):
    session = guest.session(nonce)
    evidence = guest.answer(find_last_open(session.challenge())[0])
    return Attached(
        guest=session.judge(evidence, datetime.now(UTC)), evidence=evidence, nonce=nonce, channel=Channel(guest)
    )


def test_keys_that_arrived_before_the_connection_broke_need_not_arrive_again(guest):
    first = attach(guest, b"1" * 32)
    configure(first, guest.manifest)
    first.channel.breaks = {Op.RELEASE}
    with pytest.raises(HostError, match="the connection broke"):
        release_keys(first, OWNER, guest.manifest)
    opened = dict(guest.opened)
    assert len(opened) == len(guest.manifest.packs)
    release_keys(attach(guest, b"2" * 32), OWNER, guest.manifest)
    assert guest.life.status()["stage"] == Stage.UNLOCKED
    assert guest.opened == opened


def test_a_guest_that_is_not_ready_for_keys_says_so(guest):
    with pytest.raises(GuestError) as refusal:
        release_keys(attach(guest, b"1" * 32), OWNER, guest.manifest)
    assert refusal.value.error == ControlError.ORDER
