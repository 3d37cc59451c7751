# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A machine's order, on a guest that only pretends to have disks; the disks themselves are tried in a booted guest."""

import dataclasses
import json

import pytest

from cvmtool.formats.control import ControlError
from cvmtool.formats.release import Secrets, VolumeSecret
from cvmtool.formats.volume import Epoch
from cvmtool.guest.machine import Hands, Machine
from cvmtool.guest.refusal import RefusedError
from cvmtool.guest.shell import Shell
from cvmtool.guest.volumes import Opened, Places
from tests.unit.formats.test_machine import MANIFEST
from tests.unit.formats.test_volume import VOLUME

OTHER = dataclasses.replace(VOLUME, name="other", luks_uuid="00000000" + VOLUME.luks_uuid[8:])
BOTH = dataclasses.replace(MANIFEST, volumes=(VOLUME, OTHER), shell=False)


def epoch(counter):
    return Epoch(counter=counter, mark=f"{counter:064x}")


def secret(counter):
    return VolumeSecret(passphrase=b"k" * 32, blank=False, accept=(epoch(counter - 1),), next=epoch(counter))


SECRETS = Secrets(volumes={volume.luks_uuid: secret(4) for volume in (VOLUME, OTHER)})


class Disks:
    """Records what is asked of the disks; `failing` maps a volume's name to its refusal."""

    def __init__(self):
        self.did, self.failing, self.damaged = [], {}, set()

    def open(self, volume, given, places):
        self.did.append(("open", volume.name, given.next.counter))
        if volume.name in self.failing:
            raise self.failing[volume.name]
        return Opened(volume=volume, epoch=given.next, created=False, errors={})

    def commit(self, opened, mark, places):
        self.did.append(("commit", opened.volume.name, mark.counter))
        if opened.volume.name in self.failing:
            raise self.failing[opened.volume.name]
        return dataclasses.replace(opened, epoch=mark)


@pytest.fixture
def disks():
    return Disks()


@pytest.fixture
def make(disks, tmp_path):
    hands = Hands(
        load_modules=lambda: disks.did.append(("modules",)),
        open_volume=disks.open,
        commit=disks.commit,
        is_damaged=lambda opened, places: opened.volume.name in disks.damaged,
        close_volume=lambda volume, places: disks.did.append(("close", volume.name)),
    )
    places = Places(whole=tmp_path / "whole", volumes=tmp_path / "volumes")

    def make(manifest, *, allowed=False):
        shell = Shell(allowed=allowed)
        shell.grant = lambda: (disks.did.append(("grant",)), setattr(shell, "granted", True))
        shell.end = lambda: disks.did.append(("end",))
        return Machine(manifest, shell, places=places, hands=hands)

    return make


def refused(call, *arguments):
    with pytest.raises(RefusedError) as caught:
        call(*arguments)
    return caught.value.error, caught.value.volume


def volume_status(name, counter, *, damaged=False):
    return {"name": name, "counter": counter, "created": False, "damaged": damaged}


def test_the_whole_way(make, disks):
    machine = make(BOTH)
    assert machine.status() == {"stage": "configured", "exit_code": None, "shell": False, "volumes": []}
    assert sorted(machine.release(SECRETS, None)) == ["data", "other"]
    assert machine.status()["stage"] == "unlocked"
    machine.commit({"data": epoch(9)})
    assert machine.status()["volumes"] == [volume_status("data", 9), volume_status("other", 4)]
    disks.damaged.add("other")
    assert machine.status()["volumes"][1] == volume_status("other", 4, damaged=True)
    json.dumps(machine.status())
    machine.forget()
    assert disks.did == [
        ("modules",),
        ("open", "data", 4),
        ("open", "other", 4),
        ("commit", "data", 9),
        ("close", "data"),
        ("close", "other"),
    ]


def test_a_machine_without_volumes_loads_nothing(make, disks):
    machine = make(dataclasses.replace(BOTH, volumes=()))
    assert machine.release(Secrets(), None) == {}
    assert machine.status()["stage"] == "unlocked"
    assert disks.did == []


def test_if_one_does_not_open_none_is_open(make, disks):
    machine = make(BOTH)
    disks.failing["other"] = RefusedError(ControlError.VOLUME_ROLLED_BACK, "no", volume="other")
    assert refused(machine.release, SECRETS, None) == (ControlError.VOLUME_ROLLED_BACK, "other")
    assert disks.did[-1] == ("close", "data")
    assert machine.status()["volumes"] == []
    assert machine.status()["stage"] == "configured"
    disks.failing.clear()
    machine.release(SECRETS, None)
    assert machine.status()["stage"] == "unlocked"


def test_a_volume_without_a_key(make):
    machine = make(BOTH)
    only = Secrets(volumes={VOLUME.luks_uuid: secret(4)})
    assert refused(machine.release, only, None) == (ControlError.VOLUME_KEY, "other")


def test_release_is_done_once(make):
    machine = make(BOTH)
    machine.release(SECRETS, None)
    assert refused(machine.release, SECRETS, None)[0] is ControlError.ORDER


@pytest.mark.parametrize("name", ["more", "", "../data"])
def test_committing_what_is_not_open(make, disks, name):
    machine = make(BOTH)
    assert refused(machine.commit, {"data": epoch(5)})[0] is ControlError.ORDER
    machine.release(SECRETS, None)
    assert refused(machine.commit, {name: epoch(5)})[0] is ControlError.ORDER
    assert "commit" not in {step[0] for step in disks.did}


def test_a_commit_that_fails_leaves_the_state_before(make, disks):
    machine = make(BOTH)
    machine.release(SECRETS, None)
    disks.failing["data"] = RefusedError(ControlError.VOLUME_INTEGRITY, "no", volume="data")
    assert refused(machine.commit, {"data": epoch(5)}) == (ControlError.VOLUME_INTEGRITY, "data")
    assert machine.status()["volumes"][0]["counter"] == 4


def test_an_image_without_the_word_refuses_the_manifest(make, disks):
    assert refused(make, MANIFEST) == (ControlError.SHELL, None)
    assert disks.did == []


def test_the_shell_comes_with_the_volumes_and_ends_before_them(make, disks):
    machine = make(MANIFEST, allowed=True)
    assert ("grant",) not in disks.did
    machine.release(SECRETS, None)
    assert disks.did[-2:] == [("open", "data", 4), ("grant",)]
    assert machine.status()["shell"] is True
    machine.forget()
    assert disks.did[-2:] == [("end",), ("close", "data")]


def test_volumes_are_closed_even_if_a_process_stays(make, disks):
    machine = make(MANIFEST, allowed=True)
    machine.release(SECRETS, None)

    def stuck():
        raise OSError("left")

    machine._shell.end = stuck
    with pytest.raises(OSError, match="left"):
        machine.forget()
    assert disks.did[-1] == ("close", "data")


def test_no_shell_that_the_manifest_does_not_ask_for(make, disks):
    machine = make(BOTH, allowed=True)
    machine.release(SECRETS, None)
    machine.forget()
    assert {("grant",), ("end",)}.isdisjoint(disks.did)
