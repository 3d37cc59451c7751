# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from cvmtool.dryrun.faults import Fault
from cvmtool.errors import ConfigError, CvmError, HostError, VerificationError
from cvmtool.flows.collateral import KeyService, Store
from cvmtool.flows.platform import DryRun, SevSnp
from cvmtool.formats.certtable import CertKind, CertTable, parse_cert_table
from cvmtool.formats.manifest import Mode
from cvmtool.owner.amdroots import AmdRoots, SimulatedRoot
from cvmtool.owner.policy import baseline
from cvmtool.owner.session import judge_evidence
from tests import fakes
from tests.unit.flows.test_collateral import AMD, Server

NOW = datetime.now(UTC)
ROOT = SimulatedRoot(AMD.root_fingerprint)
POLICY = baseline(roots=ROOT, measurements=frozenset({fakes.FACTS.digest()}), host_data=frozenset({fakes.HOST_DATA}))


@pytest.fixture
def server():
    running = Server()
    yield running
    running.close()


@pytest.fixture
def hardware(tmp_path, server):
    """The platform of real machines, asking a key service of this machine and believing its root."""
    service = KeyService(server.url, sleep=lambda _: None)
    return SevSnp(store=Store(tmp_path / "kds"), service=service, roots=ROOT)


def without(evidence, *kinds):
    table = parse_cert_table(evidence.cert_table)
    kept = tuple((kind, blob) for kind, blob in table.entries if kind not in kinds)
    return replace(evidence, cert_table=CertTable(kept).encode())


def judged(evidence):
    return judge_evidence(evidence, policy=POLICY, nonce=fakes.NONCE, host_data=fakes.HOST_DATA, at=NOW)


def test_the_two_differ_in_command_line_root_and_processor(tmp_path):
    hardware, dry = SevSnp(store=Store(tmp_path), service=None), DryRun(amd=AMD)
    assert (hardware.mode, dry.mode) == (Mode.PRODUCTION, Mode.DRYRUN)
    assert (hardware.roots, dry.roots) == (AmdRoots(), ROOT)
    with hardware.processor(None):  # nothing of ours answers the guest
        pass


@pytest.mark.parametrize(
    "kinds",
    [
        (CertKind.CRL,),
        (CertKind.ASK, CertKind.ARK, CertKind.CRL),
        (CertKind.VCEK, CertKind.ASK, CertKind.ARK, CertKind.CRL),
    ],
    ids=["no list", "no chain", "nothing"],
)
def test_what_the_host_withholds_is_fetched(hardware, kinds):
    shown = without(fakes.launch(AMD), *kinds)
    with pytest.raises(CvmError):
        judged(shown)
    complete = hardware.complete(shown, NOW)
    assert judged(complete).simulated
    assert hardware.complete(complete, NOW) == complete


def test_what_the_host_hands_over_is_not_asked_for(hardware, server):
    shown = fakes.launch(AMD)
    assert hardware.complete(shown, NOW) == shown
    assert server.asked == []


def test_without_a_service_what_is_missing_is_named(tmp_path):
    offline = SevSnp(store=Store(tmp_path), service=None, roots=ROOT)
    with pytest.raises(HostError, match="nothing may be fetched"):
        offline.complete(without(fakes.launch(AMD), CertKind.CRL), NOW)


def test_evidence_that_verifies_with_nothing_is_left_for_the_judge(hardware):
    forged = without(fakes.launch(AMD, Fault.BAD_SIGNATURE), CertKind.CRL)
    assert hardware.complete(forged, NOW) == forged
    with pytest.raises(VerificationError):
        judged(forged)


def wants(gpus):
    return SimpleNamespace(resources=SimpleNamespace(gpus=gpus))


def test_a_job_without_gpus_has_none_to_verify(hardware):
    for platform in (hardware, DryRun(amd=AMD)):
        assert platform.verify_gpus(None, None, wants(0), keep=None) is None


def test_a_job_with_gpus_and_without_a_policy_goes_no_further(hardware):
    with pytest.raises(ConfigError, match="GPU policy"):
        hardware.verify_gpus(None, None, wants(1), keep=None)
    with pytest.raises(ConfigError, match="a dry run has none"):
        DryRun(amd=AMD).verify_gpus(None, None, wants(1), keep=None)


def test_a_dry_run_asks_nobody():
    shown = without(fakes.launch(AMD), CertKind.CRL)
    assert DryRun(amd=AMD).complete(shown, NOW) is shown
