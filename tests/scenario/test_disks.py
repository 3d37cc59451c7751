# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Disks that a host changes under a running job or withholds. Those that it exchanges are a drill's (test_attacks.py)."""

from __future__ import annotations

import hashlib
import random
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from cvmtool.cli.render import JsonReporter
from cvmtool.config import Settings
from cvmtool.errors import CvmError
from cvmtool.flows.hostile import Tamper, flip_byte, hostile
from cvmtool.flows.jobs import JobState, load_jobs
from cvmtool.flows.platform import dry_run
from cvmtool.flows.prepare import Prepared, prepare
from cvmtool.flows.train import train
from cvmtool.formats.pack import BLOCK, HEADER_SIZE
from cvmtool.host.files import HostFiles
from cvmtool.host.live import LiveDomain
from cvmtool.image.bundle import Bundle
from tests.scenario.conftest import PLAINTEXT, small_job

pytestmark = [pytest.mark.vm, pytest.mark.image]


def disk_of(prepared: Prepared, live: LiveDomain, name: str) -> str:
    serial = next(pack.descriptor.serial for pack in prepared.packs if pack.descriptor.name == name)
    return next(disk.path for disk in live.disks if disk.serial == serial)


def refused(prepared: Prepared, settings: Settings, tamper: Tamper, results: Path) -> CvmError:
    with pytest.raises(CvmError) as error:
        train(
            prepared,
            platform=dry_run(settings),
            settings=settings,
            reporter=JsonReporter(),
            results=results,
            open_host=hostile(tamper),
        )
    assert list(results.rglob("*.safetensors")) == []
    return error.value


def test_a_block_flipped_under_the_data_ends_without_results(
    prepared: Prepared, settings: Settings, tmp_path: Path
) -> None:
    """The block is read by the job alone, long after the keys were released: whatever the job made of it, nothing comes home."""

    def tamper(live: LiveDomain, xml: str, files: HostFiles) -> str:
        pack = next(pack.descriptor for pack in prepared.packs if pack.descriptor.name == "data")
        payload = pack.data_blocks * BLOCK - HEADER_SIZE
        flip_byte(files, disk_of(prepared, live, "data"), HEADER_SIZE + payload // 2)
        return xml

    error = refused(prepared, settings, tamper, tmp_path / "out")
    assert error.exit_code == 5
    assert "data" in error.message
    assert list(load_jobs(settings.jobs_dir))[-1].record.state is JobState.REFUSED


def test_a_withheld_disk_is_named(prepared: Prepared, settings: Settings, tmp_path: Path) -> None:
    def tamper(live: LiveDomain, xml: str, _files: HostFiles) -> str:
        path = disk_of(prepared, live, "model")
        root = ET.fromstring(xml)
        devices = root.find("devices")
        assert devices is not None
        for disk in devices.findall("disk"):
            source = disk.find("source")
            if source is not None and source.get("file") == path:
                devices.remove(disk)
        return ET.tostring(root, encoding="unicode")

    error = refused(prepared, settings, tamper, tmp_path / "out")
    assert error.exit_code == 8  # the host did not bring what it was given: no forgery, no service
    assert "pack-missing" in error.message


REGIONS = 4
ROUNDS = 1000


@pytest.mark.soak
def test_a_byte_flipped_anywhere_on_any_disk_gives_no_wrong_result(
    example: Path, bundle: Bundle, settings: Settings, tmp_path: Path
) -> None:
    """In each region of each disk: a refusal, a guest that ends, or the right result of a run that never read there."""
    job = small_job(tmp_path, example, ROUNDS)
    prepared = prepare(job, bundle, settings=settings, reporter=JsonReporter())
    right = PLAINTEXT * 4096
    for _ in range(ROUNDS):
        right = hashlib.sha256(right).digest()
    where = random.Random(0)
    ended: dict[tuple[int, int], str] = {}
    for disk in range(1 + len(prepared.packs)):
        for region in range(REGIONS):

            def tamper(live: LiveDomain, xml: str, files: HostFiles, disk: int = disk, region: int = region) -> str:
                path = live.disks[disk].path
                size = files.size(path) or 0
                flip_byte(files, path, where.randrange(size * region // REGIONS, size * (region + 1) // REGIONS))
                return xml

            results = tmp_path / f"{disk}-{region}"
            try:
                train(
                    prepared,
                    platform=dry_run(settings),
                    settings=settings,
                    reporter=JsonReporter(),
                    results=results,
                    open_host=hostile(tamper),
                    boot_seconds=60,
                )
            except CvmError as error:
                assert not (results / "out").exists()
                ended[disk, region] = f"{error.exit_code}: {error.message}"
            else:
                assert (results / "out").read_bytes() == right
                ended[disk, region] = "the right result"
    # Most of a container is read by nobody; what is in the header and the hash tree is read at once.
    assert len([ending for ending in ended.values() if ending != "the right result"]) >= 2, ended
