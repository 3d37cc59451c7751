# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
from pathlib import Path

import pytest

from cvmtool.formats.jobterms import Checkpoint
from cvmtool.formats.pack import Role
from cvmtool.formats.volume import Volume
from cvmtool.formats.wire import canonical_json
from cvmtool.guest.driver import Device
from cvmtool.guest.oci import Gpus, mount_points, render_config
from tests.unit.guest import samples


def render(*, network=None, gpus=None, **changes):
    manifest = samples.manifest(**changes)
    return render_config(
        manifest,
        root=Path("/run/root"),
        inputs={pack.name: Path("/run/packs") / pack.name for pack in manifest.inputs},
        outputs=Path("/run/outputs"),
        checkpoint=Path("/run/volumes/checkpoint") if manifest.checkpoint else None,
        seccomp={"defaultAction": "SCMP_ACT_ERRNO"},
        cgroup="/job/container",
        network=network,
        gpus=gpus,
    )


def mounts(config):
    return {mount["destination"]: mount for mount in config["mounts"]}


def test_process_is_nobody_and_can_become_nobody_else():
    process = render()["process"]
    assert (process["user"]["uid"], process["user"]["gid"]) == (65_534, 65_534)
    assert "additionalGids" not in process["user"]
    assert set(process["capabilities"]) == {"bounding", "effective", "inheritable", "permitted", "ambient"}
    assert not any(process["capabilities"].values())
    assert process["noNewPrivileges"] is True
    assert process["terminal"] is False
    assert {"type": "RLIMIT_CORE", "hard": 0, "soft": 0} in process["rlimits"]


def test_program_and_environment_are_the_manifest_s():
    process = render()["process"]
    assert process["args"] == ["/bin/train", "--fast"]
    assert process["cwd"] == "/app"
    assert "HOME=/scratch" in process["env"]
    assert sum(item.startswith("HOME=") for item in process["env"]) == 1
    assert any(item.startswith("PATH=") for item in process["env"])


def test_namespaces_are_all_new_and_the_network_is_empty():
    linux = render()["linux"]
    assert {item["type"] for item in linux["namespaces"]} == {"pid", "ipc", "uts", "mount", "network", "cgroup"}
    assert all(item.keys() == {"type"} for item in linux["namespaces"])  # a path would join an existing one


def test_a_checkpoint_is_writable_where_the_job_has_one():
    volume = Volume(name="checkpoint", luks_uuid="00112233-4455-6677-8899-aabbccddeeff", size=1 << 30, create=True)
    changes = {"checkpoint": Checkpoint(volume=volume, grace_seconds=5)}
    mount = mounts(render(**changes))["/checkpoint"]
    assert mount["source"] == "/run/volumes/checkpoint"
    assert {"rw", "noexec", "nosuid", "nodev"} <= set(mount["options"])
    assert "checkpoint" in mount_points(samples.manifest(**changes))
    assert "/checkpoint" not in mounts(render())


GPUS = Gpus(
    devices=(Device(name="nvidiactl", major=195, minor=255), Device(name="nvidia0", major=195, minor=0)),
    libraries=Path("/usr/lib/nvidia"),
)
TWO = dataclasses.replace(samples.manifest().resources, gpus=2)


def test_a_container_with_gpus_gets_their_devices_and_no_others():
    linux = render(gpus=GPUS, resources=TWO)["linux"]
    assert [(device["path"], device["major"], device["minor"]) for device in linux["devices"]] == [
        ("/dev/nvidiactl", 195, 255),
        ("/dev/nvidia0", 195, 0),
    ]
    first, *others = linux["resources"]["devices"]
    assert first == {"allow": False, "access": "rwm"}  # the rules count in their order
    assert others == [
        {"allow": True, "type": "c", "major": 195, "minor": minor, "access": "rw"}  # m would make nodes
        for minor in (255, 0)
    ]


