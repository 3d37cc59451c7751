# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import json

import pytest
from hypothesis import given

from cvmtool.errors import FormatError
from cvmtool.formats.egress import Egress, Flow, parse_egress
from cvmtool.formats.jobterms import Destination
from tests.samples import changed_json
from tests.unit.formats.test_wire import JSON

FLOWS = (
    Flow(
        destination=Destination(host="192.0.2.1", port=8080, addresses=("192.0.2.1",), tls=False),
        connections=0,
        sent=0,
        received=0,
    ),
    Flow(
        destination=Destination(host="a.example", port=443, addresses=("192.0.2.1", "2001:db8::1"), tls=True),
        connections=2,
        sent=1_000,
        received=1 << 40,
    ),
)
EGRESS = Egress(flows=FLOWS, turned_away=3)


def test_it_round_trips():
    assert parse_egress(EGRESS.to_json()) == EGRESS


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("turnedAway",), -1, "turnedAway"),
        (("turnedAway",), True, "turnedAway"),
        (("other",), 1, "unknown"),
        (("destinations",), [], "empty"),
        (("destinations",), [1], "something else"),
        (("destinations", 0, "sent"), -1, "sent"),
        (("destinations", 0, "sent"), "1", "sent"),
        (("destinations", 0, "lost"), 1, "unknown"),
        (("destinations", 1, "host"), "192.0.2.0", "ascending"),
    ],
)
def test_what_does_not_fit_is_refused(path, value, said):
    with pytest.raises(FormatError) as refused:
        parse_egress(json.loads(changed_json(EGRESS.to_json(), path, value)))
    assert said in refused.value.message


@given(JSON)
def test_any_json_gives_a_value_or_a_refusal(value):
    try:
        parse_egress(value)
    except FormatError:
        return
