# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest

from cvmtool.errors import AppraisalError, ConfigError, VerificationError
from cvmtool.formats.packheader import Metadata, Sensitivity
from cvmtool.owner.keystore import OwnerKeys
from cvmtool.owner.packsign import refuse_unscrubbed, sign_header, verify_header
from tests.samples import pack
from tests.unit.formats.test_packheader import header

KEYS, OTHER = OwnerKeys(b"seed" * 8), OwnerKeys(b"SEED" * 8)
RAW = header(lineage=header().lineage[1:])
SCRUBBED = header()


def test_what_was_signed_verifies():
    signed = sign_header(header(), KEYS)
    assert signed.owner_key == KEYS.public.hex()
    verify_header(signed)


CHANGES = {
    "pack": pack("other"),
    "metadata": Metadata(sensitivity=Sensitivity.PUBLIC),
    "lineage": header().lineage[:1],
    "owner_key": OTHER.public.hex(),
    "signature": "22" * 64,
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_change_is_not_signed(field):
    with pytest.raises(VerificationError):
        verify_header(replace(sign_header(header(), KEYS), **{field: CHANGES[field]}))


@pytest.mark.parametrize(
    "inputs",
    [{}, {"a": None}, {"a": SCRUBBED}, {"a": replace(RAW, metadata=Metadata())}],
    ids=len,
)
def test_what_is_not_personal_or_was_scrubbed_needs_nothing(inputs):
    assert refuse_unscrubbed(inputs, []) == ()


def test_every_personal_input_that_was_not_scrubbed_is_found():
    with pytest.raises(AppraisalError) as refusal:
        refuse_unscrubbed({"a": RAW, "b": SCRUBBED, "c": RAW, "d": RAW}, ["c"])
    assert [finding.field for finding in refusal.value.findings] == ["inputs.a", "inputs.d"]
    first = refusal.value.findings[0]
    assert (first.code, first.actual, first.required) == (
        "unscrubbed-input",
        "sensitivity personal, never scrubbed",
        "scrubbed, or named under waive:",
    )


def test_a_waiver_lets_through_what_it_names():
    assert refuse_unscrubbed({"a": RAW, "b": None}, ["a"]) == ("a",)


@pytest.mark.parametrize(
    ("name", "reason"), [("missing", "is no input of the job"), ("b", "needs no waiver"), ("c", "needs no waiver")]
)
def test_a_waiver_that_is_not_needed_is_refused(name, reason):
    with pytest.raises(ConfigError, match=f"'{name}', which {reason};"):
        refuse_unscrubbed({"a": RAW, "b": SCRUBBED, "c": None}, ["a", name])
