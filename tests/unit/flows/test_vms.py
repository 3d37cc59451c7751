# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Machines that cannot be started: nothing of them is left, or the record says where."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from cvmtool.config import load_settings
from cvmtool.errors import ConfigError, FormatError, HostError
from cvmtool.flows import vms, vmwatch
from cvmtool.flows.hosts import Host
from cvmtool.flows.records import MachineRecord, forget_record, load_record, save_record
from cvmtool.flows.vmrecords import VmDir, VmRecord, find_vm
from cvmtool.flows.vms import Wanted, destroy_vm, host_of, remove_volume, start_vm
from cvmtool.flows.vmwatch import watch
from cvmtool.flows.volumes import Volumes, make_volume
from cvmtool.formats.job import Resources
from cvmtool.host.embedded import embedded_machine_uri
from cvmtool.host.files import LocalFiles
from cvmtool.image.bundle import load_bundle
from cvmtool.owner.amdroots import SimulatedRoot
from cvmtool.owner.jobfile import Restart
from cvmtool.owner.policy import baseline
from tests.unit.image.images import make_image

SIZE = 256 << 20


class Libvirt:
    """A host's libvirt that can start nothing."""

    uri = "qemu:///system"
    alive = True

    def __init__(self):
        self.answers = True

    def capabilities(self, **_given):
        raise HostError("the host has no QEMU")

    def destroy(self, _name):
        if not self.answers:
            raise HostError("nothing answers")
        return False

    def close(self):
        pass


class Quiet:
    def stage(self, _stage, _text):
        return nullcontext()

    def step(self, _text):
        pass

    def progress(self, _done, _total):
        pass

    def notice(self, _text):
        pass


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return load_bundle(make_image(tmp_path_factory.mktemp("image") / "base"))


@pytest.fixture
def settings():
    return replace(load_settings(), host="qemu:///system")


@pytest.fixture
def libvirt():
    return Libvirt()


@pytest.fixture
def reach(libvirt, monkeypatch):
    def opened(settings):
        if not libvirt.answers:
            raise HostError("nothing answers")
        return Host(
            name=settings.host,
            uri=settings.host,
            hypervisor=libvirt,
            files=LocalFiles(),
            machines=str(settings.machines_dir),
            store=None,
            local=True,
        )

    monkeypatch.setattr(vms, "open_host", opened)
    monkeypatch.setattr("cvmtool.flows.machine.open_host", opened)
    return opened


def wanted(bundle, **changes):
    values = {
        "name": "one",
        "bundle": bundle,
        "resources": Resources(vcpus=1, memory_mib=512, cpu="EPYC-Genoa"),
        "shell": False,
        "restart": Restart.NEVER,
        "simulated": True,
        "volumes": (("data", SIZE),),
        # The image of the tests has a launch digest of zeroes, which no policy accepts.
        "policy": baseline(
            roots=SimulatedRoot(b"\1" * 32),
            measurements=frozenset({b"\1" * 48}),
            host_data=frozenset({b"\1" * 32}),
        ),
    }
    return Wanted(**{**values, **changes})


def nothing_is_left(settings):
    assert find_vm(settings.vms_dir, "one") is None
    assert load_record(settings.records_dir, "one") is None
    assert list(Volumes(settings.volumes_dir).all()) == []
    assert [path for path in Path(settings.machines_dir).rglob("*") if path.is_file()] == []


def test_a_host_that_starts_nothing_keeps_nothing(bundle, settings, reach):
    with pytest.raises(HostError, match="no QEMU"):
        start_vm(wanted(bundle), settings, Quiet(), reach=reach)
    nothing_is_left(settings)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"shell": True}, ConfigError),
        ({"volumes": (("Data", SIZE),)}, ConfigError),
        ({"volumes": (("data", SIZE + 1),)}, ConfigError),
        ({"volumes": (("data", 4096),)}, ConfigError),
        ({"volumes": (("data", SIZE), ("data", SIZE))}, ConfigError),
        ({"disks": ("nowhere",)}, ConfigError),
        ({"resources": Resources(vcpus=511, memory_mib=512, cpu="EPYC-Genoa")}, FormatError),
        ({"name": "../one"}, ConfigError),
    ],
)
def test_what_no_guest_would_take_is_refused_first(bundle, settings, reach, change, error):
    with pytest.raises(error):
        start_vm(wanted(bundle, **change), settings, Quiet(), reach=reach)
    nothing_is_left(settings)


