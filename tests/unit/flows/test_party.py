# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Three owners with separate state directories: all consent, one refuses, and a coordinator that lies in every way it has."""

import os
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from cvmtool.errors import AppraisalError, ConfigError, FormatError, FreshnessError, VerificationError
from cvmtool.flows import party as flow
from cvmtool.flows.cases import read_case
from cvmtool.flows.consents import GRANT_FILE
from cvmtool.flows.exchange import Part, open_exchanges
from cvmtool.flows.grants import load_grants, revoke_grant
from cvmtool.flows.party import answer, find_job, jobs_for, refuse, watch
from cvmtool.formats.control import ControlError
from cvmtool.formats.exchange import Answer
from cvmtool.guest.refusal import RefusedError
from cvmtool.owner.grants import ConsentError, sign_answer
from cvmtool.owner.keystore import OwnerKeys
from tests.unit.flows.pooled import Pool, everything_below


@pytest.fixture
def pool(tmp_path):
    return Pool(tmp_path)


@pytest.fixture
def granted(pool):
    for owner in pool.owners.values():
        owner.grant(pool.manifest)
    pool.exchange.publish(pool.pooled)
    return pool


def consented(pool):
    """Every party has said yes; the coordinator has seen it."""
    for name in pool.owners:
        event = pool.step(name)
        assert event.guest is None
    pool.consents.ask()
    pool.boot()
    return pool


def turn_of(pool, name):
    closed = pool.guest.life.status()["closed"]
    return next(turn for turn in pool.consents.turns(closed) if turn.name == name)


def carry(pool, name):
    """Carry evidence and answer between the guest and a party, as an honest coordinator does."""
    turn = turn_of(pool, name)
    evidence = pool.show(turn.nonce)
    pool.exchange.put_evidence(name, turn.number, evidence)
    event = pool.step(name)
    sealed = pool.consents.release(turn, evidence)
    pool.guest.life.release(sealed)
    return event


def code_of(pool, name):
    """The finding or error that a party's next step meets."""
    with pytest.raises((AppraisalError, FreshnessError, VerificationError)) as refused:
        pool.step(name)
    found = refused.value
    return found.findings[0].code if isinstance(found, AppraisalError) else type(found).__name__


def test_a_job_runs_when_every_owner_has_looked_at_the_guest_and_released(granted):
    pool = consented(granted)
    for name, owner in pool.owners.items():
        event = carry(pool, name)
        assert event.guest.hpke_key == pool.guest.keys.hpke_key
        assert pool.guest.opened[next(p for p in pool.manifest.packs if p.name == name).root_hash] == owner.passphrase
    assert pool.guest.life.status()["closed"] == ["container"]
    pool.release_own()
    assert pool.guest.life.status()["stage"] == "unlocked"
    for name, owner in pool.owners.items():
        (kept,) = load_grants(owner.settings)
        assert list(kept.used()) == [pool.guest.keys.hpke_key.hex()]
        assert (pool.job.path / GRANT_FILE.format(name)).is_file()


def test_no_passphrase_stands_in_the_exchange_or_at_the_coordinators(granted):
    pool = consented(granted)
    for name in pool.owners:
        carry(pool, name)
    seen = everything_below(pool.folder / "exchange") + everything_below(pool.job.path)
    assert b"nonce" in seen
    for owner in pool.owners.values():
        assert owner.passphrase not in seen
        assert owner.passphrase.hex().encode() not in seen


def test_one_owner_who_refuses_is_named_with_the_reason_and_no_machine_is_started(pool):
    pool.owners["clinic"].grant(pool.manifest)
    pool.exchange.publish(pool.pooled)
    pool.step("clinic")
    exchange, pooled = find_job(pool.owners["ward"].party.keys, pool.folder / "exchange")
    refuse(pool.owners["ward"].party.keys, exchange, pooled, "ethics board says\nno")
    with pytest.raises(ConsentError) as refused:
        pool.consents.ask()
    assert refused.value.message == "ward refuses: ethics board says no"
    (finding,) = refused.value.findings
    assert (finding.code, finding.field, finding.actual) == ("party-refused", "party ward", "ethics board says no")
    assert not list(pool.exchange.folder.glob("*.evidence"))
    with pytest.raises(ConfigError, match="your answer already"):
        refuse(pool.owners["ward"].party.keys, exchange, pooled, "again")


