# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import pytest

from cvmtool.owner.checks import Check, NotGenuineError

CHECK = Check("tcb-binding", "snp=1", "snp=2", passed=False, why="an older key may have leaked")


def test_a_check_names_itself_in_words_and_as_json():
    assert CHECK.title == "tcb binding"
    assert CHECK.to_json() == {
        "code": "tcb-binding",
        "title": "tcb binding",
        "actual": "snp=1",
        "required": "snp=2",
        "passed": False,
        "why": "an older key may have leaked",
    }
    assert list(CHECK.to_json())[:2] == ["code", "title"]


def test_a_failed_check_is_a_sentence_a_finding_and_an_error():
    assert CHECK.sentence() == "tcb binding is snp=1; required: snp=2"
    finding = CHECK.finding()
    assert (finding.code, finding.field, finding.why) == ("tcb-binding", "tcb binding", CHECK.why)
    error = NotGenuineError(CHECK)
    assert (error.check, error.message, error.detail) == (CHECK, CHECK.sentence(), f"tcb-binding: {CHECK.why}")


def test_a_check_cannot_be_changed():
    with pytest.raises(AttributeError):
        CHECK.passed = True
