# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import pytest
import yaml

from cvmtool.errors import ConfigError
from cvmtool.formats.parties import Party
from cvmtool.owner.jobfile import parse_job_file
from cvmtool.owner.jobparties import parties_of
from tests.samples import JOB_YAML
from tests.unit.formats.test_packheader import header

CLINIC, WARD, OWN = "77" * 32, "88" * 32, "22" * 32


def job(**more):
    return parse_job_file(yaml.safe_dump(yaml.safe_load(JOB_YAML) | more))


def test_parties_are_read_by_name():
    assert job().parties == {}
    assert job(parties={"clinic": CLINIC, "ward": WARD}).parties == {"clinic": CLINIC, "ward": WARD}


@pytest.mark.parametrize(
    ("parties", "said"),
    [
        ([CLINIC], "mapping"),
        ({"Clinic!": CLINIC}, "has the name"),
        ({"clinic": CLINIC.upper().replace("7", "A")}, "64 hex digits"),
        ({"clinic": 7}, "64 hex digits is required"),
        ({"clinic": "age1"}, "64 hex digits"),
        ({"clinic": CLINIC, "again": CLINIC}, "no key twice"),
        ({f"p{n}": f"{n:02x}" * 32 for n in range(16)}, "at most 15"),
    ],
    ids=str,
)
def test_what_names_no_party_is_refused(parties, said):
    with pytest.raises(ConfigError) as refused:
        job(parties=parties)
    assert said in refused.value.message


def test_there_are_at_most_15():
    parties = {f"p{number}": f"{number:02x}" * 32 for number in range(15)}
    assert job(parties=parties).parties == parties


def of(key):
    return header(owner_key=key)


def test_packs_belong_to_whoever_signed_their_headers():
    packs = [("container", None), ("b", of(CLINIC)), ("a", of(CLINIC)), ("c", of(WARD)), ("own", of(OWN))]
    assert parties_of({"ward": WARD, "clinic": CLINIC}, OWN, packs) == (
        Party(owner_key=CLINIC, packs=("a", "b")),
        Party(owner_key=WARD, packs=("c",)),
    )
    assert parties_of({}, OWN, packs) == ()


def test_a_party_has_a_pack_and_is_somebody_else():
    with pytest.raises(ConfigError, match="party ward has no pack"):
        parties_of({"ward": WARD}, OWN, [("a", of(CLINIC))])
    with pytest.raises(ConfigError, match="party me has your own key"):
        parties_of({"me": OWN}, OWN, [("a", of(OWN))])
