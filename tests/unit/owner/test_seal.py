# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Sealed by the owner's code, opened by the guest's."""

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from cryptography.exceptions import InvalidTag

from cvmtool.formats.channel import find_last_open
from cvmtool.formats.control import ControlError, Stage
from cvmtool.formats.release import Secrets, release_info
from cvmtool.guest import life as guest_life
from cvmtool.guest.refusal import RefusedError
from cvmtool.owner.appraise import VerifiedGuest
from cvmtool.owner.seal import seal
from tests import fakes
from tests.fakes.guest import FakeGuest


@pytest.fixture
def guest(tmp_path):
    return FakeGuest(tmp_path)


def verified(guest, nonce=fakes.NONCE):
    session = guest.session(nonce)
    evidence = guest.answer(find_last_open(session.challenge())[0])
    return session.judge(evidence, datetime.now(UTC))


def secrets(guest):
    return Secrets(packs={pack.root_hash: bytes((n,)) * 32 for n, pack in enumerate(guest.manifest.packs)})


def release(guest, sealed):
    guest.life.configure(guest.manifest.encode(), certificates=b"")
    guest.life.release(sealed)


def test_the_guest_opens_what_the_owner_sealed(guest):
    release(guest, seal(verified(guest), secrets(guest), manifest=guest.manifest))
    assert guest.opened == secrets(guest).packs
    assert guest.life.status()["stage"] == Stage.UNLOCKED


def test_no_secret_stands_in_what_is_sent(guest):
    sealed = seal(verified(guest), secrets(guest), manifest=guest.manifest)
    plain = secrets(guest).encode()
    assert len(sealed) == 32 + len(plain) + 16
    assert not any(plain[at : at + 8] in sealed for at in range(len(plain) - 8))
    assert seal(verified(guest), secrets(guest), manifest=guest.manifest) != sealed


def refuses(guest, sealed):
    with pytest.raises(RefusedError) as refusal:
        release(guest, sealed)
    assert guest.opened == {}
    return refusal.value.error


def test_what_was_sealed_in_another_session_is_refused(guest):
    old = seal(verified(guest, b"o" * 32), secrets(guest), manifest=guest.manifest)
    verified(guest)
    assert refuses(guest, old) is ControlError.SEALED


def test_what_was_sealed_to_another_boot_is_refused(guest, tmp_path):
    other = FakeGuest(tmp_path / "other", manifest=guest.manifest)
    verified(guest)
    assert refuses(guest, seal(verified(other), secrets(guest), manifest=guest.manifest)) is ControlError.SEALED


@pytest.mark.parametrize("at", [0, 31, 32, 100, -17, -1])
def test_a_flipped_bit_is_refused(guest, at):
    sealed = bytearray(seal(verified(guest), secrets(guest), manifest=guest.manifest))
    sealed[at] ^= 1
    assert refuses(guest, bytes(sealed)) is ControlError.SEALED


@pytest.mark.parametrize("cut", [slice(0, 0), slice(0, 31), slice(0, 48), slice(0, -1), slice(1, None)])
def test_a_cut_secret_is_refused(guest, cut):
    assert refuses(guest, seal(verified(guest), secrets(guest), manifest=guest.manifest)[cut]) is ControlError.SEALED


def test_the_session_and_the_job_are_both_in_the_info(guest):
    held = verified(guest)
    sealed = seal(held, secrets(guest), manifest=guest.manifest)
    right = {"report_data": held.report_data, "host_data": held.host_data}
    opened = guest_life._SUITE.decrypt(sealed, guest.keys.hpke, info=release_info(**right))
    assert opened == secrets(guest).encode()
    for wrong in ({"report_data": bytes(64)}, {"host_data": bytes(32)}):
        with pytest.raises(InvalidTag):
            guest_life._SUITE.decrypt(sealed, guest.keys.hpke, info=release_info(**{**right, **wrong}))


def test_only_a_verified_guest_is_sealed_to(guest):
    held = verified(guest)
    fields = {name: getattr(held, name) for name in VerifiedGuest.__dataclass_fields__ if name != "token"}
    evidence = guest.answer(find_last_open(guest.session().challenge())[0])
    for other in (evidence, SimpleNamespace(**fields), guest.keys, None):
        with pytest.raises(TypeError):
            seal(other, secrets(guest), manifest=guest.manifest)


def test_the_manifest_is_the_one_that_was_launched(guest):
    other = replace(guest.manifest, salt="00" * 32)
    with pytest.raises(ValueError, match="another manifest"):
        seal(verified(guest), secrets(guest), manifest=other)


def test_nothing_but_an_appraisal_makes_a_verified_guest(guest):
    held = verified(guest)
    fields = {name: getattr(held, name) for name in VerifiedGuest.__dataclass_fields__ if name != "token"}
    for token in ({}, {"token": None}, {"token": object()}):
        with pytest.raises(TypeError):
            VerifiedGuest(**fields, **token)
    with pytest.raises((TypeError, ValueError)):
        replace(held, hpke_key=b"m" * 32)
    with pytest.raises(AttributeError):
        held.hpke_key = b"m" * 32


def test_the_type_checker_knows_it_too(tmp_path):
    program = tmp_path / "wrong.py"
    program.write_text(
        "from cvmtool.formats.evidence import Evidence\n"
        "from cvmtool.formats.job import JobManifest\n"
        "from cvmtool.formats.release import Secrets\n"
        "from cvmtool.owner.appraise import VerifiedGuest\n"
        "from cvmtool.owner.seal import seal\n"
        "from cvmtool.owner.verify import AuthenticReport\n"
        "def right(guest: VerifiedGuest, secrets: Secrets, job: JobManifest) -> bytes:\n"
        "    return seal(guest, secrets, manifest=job)\n"
        "def wrong(evidence: Evidence, secrets: Secrets, job: JobManifest) -> bytes:\n"
        "    return seal(evidence, secrets, manifest=job)\n"
        "def early(report: AuthenticReport, secrets: Secrets, job: JobManifest) -> bytes:\n"
        "    return seal(report, secrets, manifest=job)\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent", str(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in result.stdout.splitlines() if "error:" in line]
    assert [line.split(":")[1] for line in errors] == ["10", "12"], result.stdout
    assert all("[arg-type]" in line for line in errors)
