# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import ast
from pathlib import Path

import pytest

from cvmtool import owner
from cvmtool.formats.policybits import PLATFORM_BITS, POLICY_BITS
from cvmtool.owner.checks import Check
from cvmtool.owner.plain import GPU_QUESTIONS, QUESTIONS, Answer, explain

FOLDER = Path(owner.__file__).parent


def check(code, *, passed=True):
    return Check(code=code, actual="this", required="that", passed=passed, why="a reason")


def codes():
    """Every code that a check of the owner is made with, out of the source."""
    found = {f"policy-{name}" for name in POLICY_BITS} | {f"platform-{name}" for name in PLATFORM_BITS}
    found |= {"family-id", "image-id", "report-data"}
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in {"Check", "_check"} and node.args:
                first = node.args[0]
                found |= {first.value} if isinstance(first, ast.Constant) else set()
    return found


def test_every_check_answers_one_question():
    assert len(codes()) > 40
    asked = {code: sum(question.asks(code) for question in (*QUESTIONS, *GPU_QUESTIONS)) for code in codes()}
    assert asked == dict.fromkeys(codes(), 1)


def test_every_question_is_one():
    assert all(question.text.endswith("?") for question in (*QUESTIONS, *GPU_QUESTIONS))
    assert list(Answer) == ["no", "perhaps", "nobody looked"]


def test_every_question_has_a_check():
    for question in (*QUESTIONS, *GPU_QUESTIONS):
        for own in question.codes:
            assert any(code == own or (own.endswith("-") and code.startswith(own)) for code in codes()), own


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.text)
def test_an_answer_follows_from_the_checks(question):
    def answer(*checks):
        return next(s for s in explain(checks, unchecked=(), simulated=False) if s.question == question.text)

    code = next(code for code in sorted(codes()) if question.asks(code))
    assert answer().answer is Answer.UNKNOWN
    assert answer(check(code)).answer is Answer.NO
    assert answer(check(code)).reason == question.no
    assert answer().reason == question.unknown
    assert "; " + check(code).sentence() in answer(*[check(code, passed=False)] * 2).reason
    failed = answer(check(code), check(code, passed=False))
    assert failed.answer is Answer.PERHAPS
    assert "this; required: that (a reason)" in failed.reason
    assert answer(check("something-else")).answer is Answer.UNKNOWN
    assert failed.sentence().startswith(question.text)


def test_gpus_are_asked_about_where_there_are_any():
    def answers(*checks, unchecked=()):
        return [s.answer for s in explain(checks, unchecked=unchecked, simulated=False)[len(QUESTIONS) :]]

    genuine, measured, listed = check("gpu-nonce"), check("gpu-measurements"), check("gpu-device")
    assert answers() == answers(check("measurement")) == []
    assert answers(genuine, measured, listed) == [Answer.NO] * 3
    assert answers(genuine, measured) == [Answer.NO, Answer.NO, Answer.UNKNOWN]
    assert answers(genuine, measured, unchecked=["gpu-revocation"])[0] is Answer.UNKNOWN
    assert answers(genuine, check("gpu-mode", passed=False))[1] is Answer.PERHAPS


def test_a_chip_that_nobody_listed_leaves_the_question_open():
    checks = [check("product-allowed")]
    (closed,) = [s for s in explain(checks, unchecked=(), simulated=False) if s.answer is Answer.NO]
    (left,) = [s for s in explain(checks, unchecked=("chips",), simulated=False) if s.question == closed.question]
    assert left.answer is Answer.UNKNOWN
    assert "chips" in left.reason
    first = explain([check("signature")], unchecked=("chips",), simulated=False)[0]
    assert first.answer is Answer.NO


def test_a_dry_run_is_never_said_to_keep_a_secret():
    first, *rest = explain([check("signature")], unchecked=(), simulated=True)
    assert first.answer is Answer.PERHAPS
    assert first.sentence() == (
        "could the host read the data? perhaps: "
        "this is a dry run: nothing is encrypted, and whoever runs the host can read everything"
    )
    assert tuple(rest) == explain([check("signature")], unchecked=(), simulated=False)
