# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cvmtool.dryrun.psp import SimulatedPsp
from cvmtool.errors import AppraisalError
from cvmtool.formats.idblock import IdBlock, LaunchIdentity
from cvmtool.formats.policybits import GuestPolicy
from cvmtool.formats.report import parse_report
from cvmtool.formats.reportmsg import ReportRequest
from cvmtool.owner.launchsign import public_key, sign_launch
from tests import fakes

ID_KEY, AUTHOR_KEY = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
BLOCK = IdBlock(
    digest=fakes.FACTS.digest(),
    policy=GuestPolicy(fakes.FACTS.policy),
    guest_svn=7,
    family_id=b"F" * 16,
    image_id=b"I" * 16,
)


def launched(block=BLOCK, auth=None, **facts):
    identity = LaunchIdentity(block=block, auth=auth or sign_launch(block, ID_KEY))
    psp = SimulatedPsp(fakes.fake_amd(), replace(fakes.FACTS, identity=identity, **facts))
    return parse_report(psp.report(ReportRequest(report_data=b"D" * 64)))


def test_what_the_owner_signed_stands_in_the_report():
    report = launched()
    assert report.id_key_digest == public_key(ID_KEY).digest
    assert report.author_key_digest == bytes(48)
    assert report.author_key_en is False
    assert (report.guest_svn, report.family_id, report.image_id) == (7, b"F" * 16, b"I" * 16)


def test_an_author_stands_in_it_too():
    report = launched(auth=sign_launch(BLOCK, ID_KEY, AUTHOR_KEY))
    assert report.author_key_digest == public_key(AUTHOR_KEY).digest
    assert report.author_key_en is True


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"block": replace(BLOCK, digest=bytes(48))}, "BAD_MEASUREMENT"),
        ({"vcpus": 3}, "BAD_MEASUREMENT"),
        ({"block": replace(BLOCK, policy=GuestPolicy(0x20000))}, "POLICY_FAILURE"),
        ({"policy": 0xB0000}, "POLICY_FAILURE"),
        ({"auth": sign_launch(replace(BLOCK, guest_svn=8), ID_KEY)}, "BAD_SIGNATURE"),
        (
            {
                "auth": replace(
                    sign_launch(BLOCK, ID_KEY, AUTHOR_KEY),
                    author=sign_launch(BLOCK, AUTHOR_KEY, ID_KEY).author,
                )
            },
            "BAD_SIGNATURE",
        ),
    ],
)
def test_another_launch_than_the_signed_one_is_never_finished(change, status):
    with pytest.raises(AppraisalError, match=status) as refusal:
        launched(**change)
    assert refusal.value.findings[0].code == "launch-identity"
