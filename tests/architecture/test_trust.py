# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Trust is a type: one module makes each kind of it, and a secret is sealed to a `VerifiedGuest` alone."""

import ast
import inspect
from typing import get_type_hints

import pytest

from tests.architecture.source import MODULES, Module

MAKERS = {
    "AuthenticReport": "owner/verify.py",
    "VerifiedGuest": "owner/appraise.py",
    "AuthenticGpu": "owner/gpu.py",
    "VerifiedGpus": "owner/gpu.py",
    "ReferenceManifest": "owner/rim.py",
}
# `replace` copies a dataclass with other values; the token that its maker demands is no field, so it cannot be copied.
SEALERS = {"flows/party.py", "flows/run.py", "flows/vmsession.py"}


def makes(module: Module, name: str) -> bool:
    """Whether a module calls `name(...)`, `x.name(...)`, or `object.__new__(name)`."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            called = node.func
            if (called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", None)) == name:
                return True
            is_new = isinstance(called, ast.Attribute) and called.attr == "__new__"
            if is_new and any(getattr(argument, "id", None) == name for argument in node.args):
                return True
    return False


@pytest.mark.parametrize(("name", "maker"), MAKERS.items())
def test_one_module_makes_it(name, maker):
    assert {module.path for module in MODULES if makes(module, name)} == {maker}


def test_nobody_reaches_for_the_tokens():
    reach = {module.path for module in MODULES if "_MADE_HERE" in module.text}
    assert reach == set(MAKERS.values())


def test_an_authentic_report_is_made_of_bytes_and_a_verified_guest_of_an_authentic_report():
    from cvmtool.owner.appraise import VerifiedGuest, appraise
    from cvmtool.owner.verify import AuthenticReport, verify_report

    assert get_type_hints(verify_report)["return"] is AuthenticReport
    hints = get_type_hints(appraise)
    assert (hints["authentic"], hints["return"]) == (AuthenticReport, VerifiedGuest)


def test_only_a_verified_guest_can_be_sealed_to():
    from cvmtool.owner.appraise import VerifiedGuest
    from cvmtool.owner.seal import seal

    assert next(iter(inspect.signature(seal).parameters)) == "guest"
    assert get_type_hints(seal)["guest"] is VerifiedGuest


def test_one_module_seals():
    importers = {
        module.path
        for module in MODULES
        if any(item.module == "cvmtool.owner.seal" and item.name == "seal" for item in module.imports())
    }
    assert importers == SEALERS
    # The library's own way to seal has no other user.
    users = {module.path for module in MODULES if any(item.module.endswith(".hpke") for item in module.imports())}
    assert users == {"owner/seal.py", "guest/life.py"}


@pytest.mark.parametrize(
    "text", ["VerifiedGuest(simulated=False)", "appraise.VerifiedGuest()", "object.__new__(VerifiedGuest)"]
)
def test_another_maker_is_seen(text):
    assert makes(Module("flows/x.py", text), "VerifiedGuest")
