# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest

from cvmtool.formats.control import ControlError
from cvmtool.formats.jobterms import Checkpoint
from cvmtool.formats.release import Secrets
from cvmtool.guest import disks, volumes
from cvmtool.guest.drawer import Drawer
from cvmtool.guest.refusal import RefusedError
from tests.unit.guest import samples
from tests.unit.guest.test_volumes import FIRST, SECRET, VOLUME, Machine, epoch, header  # noqa: F401 (a fixture)

KEPT = dataclasses.replace(VOLUME, name="checkpoint")
MANIFEST = dataclasses.replace(samples.manifest(), checkpoint=Checkpoint(volume=KEPT, grace_seconds=5))
SECRETS = Secrets(volumes={KEPT.luks_uuid: FIRST})


@pytest.fixture
def machine(tmp_path, header, monkeypatch):  # noqa: F811
    machine = Machine(tmp_path, header)
    machine.places = dataclasses.replace(machine.places, user=65_534)
    machine.whole = tmp_path / "whole" / KEPT.name
    for module in (volumes, disks):
        monkeypatch.setattr(module, "run", machine.run)
    monkeypatch.setattr(volumes, "_sync", lambda _: None)
    owned = machine.owned = []
    monkeypatch.setattr(volumes.os, "chown", lambda path, uid, gid: owned.append((path, uid, gid)))
    return machine


@pytest.fixture
def drawer(machine):
    return Drawer(MANIFEST, machine.places)


def refused(call, *arguments):
    with pytest.raises(RefusedError) as caught:
        call(*arguments)
    assert caught.value.volume in {None, "checkpoint"}
    return caught.value.error


def test_a_job_without_a_checkpoint_has_nothing_to_open(machine):
    none = Drawer(samples.manifest(), machine.places)
    assert (none.open(Secrets()), none.mounted(), none.find_damage()) == ({}, {}, None)
    none.close()
    assert machine.calls == []


def test_the_container_writes_what_it_holds(machine, drawer):
    assert drawer.mounted() == {}
    assert list(drawer.open(SECRETS)) == ["checkpoint"]
    assert drawer.mounted() == {"checkpoint": machine.places.volumes / "checkpoint"}
    assert machine.owned == [(machine.whole / "data", 65_534, 65_534)]
    assert (machine.whole / "epoch").read_bytes() == epoch(1).encode()


def test_it_is_marked_with_its_owner_s_states(machine, drawer):
    assert refused(drawer.commit, {"checkpoint": epoch(2)}) is ControlError.ORDER
    drawer.open(SECRETS)
    drawer.commit({"checkpoint": epoch(2)})
    assert (machine.whole / "epoch").read_bytes() == epoch(2).encode()
    for other in ({}, {"other": epoch(3)}, {"checkpoint": epoch(3), "other": epoch(3)}):
        assert refused(drawer.commit, other) is ControlError.ORDER
    drawer.close()
    assert refused(drawer.commit, {"checkpoint": epoch(3)}) is ControlError.ORDER
    assert ("cryptsetup", "close", f"volume-{KEPT.serial}") in machine.calls


def test_no_key_no_volume(drawer):
    assert refused(drawer.open, Secrets()) is ControlError.VOLUME_KEY
    assert drawer.mounted() == {}


def test_an_old_disk_is_refused(machine, drawer):
    machine.present(machine.made)
    machine.stored = epoch(2).encode()
    assert refused(drawer.open, Secrets(volumes={KEPT.luks_uuid: SECRET})) is ControlError.VOLUME_ROLLED_BACK
    assert drawer.mounted() == {}


def test_damage_is_found_at_the_end(machine, drawer):
    machine.stats = machine.places.btrfs / KEPT.luks_uuid / "devinfo/1/error_stats"
    drawer.open(SECRETS)
    assert drawer.find_damage() is None
    machine.errors(1)
    found = drawer.find_damage()
    assert found is not None
    assert (found.error, found.volume) == (ControlError.VOLUME_INTEGRITY, "checkpoint")
