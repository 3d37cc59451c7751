# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats.wire import canonical_json
from cvmtool.owner.invitation import MAX_INVITATION, Invitation, parse_invitation
from tests import samples
from tests.unit.owner import test_policyfile

INVITATION = Invitation(
    machine="digits-1121-075307-0829",
    uri="qemu+ssh://lab.example/system",
    manifest=samples.ample_manifest(),
    policy=test_policyfile.BASE,
)
DOCUMENT = json.loads(INVITATION.encode())


def test_what_is_written_is_read():
    assert parse_invitation(INVITATION.encode()) == INVITATION


def test_whitespace_around_it_is_no_matter():
    assert parse_invitation(json.dumps(DOCUMENT, indent=1).encode() + b"\n") == INVITATION


@pytest.mark.parametrize("key", DOCUMENT)
def test_every_part_is_needed(key):
    with pytest.raises(FormatError, match=key):
        parse_invitation(canonical_json({name: value for name, value in DOCUMENT.items() if name != key}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema", "cvmtool/invitation/v2"),
        ("schema", 1),
        ("machine", 7),
        ("machine", "m" * 4097),
        ("uri", None),
        ("uri", "u" * 4097),
        ("manifest", "e30="),
        ("manifest", "no base64"),
        ("policy", "version = 99"),
        ("policy", {}),
        ("more", ""),
    ],
)
def test_what_is_wrong_is_named(key, value):
    with pytest.raises(FormatError, match="manifest" if value == "e30=" else key):
        parse_invitation(canonical_json({**DOCUMENT, key: value}))


def test_it_calls_itself_one():
    assert DOCUMENT["schema"] == "cvmtool/invitation/v1"


def test_names_of_4096_characters_are_the_longest():
    longest = replace(INVITATION, machine="m" * 4096, uri="u" * 4096)
    assert parse_invitation(longest.encode()) == longest


def test_it_has_a_size():
    assert MAX_INVITATION == 1_048_576
    with pytest.raises(FormatError, match=str(MAX_INVITATION)):
        parse_invitation(canonical_json({**DOCUMENT, "uri": "u" * MAX_INVITATION}))


@given(
    st.binary(max_size=200)
    | st.sampled_from(sorted(DOCUMENT)).flatmap(
        lambda key: st.one_of(st.none(), st.text(), st.integers(), st.lists(st.text())).map(
            lambda value: canonical_json({**DOCUMENT, key: value})
        )
    )
)
def test_anything_is_an_invitation_or_refused(data):
    with contextlib.suppress(FormatError):
        assert parse_invitation(parse_invitation(data).encode()) == parse_invitation(data)