def test_an_owner_without_a_grant_for_it_refuses_and_says_which(pool):
    pool.owners["clinic"].grant(pool.manifest)
    pool.owners["ward"].grant(replace(pool.manifest, recipients=pool.manifest.recipients[:1]), any_manifest=True)
    pool.exchange.publish(pool.pooled)
    pool.step("clinic")
    assert code_of(pool, "ward") == "grant-recipients"
    with pytest.raises(ConsentError, match=r"ward refuses: .*grant recipients"):
        pool.consents.ask()


def test_a_watching_owner_leaves_the_decision_to_people(pool):
    pool.exchange.publish(pool.pooled)
    with pytest.raises(ConsentError):
        pool.step("ward", patient=True)
    assert pool.exchange.answer("ward", 1, Part.CONSENT) is None
    pool.owners["ward"].grant(pool.manifest)
    assert pool.step("ward", patient=True).grant


def test_a_coordinator_that_shows_another_manifest_than_it_launched_gets_nothing(granted):
    pool = consented(granted)
    greedy = pool.manifest_of(recipients=(*pool.manifest.recipients, "f" * 64))
    pool.boot(greedy)
    turn = turn_of_first(pool)
    pool.exchange.put_evidence(turn.name, turn.number, pool.show(turn.nonce, greedy))
    assert code_of(pool, turn.name) == "host-data"
    with pytest.raises(ConsentError, match=f"{turn.name} refuses: .*host data"):
        pool.consents.release(turn, pool.exchange.evidence(turn.name, turn.number))
    assert not load_grants(pool.owners[turn.name].settings)[0].used()
    assert b'"sealed"' not in everything_below(pool.folder / "exchange")


def turn_of_first(pool):
    return next(iter(pool.consents.turns(["clinic", "ward"])))


def test_a_coordinator_that_swaps_the_nonce_gets_nothing(granted):
    pool = consented(granted)
    turn = turn_of_first(pool)
    for nonce in (b"x" * 32, pool.exchange.answer("ward", 1, Part.CONSENT).said.nonce):
        pool.exchange.put_evidence(turn.name, turn.number, pool.show(nonce))
        assert code_of(pool, turn.name) == "StaleEvidenceError"
        (pool.exchange.folder / f"{turn.name}.{turn.number}.release").unlink()


def test_evidence_of_an_earlier_round_is_stale_in_the_next(granted):
    pool = granted
    for owner in pool.owners.values():
        owner.grant(pool.manifest, uses=2)
    consented(pool)
    carry(pool, "clinic")
    old = pool.exchange.evidence("clinic", 1)
    pool.step("clinic")
    pool.exchange.put_evidence("clinic", 2, old)
    assert code_of(pool, "clinic") == "StaleEvidenceError"


def test_what_was_sealed_for_one_guest_opens_in_no_other(granted):
    pool = consented(granted)
    turn = turn_of(pool, "clinic")
    evidence = pool.show(turn.nonce)
    pool.exchange.put_evidence("clinic", 1, evidence)
    pool.step("clinic")
    sealed = pool.consents.release(turn, evidence)
    pool.boot()
    pool.show(turn.nonce)
    with pytest.raises(RefusedError) as refused:
        pool.guest.life.release(sealed)
    assert refused.value.error is ControlError.SEALED


def test_a_grant_for_one_guest_opens_no_second_one_whatever_process_asks(granted):
    pool = consented(granted)
    for name in pool.owners:
        carry(pool, name)
    # Its machine died; the coordinator starts another one. Whether that could be had is answered beforehand.
    assert pool.step("clinic") is None
    with pytest.raises(ConsentError, match=r"clinic refuses: .*grant uses"):
        list(pool.consents.turns(["clinic"]))


def test_a_second_guest_in_the_round_of_the_first_is_refused_at_the_release(granted):
    pool = consented(granted)
    carry(pool, "clinic")
    (
        pool.exchange.folder / "clinic.1.release"
    ).unlink()  # the coordinator's to remove, as the evidence is its to replace
    pool.boot()
    pool.exchange.put_evidence("clinic", 1, pool.show(pool.exchange.answer("clinic", 1, Part.CONSENT).said.nonce))
    assert code_of(pool, "clinic") == "grant-uses"