def test_a_container_with_gpus_finds_the_driver_s_libraries_and_cannot_change_them():
    config = render(gpus=GPUS, resources=TWO)
    mount = mounts(config)["/driver"]
    assert mount["source"] == "/usr/lib/nvidia"
    assert {"ro", "nosuid", "nodev"} <= set(mount["options"])
    assert "driver" in mount_points(samples.manifest(resources=TWO))
    assert "LD_LIBRARY_PATH=/driver" in config["process"]["env"]


def test_what_the_job_says_of_libraries_comes_after_the_driver_s():
    container = dataclasses.replace(samples.manifest().container, env=(("LD_LIBRARY_PATH", "/opt/lib"),))
    assert "LD_LIBRARY_PATH=/driver:/opt/lib" in render(gpus=GPUS, resources=TWO, container=container)["process"]["env"]
    assert "LD_LIBRARY_PATH=/opt/lib" in render(container=container)["process"]["env"]


def test_a_container_without_gpus_sees_nothing_of_a_driver():
    config = render()
    assert "driver" not in canonical_json(config).decode()
    assert config["linux"]["devices"] == []
    assert config["linux"]["resources"]["devices"] == [{"allow": False, "access": "rwm"}]
    assert "driver" not in mount_points(samples.manifest())


def test_a_job_with_destinations_joins_the_namespace_that_was_made_for_it():
    spaces = {item["type"]: item.get("path") for item in render(network="/proc/7/fd/9")["linux"]["namespaces"]}
    assert spaces.pop("network") == "/proc/7/fd/9"
    assert set(spaces.values()) == {None}


def test_nothing_is_writable_but_memory_and_outputs():
    config = render()
    assert config["root"] == {"path": "/run/root", "readonly": True}
    for path, mount in mounts(config).items():
        assert "nosuid" in mount["options"], path
        if path in {"/proc", "/outputs"} or mount["type"] == "tmpfs":
            continue
        assert "ro" in mount["options"], path
    assert "/proc/sys" in config["linux"]["readonlyPaths"]
    assert {"/proc/kcore", "/sys/firmware"} <= set(config["linux"]["maskedPaths"])


def test_inputs_and_outputs():
    found = mounts(render())
    assert found["/inputs/digits"]["source"] == "/run/packs/digits"
    assert {"bind", "ro", "nodev"} <= set(found["/inputs/digits"]["options"])
    assert found["/outputs"]["source"] == "/run/outputs"
    assert {"rw", "noexec", "nodev"} <= set(found["/outputs"]["options"])


@pytest.mark.parametrize(("scratch", "tmp", "there"), [(0, 16, False), (8, 16, True), (99, 99, True)])
def test_scratch(scratch, tmp, there):
    found = mounts(render(limits=dataclasses.replace(samples.manifest().limits, scratch_mib=scratch)))
    assert ("/scratch" in found) is there
    assert f"size={tmp}m" in found["/tmp"]["options"]
    if there:
        assert {f"size={scratch}m", "uid=65534", "mode=700"} <= set(found["/scratch"]["options"])


def test_limits():
    linux = render()["linux"]
    assert linux["resources"]["memory"] == {"limit": 256 << 20, "swap": 256 << 20}
    assert linux["resources"]["pids"] == {"limit": 64}
    assert linux["resources"]["devices"] == [{"allow": False, "access": "rwm"}]
    assert linux["cgroupsPath"] == "/job/container"
    assert linux["seccomp"] == {"defaultAction": "SCMP_ACT_ERRNO"}


def test_every_mount_has_a_point():
    packs = (samples.pack(), samples.pack("a", Role.INPUT), samples.pack("b", Role.INPUT))
    points = {f"/{point}" for point in mount_points(samples.manifest(packs=packs))}
    assert {path for path in mounts(render(packs=packs)) if path != "/dev/shm"} <= points


def test_config_is_json():
    canonical_json(render())
