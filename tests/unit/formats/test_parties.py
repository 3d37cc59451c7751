# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats.job import parse_job_manifest
from cvmtool.formats.parties import parse_parties
from cvmtool.formats.wire import canonical_json
from tests.samples import ample_manifest, changed_json, pooled_manifest
from tests.unit.formats.test_wire import JSON

POOLED = json.loads(pooled_manifest().encode())
AMPLE = json.loads(ample_manifest().encode())


def test_a_job_of_several_owners_round_trips_and_knows_whose_each_pack_is():
    job = pooled_manifest()
    assert parse_job_manifest(job.encode()) == job
    assert [pack.name for pack in job.own_packs] == ["container"]
    assert [pack.name for pack in pooled_manifest(parties=()).own_packs] == ["container", "clinic", "ward"]


def test_who_the_parties_are_is_what_the_launch_commits_to():
    job = pooled_manifest()
    assert replace(job, parties=job.parties[:1]).host_data != job.host_data


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("parties",), [], "the key must be absent"),
        (("parties",), {}, "the key must be absent"),
        (("parties",), [POOLED["parties"][0]] * 16, "1 to 15"),
        (("parties",), ["77" * 32], "an object"),
        (("parties",), POOLED["parties"][::-1], "not ascending"),
        (("parties",), POOLED["parties"][:1] * 2, "not ascending"),
        (("parties", 0, "owner_key"), "77" * 31, "owner_key"),
        (("parties", 0, "owner_key"), POOLED["owner_key"], "the owner of the manifest"),
        (("parties", 0, "name"), "clinic", "unknown key"),
        (("parties", 0, "packs"), [], "at least one"),
        (("parties", 0, "packs"), [7], "name of a pack"),
        (("parties", 0, "packs"), ["../clinic"], "name of a pack"),
        (("parties", 0, "packs"), ["clinic", "clinic"], ".packs is not ascending"),
        (("parties", 0, "packs"), ["ward", "clinic"], ".packs is not ascending"),
        (("parties", 0, "packs"), ["clinic", "ward"], "a pack twice"),
        (("parties", 0, "packs"), ["elsewhere"], "no such pack"),
        (("access",), {"exec": True, "tunnels": [], "clients": []}, "manifest.access"),
        (("checkpoint",), AMPLE["checkpoint"], "manifest.checkpoint"),
        (("resources", "gpus"), 1, "manifest.resources.gpus does"),
    ],
    ids=str,
)
def test_what_a_job_of_several_owners_must_not_say_is_refused(path, value, said):
    with pytest.raises(FormatError) as refused:
        parse_job_manifest(changed_json(POOLED, path, value))
    assert said in refused.value.message


def test_outputs_of_several_owners_leave_sealed_and_their_container_has_no_network():
    clear = {key: value for key, value in POOLED.items() if key != "recipients"}
    reaching = POOLED | {"network": "allow", "destinations": AMPLE["destinations"]}
    for document in (clear, reaching):
        with pytest.raises(FormatError, match=r"recipients|destinations"):
            parse_job_manifest(canonical_json(document))


def test_there_are_at_most_15():
    parties = [{"owner_key": f"{at:064x}", "packs": [f"p{at}"]} for at in range(16)]
    assert len(parse_parties(parties[:15])) == 15
    with pytest.raises(FormatError, match="1 to 15"):
        parse_parties(parties)


@given(JSON)
def test_any_value_is_parties_or_refused(value):
    with contextlib.suppress(FormatError):
        assert parse_parties(value)


@given(st.sampled_from(["owner_key", "packs"]), JSON)
def test_a_party_of_any_value_is_read_or_refused(key, value):
    with contextlib.suppress(FormatError):
        parse_parties([{"owner_key": "77" * 32, "packs": ["clinic"]} | {key: value}])
