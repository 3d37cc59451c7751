# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A guest is asked over a real session; what it says is the test's."""

import queue
from contextlib import nullcontext

import pytest

from cvmtool.config import load_settings
from cvmtool.flows.prepare import load_keys
from cvmtool.flows.usage import USED, watching
from cvmtool.flows.visit import invite, visit
from cvmtool.formats.control import ControlError
from cvmtool.formats.jobterms import Access
from cvmtool.guest.refusal import RefusedError
from tests.fakes.running import PORT, running_job

NUMBERS = dict.fromkeys(USED, 5)


@pytest.fixture
def running(monkeypatch):
    with running_job(load_settings(), monkeypatch, access=Access(tunnels=(PORT,))) as running:
        yield running


@pytest.fixture
def channel(running, tmp_path):
    settings = load_settings()
    stage = lambda *_: nullcontext()  # noqa: E731
    with visit(invite(running.job, settings), load_keys(settings), settings, kept_in=tmp_path, stage=stage) as visited:
        yield visited.channel


def answers(running, *said):
    """Have the guest answer so, one after another; the last stays."""
    left = list(said)
    asked = queue.SimpleQueue()

    def usage():
        asked.put(None)
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    running.life.usage = usage
    return asked


def test_what_a_guest_says_is_told(running, channel):
    answers(running, NUMBERS)
    told = queue.SimpleQueue()
    with watching(channel, told.put, every_seconds=0.01):
        assert told.get(timeout=20) == told.get(timeout=20) == NUMBERS


def test_a_container_that_does_not_run_yet_is_asked_again(running, channel):
    answers(running, RefusedError(ControlError.ORDER, "not yet"), NUMBERS)
    told = queue.SimpleQueue()
    with watching(channel, told.put, every_seconds=0.01):
        assert told.get(timeout=20) == NUMBERS


@pytest.mark.parametrize(
    "said",
    [{}, {**NUMBERS, "memory_bytes": -1}, {**NUMBERS, "memory_bytes": "5"}, {**NUMBERS, "memory_bytes": 1 << 63}],
    ids=["nothing", "negative", "text", "too much"],
)
def test_numbers_that_are_none_are_not_told_and_end_nothing(running, channel, said):
    asked = answers(running, said)
    with watching(channel, pytest.fail, every_seconds=0.01):
        asked.get(timeout=20)


def test_nothing_is_asked_when_the_block_is_over(running, channel):
    asked = answers(running, NUMBERS)
    with watching(channel, lambda _: None, every_seconds=60):
        pass
    assert asked.empty()