def test_the_same_guest_again_is_no_other_use(granted):
    pool = consented(granted)
    carry(pool, "clinic")
    # The party died between counting the use and leaving what it sealed; or what it left was lost.
    (pool.exchange.folder / "clinic.1.release").unlink()
    assert pool.step("clinic").guest.hpke_key == pool.guest.keys.hpke_key
    assert len(load_grants(pool.owners["clinic"].settings)[0].used()) == 1


def test_consent_that_has_ended_by_the_time_of_the_release_is_none(granted, monkeypatch):
    pool = consented(granted)
    turn = turn_of(pool, "ward")
    pool.exchange.put_evidence("ward", 1, pool.show(turn.nonce))

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(days=7)

    monkeypatch.setattr(flow, "datetime", Later)
    assert code_of(pool, "ward") == "grant-expired"
    assert not load_grants(pool.owners["ward"].settings)[0].used()


def test_consent_that_was_revoked_is_none(granted):
    pool = consented(granted)
    turn = turn_of(pool, "ward")
    pool.exchange.put_evidence("ward", 1, pool.show(turn.nonce))
    (kept,) = load_grants(pool.owners["ward"].settings)
    revoke_grant(pool.owners["ward"].settings, kept.grant.id[:6])
    assert load_grants(pool.owners["ward"].settings) == []
    assert code_of(pool, "ward") == "FreshnessError"
    with pytest.raises(ConfigError, match="0 grants"):
        revoke_grant(pool.owners["ward"].settings, "")


def test_a_guest_that_the_partys_own_policy_refuses_gets_nothing_and_is_kept_as_a_case(granted):
    pool = consented(granted)
    owner = pool.owners["ward"]
    strict = replace(
        owner.party, policy_of=lambda m: replace(owner.party.policy_of(m), measurements=frozenset({b"m" * 48}))
    )
    turn = turn_of(pool, "ward")
    pool.exchange.put_evidence("ward", 1, pool.show(turn.nonce))
    with pytest.raises(AppraisalError) as refused:
        strict.step(pool.exchange, pool.pooled)
    assert [finding.code for finding in refused.value.findings] == ["measurement"]
    (case,) = owner.settings.cases_dir.iterdir()
    with pytest.raises(AppraisalError):
        read_case(case).decide()


@pytest.mark.parametrize("liar", ["ward", "nobody"])
def test_nobody_answers_for_another(granted, liar):
    pool = granted
    keys = pool.owners["ward"].party.keys if liar == "ward" else OwnerKeys(b"e" * 32)
    said = Answer(manifest_sha256=pool.manifest.sha256, round=1, said="no", owner_key="", signature="")
    forged = sign_answer(said, keys)
    named = replace(forged, owner_key=pool.owners["clinic"].party.keys.public.hex())
    for answered in (forged, named):
        pool.exchange.put_answer("clinic", Part.CONSENT, answered)
        with pytest.raises(VerificationError, match="not that of the party"):
            pool.consents.ask()


def test_a_consent_with_the_grant_of_another_is_none(granted):
    pool = granted
    pool.step("clinic")
    theirs = pool.exchange.answer("clinic", 1, Part.CONSENT)
    pool.exchange.put_answer("ward", Part.CONSENT, sign_answer(theirs, pool.owners["ward"].party.keys))
    with pytest.raises(VerificationError, match="no grant of its own"):
        pool.consents.ask()


def test_uses_are_counted_once_however_many_ask_at_once(granted):
    (kept,) = load_grants(granted.owners["ward"].settings)
    gained, gate = [], threading.Barrier(8)

    def ask(number):
        gate.wait()
        try:
            kept.use(f"{number:02x}" * 32)
        except ConsentError:
            return
        gained.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(gained) == 1
    assert list(kept.used()) == [f"{gained[0]:02x}" * 32]


def test_a_use_that_cannot_be_read_releases_nothing(granted):
    (kept,) = load_grants(granted.owners["ward"].settings)
    kept.use("ab" * 32)
    (kept.folder / "use-1.json").write_text("{}")
    with pytest.raises(FormatError):
        kept.used()
    with pytest.raises(FormatError):
        kept.use("ab" * 32)


