# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import inspect

import pytest

from cvmtool import errors
from cvmtool.errors import AppraisalError, CvmError, Finding

CODES = {
    "CvmError": 1,
    "ConfigError": 3,
    "FormatError": 4,
    "VerificationError": 5,
    "AppraisalError": 6,
    "FreshnessError": 7,
    "HostError": 8,
    "BuildError": 9,
    "JobError": 10,
}


def test_the_exit_codes_are_those_that_scripts_rely_on():
    found = {
        name: kind.exit_code for name, kind in inspect.getmembers(errors, inspect.isclass) if hasattr(kind, "exit_code")
    }
    assert found == CODES


@pytest.mark.parametrize("name", [name for name in CODES if name != "AppraisalError"])
def test_an_error_has_a_message_a_detail_and_a_hint(name):
    error = getattr(errors, name)("message", detail="detail", hint="hint")
    assert isinstance(error, CvmError)
    assert (str(error), error.message, error.detail, error.hint) == ("message", "message", "detail", "hint")
    bare = getattr(errors, name)("message")
    assert (bare.detail, bare.hint) == (None, None)


def test_a_refusal_holds_every_finding():
    findings = tuple(Finding(code=f"c{n}", field="f", actual="a", required="r") for n in range(3))
    error = AppraisalError("message", findings=findings, hint="hint")
    assert (error.findings, error.hint) == (findings, "hint")
    with pytest.raises(TypeError):
        AppraisalError("message")


def test_the_docstring_tells_the_codes():
    for name, code in CODES.items():
        if name != "CvmError":
            assert any(name in line and line.rstrip().endswith(str(code)) for line in errors.__doc__.splitlines()), name
