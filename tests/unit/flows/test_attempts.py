# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
from contextlib import suppress
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.flows.attempts import Attempt, SessionNote, parse_attempts

ATTEMPT = Attempt(
    started="2026-11-21T00:00:00+00:00",
    sessions=[SessionNote(nonce="0a" * 32, boot="0b" * 32, released=True)],
    ended="2026-11-21T00:01:00+00:00",
    cause="QEMU was killed, or crashed",
)
SESSION = asdict(ATTEMPT.sessions[0])


def test_attempts_are_read_as_they_were_written():
    assert parse_attempts([asdict(ATTEMPT), asdict(Attempt(started="now"))]) == [ATTEMPT, Attempt(started="now")]


@pytest.mark.parametrize(
    "change",
    [
        {"started": None},
        {"started": 5},
        {"sessions": None},
        {"sessions": {}},
        {"sessions": [[]]},
        {"sessions": [{**SESSION, "nonce": 5}]},
        {"sessions": [{**SESSION, "released": "yes"}]},
        {"sessions": [{**SESSION, "more": 1}]},
        {"sessions": [{"nonce": "0a"}]},
        {"cause": 5},
        {"more": 1},
    ],
)
def test_an_attempt_out_of_shape_is_refused(change):
    value = {**asdict(ATTEMPT), **change}
    if change.get("started", "") is None:
        del value["started"]
    with pytest.raises(FormatError):
        parse_attempts([value])


@given(
    st.recursive(
        st.none() | st.booleans() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_any_value_is_attempts_or_refused(value):
    with suppress(FormatError):
        assert all(isinstance(item, Attempt) for item in parse_attempts(value))
