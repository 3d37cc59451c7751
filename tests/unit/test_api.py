# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""docs/reference/api.md: its examples run as they stand, and every name in it exists."""

import contextlib
import importlib
import io
import re
from pathlib import Path

import pytest

from cvmtool.dryrun.faults import Fault
from cvmtool.formats.certtable import CertKind, parse_cert_table
from cvmtool.measure.hashes import kernel_hashes
from cvmtool.measure.launch import launch_digest
from cvmtool.owner.amdroots import SimulatedRoot
from cvmtool.owner.checks import NotGenuineError
from cvmtool.owner.policy import baseline
from cvmtool.owner.policyfile import encode_policy
from tests import fakes
from tests.unit.measure.test_ovmf import firmware

PAGE = (Path(__file__).resolve().parents[2] / "docs/reference/api.md").read_text("utf-8")
VERIFY, MEASURE = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def run(code):
    """Run an example in the working directory; return what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "api.md", "exec"), {})
    return out.getvalue()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(fault=Fault.NONE):
        amd = fakes.fake_amd()
        evidence = fakes.launch(amd, fault)
        table = parse_cert_table(evidence.cert_table)
        root = SimulatedRoot(amd.root_fingerprint)
        policy = baseline(roots=root, measurements=frozenset({fakes.FACTS.digest()}), host_data=None)
        (tmp_path / "report.bin").write_bytes(evidence.report)
        (tmp_path / "vcek.der").write_bytes(table.get(CertKind.VCEK))
        from tests.unit.flows.test_collateral import pem

        (tmp_path / "chain.pem").write_bytes(pem(amd.ask) + pem(amd.ark))
        (tmp_path / "crl.der").write_bytes(table.get(CertKind.CRL))
        (tmp_path / "policy.toml").write_text(encode_policy(policy))

    write()
    return write


def test_the_example_of_verifying_is_short():
    statements = [line for line in VERIFY.splitlines() if line.strip() and not line.startswith(("from ", "import "))]
    assert len(statements) < 15


def test_the_example_of_verifying_accepts_and_refuses(folder):
    assert run(VERIFY) == "accepted\n"
    folder(Fault.DEBUG_POLICY)
    assert run(VERIFY).startswith("refused\n")
    assert "debug" in run(VERIFY)
    folder(Fault.BAD_SIGNATURE)
    with pytest.raises(NotGenuineError):
        run(VERIFY)


def test_the_example_of_measuring(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in (("OVMF.amdsev.fd", firmware()), ("vmlinuz", b"k"), ("initrd", b"i")):
        (tmp_path / name).write_bytes(content)
    expected = launch_digest(firmware(), hashes=kernel_hashes(b"k", b"i", "console=ttyS0"), cpu="EPYC-Genoa", vcpus=4)
    assert run(MEASURE) == expected.hex() + "\n"


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(cvmtool\.[a-z_.]+\.\w+)`", PAGE))))
def test_every_name_exists(name):
    module, _, attribute = name.rpartition(".")
    assert hasattr(importlib.import_module(module), attribute)


def test_names_were_found():
    assert len(set(re.findall(r"`(cvmtool\.[a-z_.]+\.\w+)`", PAGE))) > 15
