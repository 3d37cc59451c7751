# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Disks that a host changes under a running job, exchanges or withholds."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from cvmtool.cli.render import JsonReporter
from cvmtool.config import Settings
from cvmtool.errors import CvmError
from cvmtool.flows.hostile import HostileHost, flip_byte
from cvmtool.flows.jobs import JobState, load_jobs
from cvmtool.flows.machine import connect
from cvmtool.flows.train import Prepared, train
from cvmtool.formats.pack import BLOCK, HEADER_SIZE
from cvmtool.host.hypervisor import Hypervisor
from cvmtool.host.live import LiveDomain

pytestmark = [pytest.mark.vm, pytest.mark.image]


def under(tamper: Callable[[LiveDomain, str], str]) -> Callable[[str, Path], Hypervisor]:
    return lambda uri, log: cast("Hypervisor", HostileHost(connect(uri, log), tamper, None))


def disk_of(prepared: Prepared, live: LiveDomain, name: str) -> str:
    serial = next(pack.descriptor.serial for pack in prepared.packs if pack.descriptor.name == name)
    return next(disk.path for disk in live.disks if disk.serial == serial)


def refused(
    prepared: Prepared, settings: Settings, tamper: Callable[[LiveDomain, str], str], results: Path
) -> CvmError:
    with pytest.raises(CvmError) as error:
        train(prepared, settings=settings, reporter=JsonReporter(), results=results, open_host=under(tamper))
    assert list(results.rglob("*.safetensors")) == []
    return error.value


def test_a_block_flipped_under_the_data_ends_without_results(
    prepared: Prepared, settings: Settings, tmp_path: Path
) -> None:
    """The block is read by the job alone, long after the keys were released: whatever the job made of it, nothing comes home."""

    def tamper(live: LiveDomain, xml: str) -> str:
        pack = next(pack.descriptor for pack in prepared.packs if pack.descriptor.name == "data")
        payload = pack.data_blocks * BLOCK - HEADER_SIZE
        flip_byte(disk_of(prepared, live, "data"), HEADER_SIZE + payload // 2)
        return xml

    error = refused(prepared, settings, tamper, tmp_path / "out")
    assert error.exit_code == 5
    assert "data" in error.message
    assert list(load_jobs(settings.jobs_dir))[-1].record.state is JobState.REFUSED


def test_a_disk_of_another_pack_is_refused(prepared: Prepared, settings: Settings, tmp_path: Path) -> None:
    """A genuine pack of the same owner under another pack's serial: the manifest pins each by its root hash."""

    def tamper(live: LiveDomain, xml: str) -> str:
        data, model = (Path(disk_of(prepared, live, name)) for name in ("data", "model"))
        one, other = data.read_bytes(), model.read_bytes()
        data.write_bytes(other)
        model.write_bytes(one)
        return xml

    assert refused(prepared, settings, tamper, tmp_path / "out").exit_code == 5


def test_a_withheld_disk_is_named(prepared: Prepared, settings: Settings, tmp_path: Path) -> None:
    def tamper(live: LiveDomain, xml: str) -> str:
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
