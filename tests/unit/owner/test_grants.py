# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What an owner allowed, held against what a coordinator asks: one change at a time, each with the finding that it must meet."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from cvmtool.errors import ConfigError, VerificationError
from cvmtool.formats.exchange import Answer
from cvmtool.formats.job import Output, OutputKind
from cvmtool.formats.pack import Role
from cvmtool.formats.parties import Party
from cvmtool.owner.grants import (
    ConsentError,
    Terms,
    choose_grant,
    judge_grant,
    make_grant,
    packs_of,
    sign_answer,
    sign_grant,
    verify_answer,
    verify_grant,
)
from cvmtool.owner.keystore import OwnerKeys
from tests.samples import pack, pooled_manifest

CLINIC, OTHER = OwnerKeys(b"c" * 32), OwnerKeys(b"o" * 32)
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
PACK = pack("clinic")
BOOT = "b0" * 32


def job(**changes):
    parties = (Party(owner_key=CLINIC.public.hex(), packs=("clinic",)), Party(owner_key="f8" * 32, packs=("ward",)))
    return pooled_manifest(**{"parties": parties} | changes)


def grant(manifest=None, *, any_manifest=False, uses=1, expires=NOW + timedelta(days=7)):
    terms = Terms(expires=expires, uses=uses, any_manifest=any_manifest)
    return make_grant(manifest or job(), {PACK.root_hash: PACK}, terms, CLINIC, identity="1d" * 16)


def against(given, manifest, **more):
    return [finding.code for finding in judge_grant(given, manifest, **{"at": NOW} | more)]


def test_what_was_granted_is_allowed():
    assert against(grant(), job()) == []
    assert against(grant(any_manifest=True), job(salt="ee" * 32, name="again")) == []
    assert choose_grant([(grant(), ())], job(), at=NOW) == grant()


def with_pack(**changes):
    packs = tuple(replace(item, **changes) if item.name == "clinic" else item for item in job().packs)
    return job(packs=packs)


def with_container_pack(root_hash):
    return job(packs=tuple(replace(p, root_hash=root_hash) if p.role is Role.CONTAINER else p for p in job().packs))


