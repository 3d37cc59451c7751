# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A refusal says what to do next, with commands that can be run as they stand."""

import shlex
from dataclasses import replace
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from cvmtool.cli.app import app
from cvmtool.config import load_settings
from cvmtool.dryrun.faults import Fault
from cvmtool.errors import CvmError
from cvmtool.flows.attach import Challenge, judge
from cvmtool.formats.channel import Open
from cvmtool.formats.job import Resources
from cvmtool.formats.manifest import Mode
from cvmtool.measure.hashes import kernel_hashes
from tests import fakes, samples
from tests.fakes.guest import OWNER, FakeGuest
from tests.unit.image.images import FIRMWARE, LINE, make_image


def refused(folder, guest, policy):
    """Return the refusal of what `guest` shows, by `policy`."""
    session = guest.session(policy=policy)
    challenge = Challenge(
        keys=OWNER, manifest=guest.manifest, policy=policy, cases_dir=load_settings().cases_dir, boot_seconds=1.0
    )
    launch = SimpleNamespace(
        bundle=SimpleNamespace(folder=folder), mode=Mode.DRYRUN, resources=guest.manifest.resources
    )
    opened = Open(nonce=session.nonce, owner_key=OWNER.public, manifest_sha256=guest.manifest.sha256)
    session.challenge()
    with pytest.raises(CvmError) as error:
        judge(session, guest.answer(opened), challenge, SimpleNamespace(launch=launch))
    return error.value


def commands(error):
    return [shlex.split(part.partition("cvmtool ")[2]) for part in error.hint.split("; ") if "cvmtool " in part]


def test_another_launch_is_explained_by_the_command_of_the_hint(tmp_path, monkeypatch):
    resources = Resources(vcpus=1, memory_mib=1024, cpu="EPYC-Genoa")
    guest = FakeGuest(tmp_path / "guest", replace(samples.manifest(owner_key=OWNER.public.hex()), resources=resources))
    line = f"{LINE} cvmtool.dryrun=1"
    launched = replace(
        guest.facts, firmware=FIRMWARE, hash_table=kernel_hashes(b"kernel", b"initrd", line).table(), vcpus=3
    )
    guest._psp = type(guest._psp)(fakes.fake_amd(), launched)
    error = refused(make_image(tmp_path / "an image"), guest, guest.policy(measurements=frozenset({b"M" * 48})))
    explain, replay = commands(error)
    assert replay[:2] == ["attest", "replay"]
    result = CliRunner().invoke(app, explain)
    assert result.stdout == "launched with 3 vCPUs; expected: 1 vCPU\n"


def test_another_refusal_is_not_explained_that_way(tmp_path):
    guest = FakeGuest(tmp_path / "guest", fault=Fault.DEBUG_POLICY)
    (replay,) = commands(refused(tmp_path, guest, guest.policy()))
    assert replay[:2] == ["attest", "replay"]
