# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A guest is a job's or a machine's, by the manifest that its launch commits to, and stays that. Jobs: test_job.py."""

import dataclasses
import hashlib

import pytest

from cvmtool.formats.channel import Open
from cvmtool.formats.control import ControlError
from cvmtool.formats.evidence import Evidence, host_data, report_data
from cvmtool.guest.attest import Attested
from cvmtool.guest.console import Console
from cvmtool.guest.keys import BootKeys
from cvmtool.guest.life import Life
from cvmtool.guest.machine import Machine
from cvmtool.guest.refusal import RefusedError
from cvmtool.guest.shell import Shell
from tests.fakes.kernel import OtherKernel
from tests.unit.formats.test_machine import MANIFEST
from tests.unit.guest import samples

KEYS = BootKeys()


def attested(data, owner=MANIFEST.owner_key):
    owner_key, sha256 = bytes.fromhex(owner), hashlib.sha256(data).digest()
    launched = host_data(owner_key=owner_key, manifest_sha256=sha256)
    keys = {"ssh_host_key": KEYS.ssh_host_key, "hpke_key": KEYS.hpke_key, "receipt_key": KEYS.receipt_key}
    bound = report_data(nonce=b"n" * 32, host_data=launched, **keys)
    return Attested(
        challenge=Open(nonce=b"n" * 32, owner_key=owner_key, manifest_sha256=sha256),
        evidence=Evidence(report=samples.report(bound, launched), cert_table=b"", **keys),
        report_data=bound,
        host_data=launched,
    )


@pytest.fixture
def kernel():
    return OtherKernel()


@pytest.fixture
def make(tmp_path, kernel):
    (tmp_path / "console").touch()

    def make(data, *, allowed=True, owner=MANIFEST.owner_key):
        return Life(
            KEYS,
            lambda: attested(data, owner),
            Console(tmp_path / "console"),
            make_job=lambda *_: pytest.fail("it is a machine"),
            make_machine=lambda manifest: Machine(manifest, Shell(allowed=allowed)),
            kernel=kernel,
        )

    return make


def refused(call, *arguments, **named):
    with pytest.raises(RefusedError) as caught:
        call(*arguments, **named)
    return caught.value.error


def test_a_machine(make, tmp_path):
    life = make(MANIFEST.encode())
    assert life.status() == {"stage": "waiting", "exit_code": None}
    life.configure(MANIFEST.encode(), certificates=b"")
    machine = life.role
    life.configure(MANIFEST.encode(), certificates=b"")
    assert life.role is machine
    assert life.status()["stage"] == "configured"
    assert (tmp_path / "console").read_text() == "CVM-STAGE attested\n"


def test_the_kernel_is_closed_before_anything_of_a_manifest_is_done(make, kernel):
    life = make(MANIFEST.encode())
    assert kernel.told == []
    life.configure(MANIFEST.encode(), certificates=b"")
    life.configure(MANIFEST.encode(), certificates=b"")
    assert kernel.told == ["lock down"]


def test_a_machine_has_no_job(make):
    life = make(MANIFEST.encode())
    life.configure(MANIFEST.encode(), certificates=b"")
    assert refused(lambda: life.job) is ControlError.ORDER


def test_before_the_manifest_there_is_nothing(make):
    life = make(MANIFEST.encode())
    for call in (lambda: life.job, lambda: life.role, lambda: life.release(b"")):
        assert refused(call) is ControlError.ORDER
    life.forget()


def test_a_manifest_of_another_launch(make):
    other = dataclasses.replace(MANIFEST, shell=False).encode()
    life = make(MANIFEST.encode())
    assert refused(life.configure, other, certificates=b"") is ControlError.MANIFEST


def test_a_manifest_of_another_owner(make):
    life = make(MANIFEST.encode(), owner="0c" * 32)
    assert refused(life.configure, MANIFEST.encode(), certificates=b"") is ControlError.MANIFEST


def test_a_shell_that_the_image_does_not_give(make):
    life = make(MANIFEST.encode(), allowed=False)
    assert refused(life.configure, MANIFEST.encode(), certificates=b"") is ControlError.SHELL
    assert life.status()["stage"] == "waiting"
