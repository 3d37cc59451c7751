# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import pytest

from cvmtool.errors import HostError
from cvmtool.host.events import Event, Happening, of_disk, of_lifecycle
from cvmtool.host.hypervisor import Hypervisor

libvirt = pytest.importorskip("libvirt")

LIFECYCLE = {
    (libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STARTED_BOOTED): Happening.STARTED,
    (libvirt.VIR_DOMAIN_EVENT_RESUMED, libvirt.VIR_DOMAIN_EVENT_RESUMED_UNPAUSED): Happening.RESUMED,
    (libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_PAUSED): Happening.PAUSED,
    (libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_IOERROR): None,
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN): Happening.ENDED,
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED): Happening.STOPPED,
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED): Happening.DIED,
    (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED): Happening.DIED,
    (libvirt.VIR_DOMAIN_EVENT_CRASHED, libvirt.VIR_DOMAIN_EVENT_CRASHED_PANICKED): Happening.DIED,
    (libvirt.VIR_DOMAIN_EVENT_DEFINED, libvirt.VIR_DOMAIN_EVENT_DEFINED_ADDED): None,
    (libvirt.VIR_DOMAIN_EVENT_SHUTDOWN, libvirt.VIR_DOMAIN_EVENT_SHUTDOWN_GUEST): None,
}


@pytest.mark.parametrize(("numbers", "meaning"), LIFECYCLE.items())
def test_what_lifecycle_numbers_mean(numbers, meaning):
    assert of_lifecycle(libvirt, *numbers) is meaning


@pytest.mark.parametrize(
    ("action", "reason", "meaning"),
    [
        (libvirt.VIR_DOMAIN_EVENT_IO_ERROR_PAUSE, "enospc", Happening.DISK_FULL),
        (libvirt.VIR_DOMAIN_EVENT_IO_ERROR_PAUSE, "", Happening.DISK_ERROR),
        (libvirt.VIR_DOMAIN_EVENT_IO_ERROR_REPORT, "", Happening.DISK_ERROR),
    ],
)
def test_what_a_failing_disk_means(action, reason, meaning):
    assert of_disk(libvirt, "/m/a.img", action, reason) == Event(what=meaning, path="/m/a.img")


def test_an_error_that_nobody_notices_is_no_event():
    assert of_disk(libvirt, "/m/a.img", libvirt.VIR_DOMAIN_EVENT_IO_ERROR_NONE, "enospc") is None


@pytest.fixture
def hypervisor(tmp_path):
    node = tmp_path / "node.xml"  # libvirt's own driver for tests, inside this process; of a file it is nobody else's
    node.write_text(
        "<node><domain type='test'><name>test</name><memory>8192</memory><os><type>hvm</type></os></domain></node>"
    )
    opened = Hypervisor(f"test://{node}", log=tmp_path / "log")
    yield opened
    opened.close()


def test_libvirt_tells_what_happens(hypervisor):
    with hypervisor.events.gather("test") as happened:
        hypervisor._lookup("test").suspend()
        assert happened.get(timeout=30).what is Happening.PAUSED
        hypervisor.resume("test")
        assert happened.get(timeout=30).what is Happening.RESUMED
        hypervisor.destroy("test")
        assert happened.get(timeout=30).what is Happening.STOPPED


def test_each_listener_hears_of_its_own_machine(hypervisor):
    events, domain = hypervisor.events, hypervisor._lookup("test")
    pause = libvirt.VIR_DOMAIN_EVENT_IO_ERROR_PAUSE
    with events.gather("test") as own, events.gather("other") as other:
        events._on_disk(None, domain, "/m/a.img", "virtio-disk1", pause, "enospc", None)
        assert own.get(timeout=30) == Event(what=Happening.DISK_FULL, path="/m/a.img")
        assert other.empty()
    events._on_disk(None, domain, "/m/a.img", "virtio-disk1", pause, "enospc", None)
    assert own.empty()


def test_everybody_hears_of_the_end_of_the_connection_once(hypervisor):
    with hypervisor.events.gather("test") as own, hypervisor.events.gather("other") as other:
        hypervisor._connection.close()
        assert own.get(timeout=30) == other.get(timeout=30) == Event(what=Happening.DISCONNECTED)
        assert own.empty()


def test_only_what_is_paused_goes_on(hypervisor):
    with pytest.raises(HostError):
        hypervisor.resume("test")
