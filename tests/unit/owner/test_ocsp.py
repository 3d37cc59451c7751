# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import base64
from urllib.parse import unquote

import pytest
from cryptography.x509 import ocsp
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.owner.ocsp import status_fault, status_path
from tests.fakes.nvidia import DAY, NOW, FakeNvidia, issue

NVIDIA = FakeNvidia()
CA, ROOT = NVIDIA.rim_ca, NVIDIA.rim_root
SIGNER = NVIDIA.rim_signer


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
    ],
    ids=["not made one", "self-made", "expired", "made by the certificate itself"],
)
def test_nobody_else_may(responder):
    assert "nobody entitled" in fault(status(signer=responder))


def test_one_word_of_revocation_outweighs_the_rest():
    revoked = status(status=ocsp.OCSPCertStatus.REVOKED)
    assert fault(revoked) == fault(status(), revoked) == fault(revoked, status()) == "revoked"


def test_unknown_is_not_good():
    assert "unknown" in fault(status(status=ocsp.OCSPCertStatus.UNKNOWN))


@pytest.mark.parametrize("at", [NOW - 2 * DAY, NOW + 2 * DAY])
def test_an_answer_holds_for_its_time(at):
    assert "does not hold" in fault(status(), at=at)


def test_an_answer_about_another_says_nothing():
    assert "not stated" in fault(NVIDIA.status(CA, ROOT))
    assert "not stated" in fault()


def test_a_refusal_to_answer_is_no_answer():
    unable = ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER)
    from cryptography.hazmat.primitives.serialization import Encoding

    assert "try_later" in fault(unable.public_bytes(Encoding.DER))


@given(st.binary(max_size=200))
def test_any_bytes_are_no_answer(data):
    assert fault(data) is not None


def test_any_flipped_byte_is_no_good_answer():
    good = status()
    for at in range(0, len(good), 7):
        assert fault(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]) is not None, at


def test_the_request_is_a_path():
    path = status_path(SIGNER.certificate, CA.certificate)
    assert path.startswith("/")
    assert "/" not in path[1:]
    asked = ocsp.load_der_ocsp_request(base64.b64decode(unquote(path[1:])))
    assert asked.serial_number == SIGNER.certificate.serial_number
