# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The receipt of the guest's own code, and every forgery of it, before a verifier that shares no line with cvmtool."""

import ast
import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from tests.independent import verify_receipt
from tests.independent.verify_receipt import RefusedError, verify
from tests.receipts import NOW, TAMPERINGS, Receipt

SCRIPT = Path(verify_receipt.__file__)


@pytest.fixture(scope="module")
def receipt(tmp_path_factory):
    return Receipt(tmp_path_factory.mktemp("receipt"))


def judge(receipt, data=None, **changes):
    expected = {"root": receipt.root, "measurement": receipt.guest.facts.digest(), "at": NOW}
    return verify(receipt.data if data is None else data, **{**expected, **changes})


def test_it_shares_nothing_with_cvmtool():
    names = set()
    for node in ast.walk(ast.parse(SCRIPT.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).partition(".")[0])
    foreign = names - set(sys.stdlib_module_names)
    assert foreign == {"cryptography", "google", "in_toto_attestation", "securesystemslib"}


def test_a_genuine_receipt_holds(receipt):
    statement = judge(receipt)
    assert statement["predicate"]["attestation"]["simulated"] is True
    assert [item["name"] for item in statement["subject"]] == [item.name for item in receipt.statement.outputs]
    assert judge(receipt, manifest=receipt.guest.manifest.encode()) == statement


@pytest.mark.parametrize("name", TAMPERINGS)
def test_a_forgery_is_refused(receipt, name):
    with pytest.raises(RefusedError):
        judge(receipt, TAMPERINGS[name](receipt))


def test_another_expectation_refuses_it(receipt):
    for changes in (
        {"root": b"o" * 32},
        {"measurement": b"o" * 48},
        {"at": NOW + timedelta(days=365 * 40)},
        {"manifest": receipt.guest.manifest.encode() + b" "},
    ):
        with pytest.raises(RefusedError):
            judge(receipt, **changes)


def test_as_a_program(receipt, tmp_path):
    path = tmp_path / "receipt.json"
    command = [sys.executable, "-I", str(SCRIPT), str(path), "--root", receipt.root.hex()]
    command += ["--measurement", receipt.guest.facts.digest().hex()]
    path.write_text(json.dumps(json.loads(receipt.data), indent=1))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["builder"] == "urn:cvmtool:simulated-guest:v1"
    path.write_bytes(TAMPERINGS["a bit of the signature"](receipt))
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "refused" in refused.stderr