def plant(pool, what):
    path = pool.exchange.folder / "clinic.1.consent"
    if what == "a link":
        path.symlink_to(pool.owners["clinic"].settings.keystore)
    elif what == "a pipe":
        os.mkfifo(path)
    elif what == "a directory":
        path.mkdir()
    else:
        path.write_bytes(b"x" * 1_000_000)


@pytest.mark.parametrize("what", ["a link", "a pipe", "a directory", "too much"])
def test_what_a_stranger_plants_in_the_exchange_stops_the_job_and_no_more(granted, what):
    plant(granted, what)
    with pytest.raises((ConfigError, FormatError)):
        granted.consents.ask()
    with pytest.raises((ConfigError, FormatError)):
        granted.step("clinic")


def test_jobs_are_found_by_their_party_while_they_wait(granted):
    folder = granted.folder / "exchange"
    (folder / "junk").mkdir()
    (folder / "job.json").write_text("{}")
    stranger = OwnerKeys(b"e" * 32)
    assert [exchange.id for exchange, _ in open_exchanges(folder)] == [granted.exchange.id]
    assert jobs_for(stranger, folder) == []
    with pytest.raises(ConfigError, match="0 jobs"):
        find_job(stranger, folder)
    assert find_job(granted.owners["ward"].party.keys, folder, granted.exchange.id[:4])[1] == granted.pooled
    granted.consents.close()
    assert jobs_for(granted.owners["ward"].party.keys, folder) == []
    granted.exchange.publish(granted.pooled)  # taken up again
    assert len(jobs_for(granted.owners["ward"].party.keys, folder)) == 1


def test_nothing_is_written_through_a_link(pool, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    pool.exchange.folder.parent.mkdir()
    pool.exchange.folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="is a link"):
        pool.consents.ask()
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert list(open_exchanges(pool.exchange.folder.parent)) == []


def test_a_job_under_the_name_of_another_is_none(granted):
    other = replace(granted.manifest, salt="ee" * 32)
    granted.exchange.publish(replace(granted.pooled, manifest=other))
    assert list(open_exchanges(granted.folder / "exchange")) == []


def test_answering_waits_for_the_guest_and_ends_with_the_release(granted):
    pool, events = granted, []
    arguments = {"target": answer, "args": (pool.owners["ward"].party, pool.folder / "exchange")}
    waiting = threading.Thread(**arguments, kwargs={"told": events.append}, daemon=True)
    waiting.start()
    pool.step("clinic")
    pool.consents.ask()
    pool.boot()
    turn = turn_of(pool, "ward")
    pool.guest.life.release(pool.consents.release(turn, pool.show(turn.nonce)))
    waiting.join(30)
    assert [event.guest is None for event in events] == [True, False]
    assert pool.guest.life.status()["closed"] == ["container", "clinic"]


def test_watching_says_once_what_it_does_not_do_and_goes_on(pool, monkeypatch):
    pool.exchange.publish(pool.pooled)
    refusals, events, naps = [], [], []

    class EnoughError(Exception):
        pass

    def nap(_seconds):
        naps.append(1)
        if len(naps) == 3:
            pool.owners["ward"].grant(pool.manifest)
        if len(naps) == 5:
            raise EnoughError

    monkeypatch.setattr(flow.time, "sleep", nap)
    with pytest.raises(EnoughError):
        watch(
            pool.owners["ward"].party,
            pool.folder / "exchange",
            told=events.append,
            refused=lambda pooled, error: refusals.append(error.findings[0].code),
        )
    assert refusals == ["grant-missing"]
    assert [event.name for event in events] == [pool.manifest.name]


def test_the_clock_of_the_grant_is_its_owners(pool):
    pool.owners["ward"].grant(pool.manifest, lasts=timedelta(seconds=-1))
    pool.exchange.publish(pool.pooled)
    assert code_of(pool, "ward") == "grant-expired"
    assert datetime.fromisoformat(load_grants(pool.owners["ward"].settings)[0].grant.expires) < datetime.now(UTC)
