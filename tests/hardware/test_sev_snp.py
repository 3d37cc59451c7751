# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A real launch, on the host that CVMTOOL_HOST names or on this one: everything that docs/limitations.md calls unproven.

Needs a host on which `cvmtool doctor` ends with SEV-SNP, and AMD's key service (or CVMTOOL_KDS). Elsewhere it skips and says why.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cvmtool.cli.render import JsonReporter
from cvmtool.config import Settings, load_settings
from cvmtool.errors import CvmError, HostError
from cvmtool.flows.attach import Challenge, attach
from cvmtool.flows.doctor import examine
from cvmtool.flows.machine import start_machine
from cvmtool.flows.platform import SevSnp, sev_snp
from cvmtool.flows.prepare import Prepared
from cvmtool.flows.train import BOOT_SECONDS, job_policy, train
from cvmtool.formats.idblock import LaunchIdentity
from cvmtool.formats.manifest import Mode
from cvmtool.owner.kds import AMD_URL
from cvmtool.owner.launchsign import public_key, sign_launch
from cvmtool.owner.policyfile import parse_policy
from cvmtool.owner.receipts import verify_receipt

pytestmark = [pytest.mark.hardware, pytest.mark.vm, pytest.mark.image]


@pytest.fixture(scope="module")
def there(settings: Settings) -> Settings:
    """The tests' own places, but for the host and what it holds."""
    account = load_settings()
    return replace(settings, host=account.host, machines_dir=account.machines_dir)


@pytest.fixture(scope="module")
def platform(there: Settings) -> SevSnp:
    try:
        found = examine(there, dry_run=False, step=lambda _text: None)
    except CvmError as error:
        pytest.skip(f"the host cannot be asked: {error.message}")
    if found.best != "sev-snp":
        obstacle = found.obstacles.get("sev-snp")
        pytest.skip(f"this host has no SEV-SNP: {obstacle.evidence if obstacle else 'cvmtool doctor says why'}")
    return sev_snp(there, key_service=AMD_URL)


def test_a_training_on_hardware_ends_with_a_receipt_that_is_not_simulated(
    platform: SevSnp,
    prepared: Prepared,
    settings: Settings,
    tmp_path: Path,
) -> None:
    done = train(prepared, platform=platform, settings=there, reporter=JsonReporter(), results=tmp_path / "results")
    policy = parse_policy((done.job.path / "policy.toml").read_text())
    verified = verify_receipt((done.folder / "receipt.json").read_bytes(), policy, datetime.now(UTC))
    assert verified.guest.simulated is False
    assert verified.statement.simulated is False


def test_the_processor_measures_what_the_manifest_says(
    platform: SevSnp,
    prepared: Prepared,
    settings: Settings,
) -> None:
    manifest, keys = prepared.manifest, prepared.keys
    policy = job_policy(prepared.bundle, manifest, platform, id_key=public_key(keys.launch_key()))
    machine = start_machine(
        "hardware-measured", prepared.launch(Mode.PRODUCTION), settings=there, reporter=JsonReporter()
    )
    challenge = Challenge(
        keys=keys, manifest=manifest, policy=policy, cases_dir=there.cases_dir, boot_seconds=BOOT_SECONDS
    )
    try:
        with attach(machine, challenge, platform, stage=lambda _stage, _text: nullcontext()) as attached:
            resources = manifest.resources
            expected = prepared.bundle.manifest.launch_digest(Mode.PRODUCTION, resources.cpu, resources.vcpus)
            assert attached.guest.report.measurement == expected
            assert attached.guest.report.host_data == manifest.host_data
            assert attached.guest.report.id_key_digest == public_key(keys.launch_key()).digest
    finally:
        machine.remove()


def test_firmware_finishes_no_other_launch_than_the_signed_one(
    platform: SevSnp,
    prepared: Prepared,
    settings: Settings,
) -> None:
    launch = prepared.launch(Mode.PRODUCTION)
    assert platform.mode is Mode.PRODUCTION
    assert launch.identity is not None
    other = replace(launch.identity.block, digest=bytes(48))
    signed = LaunchIdentity(block=other, auth=sign_launch(other, prepared.keys.launch_key()))
    with pytest.raises(HostError) as refusal:
        start_machine(
            "hardware-refused", replace(launch, identity=signed), settings=there, reporter=JsonReporter()
        ).remove()
    assert "measurement" in f"{refusal.value.message} {refusal.value.detail} {refusal.value.hint}".lower()
