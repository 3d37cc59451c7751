# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The checkpoint volume of a run on a host whose files are real and whose libvirt nobody asks."""

import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from cvmtool.config import load_settings
from cvmtool.errors import ConfigError, HostError
from cvmtool.flows.hosts import Host
from cvmtool.flows.keeper import Keeper
from cvmtool.flows.volumes import Volumes
from cvmtool.formats.jobterms import CHECKPOINT, Checkpoint
from cvmtool.formats.volume import MIN_VOLUME, Volume
from cvmtool.host.files import LocalFiles
from cvmtool.host.store import Store
from cvmtool.owner.epochs import History
from tests import samples


class NoLibvirt:
    """Libvirt is not asked about volumes."""

    def close(self):
        pass


@dataclass
class Hosts:
    """Opens hosts, and knows which were."""

    folder: Path
    name: str = "lab"
    opened: list = field(default_factory=list)
    down: bool = False

    def __call__(self, settings):
        if self.down:
            raise HostError("the host does not answer")
        self.opened.append(settings.host)
        files, machines = LocalFiles(), str(self.folder / "machines")
        return Host(
            name=self.name,
            uri="test:///",
            hypervisor=NoLibvirt(),
            files=files,
            machines=machines,
            store=Store(files, machines, uploader="me", locks=self.folder),
            local=True,
        )


@pytest.fixture
def hosts(tmp_path):
    (tmp_path / "machines").mkdir()
    return Hosts(tmp_path)


@pytest.fixture
def manifest():
    volume = Volume(name=CHECKPOINT, luks_uuid=str(uuid.uuid4()), size=MIN_VOLUME, create=True)
    return replace(samples.manifest(), checkpoint=Checkpoint(volume=volume, grace_seconds=30))


@pytest.fixture
def keeper(manifest, hosts):
    return Keeper(manifest, load_settings(), every_seconds=1, open_host=hosts)


def kept():
    return list(Volumes(load_settings().volumes_dir).all())


def write_a_state(keeper):
    """As a guest does that got its keys and acknowledged them."""
    keeper.begin().acknowledge()


def test_the_first_launch_makes_the_volume_and_the_next_has_the_same(keeper, manifest):
    (first,) = keeper.make("job-1")
    assert (Path(first.path).stat().st_size, first.writable) == (MIN_VOLUME, True)
    Path(first.path).write_bytes(b"what a guest wrote")
    assert keeper.make("job-1") == (first,)
    assert Path(first.path).read_bytes() == b"what a guest wrote"
    (record,) = kept()
    assert (record.machine, record.luks_uuid) == ("job-1", manifest.checkpoint.volume.luks_uuid)


def test_a_machine_that_runs_has_it_without_its_host_being_asked(keeper, hosts):
    made = keeper.make("job-1")
    hosts.down = True
    assert keeper.disks() == made


def test_checkpoints_on_one_host_are_not_found_on_another(keeper, hosts):
    keeper.make("job-1")
    hosts.name = "other"
    with pytest.raises(ConfigError, match="checkpoints are on lab; the machine would be on other") as refusal:
        keeper.make("job-1")
    assert refusal.value.hint == "go on there: --host lab"


def test_a_run_that_is_done_needs_them_no_more(keeper):
    (disk,) = keeper.make("job-1")
    write_a_state(keeper)
    keeper.settle(done=True, notice=pytest.fail)
    keeper.settle(done=True, notice=pytest.fail)
    assert (kept(), Path(disk.path).exists()) == ([], False)


def test_what_a_guest_wrote_outlives_a_run_that_ended_early(keeper):
    (disk,) = keeper.make("job-1")
    write_a_state(keeper)
    said = []
    keeper.settle(done=False, notice=said.append)
    (record,) = kept()
    assert Path(disk.path).exists()
    (words,) = said
    assert words.startswith("the checkpoints of job-1 are kept: cvmtool jobs resume job-1 goes on from them; ")
    assert words.endswith(f"cvmtool vm volumes --remove {record.luks_uuid} drops them")


def test_a_volume_that_no_guest_ever_got_is_removed_with_the_run(keeper):
    (disk,) = keeper.make("job-1")
    assert kept()[0].history == History()
    keeper.settle(done=False, notice=pytest.fail)
    assert (kept(), Path(disk.path).exists()) == ([], False)


def test_it_is_removed_where_it_is_whatever_the_settings_say(keeper, hosts):
    keeper.make("job-1")
    keeper.settle(done=True, notice=pytest.fail)
    assert hosts.opened == [None, "lab"]


def test_a_host_that_is_away_keeps_file_and_record(keeper, hosts):
    keeper.make("job-1")
    hosts.down = True
    said = []
    keeper.settle(done=True, notice=said.append)
    assert len(kept()) == 1
    assert said[0].startswith("the checkpoint volume of job-1 is left on its host: the host does not answer")


def test_a_job_without_checkpoints_has_nothing_to_keep(hosts):
    keeper = Keeper(samples.manifest(), load_settings(), every_seconds=1, open_host=hosts)
    assert keeper.make("job-1") == keeper.disks() == ()
    keeper.settle(done=False, notice=pytest.fail)
    assert (keeper.begin().secrets(None), hosts.opened, kept()) == ({}, [], [])