def test_a_host_that_does_not_answer_is_at_fault(bundle, settings, reach, libvirt):
    libvirt.answers = False
    with pytest.raises(HostError, match="nothing answers"):
        start_vm(wanted(bundle), settings, Quiet(), reach=reach)
    nothing_is_left(settings)


def record(**changes):
    values = {
        "name": "one",
        "image": "base",
        "image_digest": "0a" * 32,
        "simulated": True,
        "host": "qemu:///system",
        "restart": Restart.NEVER,
        "created": "now",
    }
    return VmRecord(**{**values, **changes})


@pytest.mark.usefixtures("reach")
def test_a_machine_half_made_is_destroyed_by_name(settings, libvirt):
    VmDir.create(settings.vms_dir, record())
    libvirt.answers = False
    with pytest.raises(HostError):
        destroy_vm("one", settings)
    assert find_vm(settings.vms_dir, "one") is not None
    libvirt.answers = True
    assert destroy_vm("one", settings) is True
    assert destroy_vm("one", settings) is False
    nothing_is_left(settings)


def test_a_volume_that_is_kept_goes_into_another_machine_once(bundle, settings, reach):
    volumes = Volumes(settings.volumes_dir)
    host = reach(settings)
    kept = make_volume(host, volumes, "data", SIZE, machine="", target=settings.host)
    assert Path(kept.path).stat().st_size == SIZE
    volumes.save(replace(kept, machine="other"))
    with pytest.raises(HostError, match="belongs to the machine other"):
        start_vm(wanted(bundle, volumes=(), disks=("data",)), settings, Quiet(), reach=reach)
    other = MachineRecord(name="other", job="", host="lab", uri="qemu:///system", machines="/machines", pid=1)
    save_record(settings.records_dir, other)
    with pytest.raises(ConfigError):
        remove_volume(volumes.load(kept.luks_uuid), settings)
    forget_record(settings.records_dir, "other")
    volumes.save(kept)
    for word in ("data", kept.luks_uuid, kept.path):
        with pytest.raises(HostError, match="no QEMU"):
            start_vm(wanted(bundle, volumes=(), disks=(word,)), settings, Quiet(), reach=reach)
        assert volumes.load(kept.luks_uuid) == kept  # as it was, and free again
    with pytest.raises(ConfigError, match="the machine would be on"):
        start_vm(
            wanted(bundle, volumes=(), disks=("data",)), replace(settings, host="qemu:///session"), Quiet(), reach=reach
        )
    remove_volume(replace(kept, machine="a-job-that-is-over"), settings)
    nothing_is_left(settings)


def test_a_machine_without_a_daemon_has_a_libvirt_of_its_own(settings, monkeypatch):
    assert host_of(settings, "one") == "qemu:///system"
    free = replace(settings, host=None)
    monkeypatch.setattr(vms, "choose_uri", lambda **_given: "qemu:///embed?root=/run/cvmtool/4711")
    assert host_of(free, "one") == embedded_machine_uri(uid=vms.os.geteuid(), name="one")
    monkeypatch.setattr(vms, "choose_uri", lambda **_given: "qemu:///session")
    assert host_of(free, "one") == "qemu:///session"


@pytest.mark.parametrize(
    "change",
    [
        {"restart": Restart.NEVER},
        {"restart": Restart.ON_FAILURE, "host": "qemu:///embed?root=/run/cvmtool/vm-1"},
    ],
)
def test_only_what_shall_live_on_and_can_is_watched(settings, change):
    folder = VmDir.create(settings.vms_dir, record(**change))
    with pytest.raises(ConfigError) as refusal:
        watch(folder, settings, Quiet(), stage=Quiet().stage)
    assert refusal.value.hint


def test_every_machine_that_was_given_up_is_named(settings):
    folders = [VmDir.create(settings.vms_dir, record(name=name)) for name in ("one", "two")]
    with pytest.raises(HostError, match="2 of 2 machines were given up: one, two"):
        vmwatch.watch_all(folders, settings, Quiet)
    with pytest.raises(ConfigError):
        vmwatch.watch_all(folders[:1], settings, Quiet)