SMALL = job().outputs[1]
LIES = {
    "grant-coordinator": job(owner_key="23" * 32),
    "grant-packs: another pack": with_pack(root_hash="00" * 32),
    "grant-packs: the key of another pack": with_pack(luks_uuid="ffffffff-89ab-cdef-0123-456789abcdef"),
    "grant-packs: under another name": job(
        packs=tuple(replace(item, name="model") if item.name == "clinic" else item for item in job().packs),
        parties=(replace(job().parties[0], packs=("model",)), job().parties[1]),
    ),
    "grant-packs: one pack more": job(parties=(replace(job().parties[0], packs=("clinic", "ward")),)),
    "grant-packs: none": job(parties=job().parties[1:]),
    "grant-container: another container": with_container_pack("00" * 32),
    "grant-container: other arguments": job(container=replace(job().container, args=("cat", "/inputs/clinic/file"))),
    "grant-container: another environment": job(container=replace(job().container, env=(("PYTHONPATH", "/inputs"),))),
    "grant-container: another directory": job(container=replace(job().container, workdir="/inputs/ward")),
    "grant-outputs: one more": job(outputs=(*job().outputs, Output(name="x", kind=OutputKind.FILE, max_bytes=1))),
    "grant-outputs: a larger one": job(outputs=(replace(SMALL, max_bytes=SMALL.max_bytes + 1),)),
    "grant-outputs: another kind": job(outputs=(replace(SMALL, kind=OutputKind.FILE),)),
    "grant-recipients: one more": job(recipients=("44" * 32, *job().recipients)),
    "grant-recipients: none": job(recipients=()),
    "grant-log": job(limits=replace(job().limits, log_mib=17)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_job_that_goes_beyond_its_grant_is_refused(lie):
    given = grant(any_manifest=True)
    assert against(given, LIES[lie]) == [lie.partition(":")[0]]
    assert "grant-manifest" in against(grant(), LIES[lie])


THREE = tuple(Output(name=name, kind=OutputKind.LOG, max_bytes=5) for name in ("a", "b", "c"))
PACKS = {item.name: f"{item.name} ({item.root_hash[:16]}...)" for item in job().packs}


@pytest.mark.parametrize(
    ("given", "manifest", "actual", "required"),
    [
        (grant(), job(salt="ee" * 32), job(salt="ee" * 32).sha256.hex(), job().sha256.hex()),
        (
            grant(job(outputs=THREE[:2])),
            job(outputs=(replace(THREE[0], max_bytes=6), THREE[1], THREE[2])),
            "a (log, 6 bytes), c (log, 5 bytes)",
            "a (log, 5 bytes), b (log, 5 bytes)",
        ),
        (grant(job(outputs=())), job(outputs=THREE[:1]), "a (log, 5 bytes)", "none"),
        (
            grant(job(recipients=("11" * 32, "22" * 32))),
            job(recipients=("22" * 32, "33" * 32, "44" * 32)),
            f"{'33' * 8}..., {'44' * 8}...",
            f"{'11' * 8}..., {'22' * 8}...",
        ),
        (grant(job(recipients=("11" * 32,))), job(recipients=()), "none", f"{'11' * 8}..."),
        (grant(), job(parties=job().parties[1:]), "none", PACKS["clinic"]),
        (grant(), LIES["grant-packs: one pack more"], f"{PACKS['clinic']}, {PACKS['ward']}", PACKS["clinic"]),
        (
            replace(grant(), packs=(*grant().packs, replace(grant().packs[0], name="ward", root_hash="11" * 32))),
            with_pack(root_hash="00" * 32),
            f"clinic ({'00' * 8}...)",
            f"{PACKS['clinic']}, ward ({'11' * 8}...)",
        ),
    ],
    ids=["manifest", "outputs", "no outputs", "recipients", "no recipients", "no packs", "packs", "granted packs"],
)
def test_an_owner_reads_what_was_found_and_what_was_granted(given, manifest, actual, required):
    """The first finding but that of the manifest, unless it is alone: that one is there for each other."""
    findings = judge_grant(given, manifest, at=NOW)
    found = [finding for finding in findings if finding.code != "grant-manifest"] or findings
    assert [(finding.actual, finding.required) for finding in found] == [(actual, required)]


def test_a_grant_for_one_manifest_is_for_no_other():
    assert against(grant(), job(salt="ee" * 32)) == ["grant-manifest"]


def test_less_than_was_granted_is_fine():
    less = job(outputs=(replace(SMALL, max_bytes=1),), recipients=job().recipients[:1])
    assert against(grant(any_manifest=True), less) == []


def test_a_grant_ends_when_it_says():
    assert against(grant(), job(), at=NOW + timedelta(days=7)) == ["grant-expired"]
    assert against(grant(), job(), at=NOW + timedelta(days=7, seconds=-1)) == []


def test_a_grant_is_used_as_often_as_it_says_and_the_same_guest_is_no_other_use():
    assert against(grant(uses=2), job(), used=["a"], boot=BOOT) == []
    assert against(grant(uses=2), job(), used=["a", "b"], boot=BOOT) == ["grant-uses"]
    assert against(grant(uses=2), job(), used=["a", "b"]) == ["grant-uses"]
    assert against(grant(uses=2), job(), used=["a", BOOT], boot=BOOT) == []


def test_everything_that_is_wrong_is_said_at_once():
    worst = job(owner_key="23" * 32, recipients=("44" * 32,), limits=replace(job().limits, log_mib=99))
    found = against(grant(), worst, at=NOW + timedelta(days=9), used=["a"])
    assert found == [f"grant-{name}" for name in ("coordinator", "manifest", "recipients", "log", "expired", "uses")]


def test_the_grant_that_fits_is_chosen_and_else_the_nearest_is_what_is_said():
    narrow, wide = grant(job(salt="ee" * 32)), grant(any_manifest=True)
    assert choose_grant([(narrow, ()), (wide, ())], job(), at=NOW) == wide
    with pytest.raises(ConsentError) as refused:
        choose_grant([(narrow, ("a",)), (wide, ("a",))], job(), at=NOW)
    assert [finding.code for finding in refused.value.findings] == ["grant-uses"]
    with pytest.raises(ConsentError) as refused:
        choose_grant([], job(), at=NOW)
    assert [finding.code for finding in refused.value.findings] == ["grant-missing"]


def test_only_packs_that_the_owner_names_are_granted():
    terms = Terms(expires=NOW, uses=1, any_manifest=False)
    for own in ({}, {PACK.root_hash: replace(PACK, luks_uuid="ffffffff-89ab-cdef-0123-456789abcdef")}):
        with pytest.raises(ConfigError, match="none of those named"):
            make_grant(job(), own, terms, CLINIC, identity="1d" * 16)
    # What a pack was called when it was made is no part of it.
    renamed = {PACK.root_hash: replace(PACK, name="wards")}
    assert make_grant(job(), renamed, terms, CLINIC, identity="1d" * 16).packs[0].root_hash == PACK.root_hash


def test_a_stranger_has_nothing_to_grant():
    with pytest.raises(ConfigError, match="none of the 2 parties"):
        packs_of(job(), OTHER.public.hex())


def test_a_grant_is_its_owners_or_nothing():
    verify_grant(grant())
    for forged in (replace(grant(), uses=9), replace(sign_grant(grant(), OTHER), owner_key=CLINIC.public.hex())):
        with pytest.raises(VerificationError):
            verify_grant(forged)


def test_an_answer_is_one_partys_to_one_job_in_one_round():
    answer = sign_answer(Answer(manifest_sha256=job().sha256, round=1, said="no", owner_key="", signature=""), CLINIC)
    right = {"owner_key": CLINIC.public.hex(), "manifest": job(), "round_number": 1}
    verify_answer(answer, **right)
    wrong = ({"owner_key": OTHER.public.hex()}, {"manifest": job(salt="ee" * 32)}, {"round_number": 2})
    for change in wrong:
        with pytest.raises(VerificationError):
            verify_answer(answer, **right | change)
    for forged in (replace(answer, said="yes"), replace(sign_answer(answer, OTHER), owner_key=CLINIC.public.hex())):
        with pytest.raises(VerificationError):
            verify_answer(forged, **right)
