# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cvmtool.errors import FormatError, FreshnessError
from cvmtool.formats.release import MAX_ACCEPTED
from cvmtool.formats.volume import Epoch
from cvmtool.formats.wire import canonical_json
from cvmtool.owner.epochs import History, parse_history

KEY = b"k" * 32


def mark(index):
    return index.to_bytes(32, "big")


def test_a_volume_that_was_never_opened_may_be_blank():
    secret = History().begin(mark(1)).secret(KEY)
    assert (secret.passphrase, secret.blank, secret.accept) == (KEY, True, ())
    assert secret.next == Epoch(counter=1, mark=mark(1).hex())


def test_the_acknowledged_state_alone_is_taken():
    history = History().begin(mark(1)).acknowledge()
    secret = history.begin(mark(2)).secret(KEY)
    assert (secret.blank, secret.accept) == (False, (Epoch(counter=1, mark=mark(1).hex()),))
    assert secret.next == Epoch(counter=2, mark=mark(2).hex())


def test_a_state_that_was_begun_and_never_heard_of_is_taken_as_well():
    history = History().begin(mark(1)).acknowledge().begin(mark(2)).begin(mark(3))
    secret = history.begin(mark(4)).secret(KEY)
    assert [epoch.counter for epoch in secret.accept] == [1, 2, 3]
    assert secret.next.counter == 4
    assert history.begin(mark(4)).acknowledge() == History(acknowledged=secret.next)


def test_nobody_guesses_among_endless_states():
    history = History()
    for index in range(MAX_ACCEPTED):
        history = history.begin(mark(index))
    with pytest.raises(FreshnessError):
        history.begin(mark(99))


@pytest.mark.parametrize(
    "call",
    [
        lambda: History().acknowledge(),
        lambda: History().withdraw(),
        lambda: History().secret(KEY),
        lambda: History().begin(b"x"),
    ],
)
def test_misuse(call):
    with pytest.raises(ValueError, match=r"begun|32"):
        call()


EPOCHS = st.builds(Epoch, counter=st.integers(1, 1 << 40), mark=st.binary(min_size=32, max_size=32).map(bytes.hex))


@given(st.none() | EPOCHS, st.lists(EPOCHS, max_size=MAX_ACCEPTED).map(tuple))
def test_a_history_round_trips(acknowledged, begun):
    history = History(acknowledged=acknowledged, begun=begun)
    assert parse_history(history.encode()) == history


def test_a_history_of_all_that_may_be_begun():
    history = History(begun=tuple(Epoch(counter=1, mark=mark(1).hex()) for _ in range(MAX_ACCEPTED)))
    assert parse_history(history.encode()) == history


@given(st.binary(max_size=200) | st.dictionaries(st.text(), st.text()).map(canonical_json))
def test_any_bytes_are_a_history_or_a_format_error(data):
    with contextlib.suppress(FormatError):
        assert parse_history(data).encode() == data


VALUE = json.loads(History().begin(mark(1)).encode())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema", "cvmtool/volume-history/v2"),
        ("acknowledged", 1),
        ("begun", {}),
        ("begun", VALUE["begun"] * 17),
        ("more", 1),
    ],
)
def test_any_other_form_is_refused(key, value):
    with pytest.raises(FormatError):
        parse_history(canonical_json({**VALUE, key: value}))


class Volume(RuleBasedStateMachine):
    """An owner, guests that crash where they like, and a host that keeps every state a disk was ever in.

    What must hold: the host can always get the newest state accepted (nothing honest is locked out), and never one from before
    the last acknowledgement, whatever it kept.
    """

    def __init__(self):
        super().__init__()
        self.history, self.disk, self.kept, self.steps = History(), None, [None], 0
        self.outdated = []

    @rule(outcome=st.sampled_from(["never sent", "lost", "written", "acknowledged"]), choice=st.integers(0, 99))
    def open_or_commit(self, outcome, choice):
        if len(self.history.begun) == MAX_ACCEPTED:
            with pytest.raises(FreshnessError):
                self.history.begin(mark(0))
            return
        self.steps += 1
        self.history = self.history.begin(mark(self.steps))
        secret = self.history.secret(KEY)
        shown = self.kept[choice % len(self.kept)]  # the host may show any disk that it ever had
        taken = secret.blank if shown is None else shown in secret.accept
        assert not (taken and shown in self.outdated)
        if not taken or outcome == "never sent":
            self.history = self.history.withdraw()
        elif outcome != "lost":
            self.disk = secret.next
            self.kept.append(self.disk)
            if outcome == "acknowledged":
                self.outdated = [state for state in self.kept if state != self.disk]
                self.history = self.history.acknowledge()

    @invariant()
    def the_newest_state_is_taken(self):
        if len(self.history.begun) < MAX_ACCEPTED:
            secret = self.history.begin(mark(0)).secret(KEY)
            assert secret.blank if self.disk is None else self.disk in secret.accept


TestVolume = Volume.TestCase
