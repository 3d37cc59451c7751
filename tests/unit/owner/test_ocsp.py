# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import base64
import re
from dataclasses import replace
from datetime import timedelta
from urllib.parse import unquote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.owner.ocsp import MAX_ANSWER, status_fault, status_path
from tests.fakes.nvidia import DAY, NOW, FakeNvidia, issue

NVIDIA = FakeNvidia()
CA, ROOT = NVIDIA.rim_ca, NVIDIA.rim_root
SIGNER = NVIDIA.rim_signer


OTHER_USE = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
SECOND = timedelta(seconds=1)


def fault(*answers, at=NOW):
    return status_fault(answers, SIGNER.certificate, [CA.certificate, ROOT.certificate], at)


def status(**changes):
    return NVIDIA.status(SIGNER, CA, **changes)


def test_the_issuer_may_say_that_it_is_good():
    assert fault(status()) is None


@pytest.mark.parametrize("authority", [CA, ROOT], ids=["issuer", "above"])
def test_so_may_a_responder_of_an_authority(authority):
    assert fault(status(signer=issue("A responder", authority, ca=False, responder=True))) is None


@pytest.mark.parametrize(
    "responder",
    [
        issue("No responder", CA, ca=False),
        issue("A stranger's", ca=False, responder=True),
        issue("An old one", CA, ca=False, responder=True, until=NOW - DAY),
        issue("A sibling's", SIGNER, ca=False, responder=True),
        issue("Not valid yet", CA, ca=False, responder=True, since=NOW + DAY),
        issue("For another use", CA, ca=False, extensions=[(OTHER_USE, False)]),
        issue("With an RSA key", CA, ca=False, responder=True, key=rsa.generate_private_key(65_537, 2048)),
    ],
    ids=["not made one", "self-made", "expired", "made by the certificate itself", "too early", "another use", "RSA"],
)
def test_nobody_else_may(responder):
    assert fault(status(signer=responder)) == "an answer that nobody entitled has signed"


def test_one_word_of_revocation_outweighs_the_rest():
    revoked = status(status=ocsp.OCSPCertStatus.REVOKED)
    assert fault(revoked) == fault(status(), revoked) == fault(revoked, status()) == "revoked"


def test_unknown_is_not_good():
    assert fault(status(status=ocsp.OCSPCertStatus.UNKNOWN)) == "unknown to the status service"


@pytest.mark.parametrize(
    ("at", "holds"),
    [
        (NOW - DAY - timedelta(minutes=5), True),
        (NOW - DAY - timedelta(minutes=5) - SECOND, False),
        (NOW + DAY, True),
        (NOW + DAY + SECOND, False),
    ],
)
def test_an_answer_holds_for_its_time(at, holds):
    found = fault(status(), at=at)
    assert found is None if holds else found == f"an answer that does not hold at {at:%F %R}"


def test_an_answer_without_an_end_does_not_hold():
    assert "does not hold" in fault(status(lasts=None))


@pytest.mark.parametrize("bound", ["since", "until"])
def test_a_responder_counts_to_the_second(bound):
    responder = issue("A responder", CA, ca=False, responder=True, **{bound: NOW})
    assert fault(status(signer=responder)) is None


def test_only_the_first_certificate_of_an_answer_is_its_responder():
    responder = issue("A responder", CA, ca=False, responder=True)
    assert fault(status(signer=responder, more=[issue("Another", CA, ca=False)])) is not None


def test_an_answer_has_a_largest_size():
    assert fault(bytes(MAX_ANSWER)) == "an answer that cannot be read"
    assert fault(bytes(MAX_ANSWER + 1)) == "an answer that is too long"
    assert MAX_ANSWER == 16_384


def test_an_answer_about_another_says_nothing():
    assert fault(NVIDIA.status(CA, ROOT)) == fault() == "not stated by the status service"
    assert fault(NVIDIA.status(CA, ROOT), bytes(3)) == "an answer that cannot be read"
    twin = replace(SIGNER, certificate=issue("A RIM Signer", CA, ca=False).certificate)
    assert fault(NVIDIA.status(twin, CA)) == "not stated by the status service"


def test_a_refusal_to_answer_is_no_answer():
    unable = ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER)
    from cryptography.hazmat.primitives.serialization import Encoding

    assert fault(unable.public_bytes(Encoding.DER)) == "an answer without content (try_later)"


@given(st.binary(max_size=200))
def test_any_bytes_are_no_answer(data):
    assert fault(data) is not None


def test_any_flipped_byte_is_no_good_answer():
    good = status()
    for at in range(0, len(good), 7):
        assert fault(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]) is not None, at


def test_the_request_is_a_path():
    seen = set()
    for number in range(64):
        leaf = issue(f"Number {number}", CA, ca=False).certificate
        path = status_path(leaf, CA.certificate)
        assert re.fullmatch("/([A-Za-z0-9]|%2[BF]|%3D)+", path)
        asked = ocsp.load_der_ocsp_request(base64.b64decode(unquote(path[1:]), validate=True))
        assert asked.serial_number == leaf.serial_number
        seen |= set(re.findall("%..", path))
    assert seen >= {"%2B", "%2F"}
