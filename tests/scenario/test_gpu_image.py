# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The guest image with NVIDIA's driver: compiled twice, booted, and a job run in it. No machine of these tests has a GPU.

Minutes of compiling and hundreds of megabytes: `make gpu-image`, and left out of every other run but `make soak`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cvmtool.config import PACKAGE_DIR, Settings, resources
from cvmtool.flows.images import bring_up_to_date, image_source, package_store
from cvmtool.formats.manifest import Mode
from cvmtool.image.archive import find_archive
from cvmtool.image.build import Source, build_image
from cvmtool.image.bundle import Bundle
from cvmtool.image.elf import modinfo
from cvmtool.image.lock import parse_lock
from cvmtool.image.reproduce import reproduce_bundle
from cvmtool.image.tree import Tree
from tests.integration.test_image import Guest
from tests.scenario.conftest import ROOT

pytestmark = [pytest.mark.soak, pytest.mark.image]
DRIVER = "550.163.01"

# PID 1 of a guest that only tells what the driver says where there is no GPU.
PROBE = """\
#!/bin/sh
PATH=/usr/sbin:/usr/bin
export PATH
exec </dev/null >/dev/console 2>&1
mount -a
try() {
    "$@"
    echo "PROBE $* -> $?"
}
python() {
    PYTHONPATH=/usr/lib/cvmtool python3 -sP -c "$1"
}
try modprobe nvidia NVreg_ModifyDeviceFiles=0
dmesg | grep NVRM
python 'import pynvml
try: pynvml.nvmlInit()
except pynvml.NVMLError as error: print("PROBE nvml:", type(error).__name__)'
mkdir -p /var/run
try nvidia-persistenced --uvm-persistence-mode
python 'from cvmtool.guest.driver import bring_up
from cvmtool.guest.refusal import RefusedError
try: bring_up()
except RefusedError as error: print("PROBE refused:", error.error.value, error.detail)'
python 'from cvmtool.guest.lockdown import lock_down
lock_down()
lock_down()'
echo "PROBE lockdown $(cat /sys/kernel/security/lockdown) $(cat /sys/module/module/parameters/sig_enforce)"
try modprobe nvidia
try modprobe btrfs
modprobe loop
PYTHONPATH=/usr/lib/cvmtool python3 -sP /usr/lib/cvmtool/probe.py
echo PROBE end
echo o >/proc/sysrq-trigger
sleep 60
"""

# The guest's own container runtime with the configuration of a job that has a GPU. The device that stands in for it is one that any
# user may open, if its control group lets them: that of loop devices.
CONTAINER = """\
import os, subprocess
from dataclasses import replace
from pathlib import Path
from cvmtool.formats.job import Container, JobManifest, Limits, Network, Resources
from cvmtool.formats.wire import canonical_json
from cvmtool.guest.driver import Device
from cvmtool.guest.oci import Gpus, mount_points, render_config
from cvmtool.guest.seccomp import convert_profile

SCRIPT = '''for device in /dev/nvidia*; do (exec 3<>$device) && echo PROBE opened $device; done
echo PROBE libraries $LD_LIBRARY_PATH $(ls /driver | grep -c so)
touch /driver/mine && echo PROBE changed'''
MANIFEST = JobManifest(
    name="probe", salt="11" * 32, owner_key="22" * 32, packs=(), outputs=(), network=Network.NONE,
    container=Container(
        oci_digest="sha256:" + "33" * 32, args=("/bin/busybox", "sh", "-c", SCRIPT), env=(), workdir="/"
    ),
    resources=Resources(vcpus=1, memory_mib=512, cpu="EPYC-Genoa", gpus=1),
    limits=Limits(memory_mib=64, pids=16, scratch_mib=0, outputs_mib=1, log_mib=1, seconds=60),
)
root, outputs, bundle = (Path("/run/probe") / name for name in ("root", "outputs", "bundle"))
for folder in (outputs, bundle, root / "bin", *(root / point for point in mount_points(MANIFEST))):
    folder.mkdir(parents=True, exist_ok=True)
(root / "bin/busybox").write_bytes(Path("/usr/bin/busybox").read_bytes())
(root / "bin/busybox").chmod(0o755)
for applet in ("ls", "grep", "touch"):
    (root / "bin" / applet).symlink_to("busybox")
GPUS = Gpus(devices=(Device(name="nvidia0", major=10, minor=237),), libraries=Path("/usr/lib/nvidia"))
seccomp = convert_profile(Path("/usr/share/cvmtool/seccomp.json").read_bytes(), kernel=(6, 12))
config = render_config(
    MANIFEST, root=root, inputs={}, outputs=outputs, checkpoint=None, seccomp=seccomp, cgroup="/probe", network=None, gpus=GPUS
)


def run(name):
    (bundle / "config.json").write_bytes(canonical_json(config))
    print("PROBE container", name, flush=True)
    subprocess.run(["crun", "--root=/run/probe/crun", "--cgroup-manager=cgroupfs", "run", f"--bundle={bundle}", "probe"])
    print("PROBE container over", name, flush=True)


run("with its device")
del config["linux"]["resources"]["devices"][1:]
run("without the rule")
"""


@pytest.fixture(scope="module")
def gpu(settings: Settings) -> Bundle:
    return bring_up_to_date("gpu", settings, progress=lambda _: None, notice=lambda _: None)


@pytest.fixture(scope="module")
def console(gpu: Bundle, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a guest of the image says whose first program is the probe; nothing else of it is another one."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    place = tmp_path_factory.mktemp("probe")
    shutil.copytree(resources("images"), place / "images")
    init = place / "images/gpu/overlay/usr/lib/cvmtool/init"
    init.parent.mkdir(parents=True)
    init.write_text(PROBE)
    init.chmod(0o755)
    init.with_name("probe.py").write_text(CONTAINER)
    source = Source(image=place / "images/gpu", package=PACKAGE_DIR)
    store = package_store(settings)
    probing = build_image(source, place / "bundle", store=store, find_archive=find_archive, locked=True)
    assert probing.manifest.kernel == gpu.manifest.kernel
    guest = Guest(probing, place, rootfs=probing.rootfs)
    try:
        return guest.console(until="PROBE end", seconds=300)
    finally:
        guest.end()


def test_it_is_compiled_again_to_the_same_bytes(gpu: Bundle, settings: Settings) -> None:
    stages: list[str] = []
    result = reproduce_bundle(
        gpu,
        image_source("gpu"),
        store=package_store(settings),
        find_archive=find_archive,
        progress=stages.append,
        notice=lambda _: None,
    )
    assert any("compile" in stage for stage in stages)
    assert (result.differences, result.rebuilt) == ((), gpu.digest)


def test_what_was_compiled_is_for_the_kernel_and_this_driver(gpu: Bundle, settings: Settings) -> None:
    for path in package_store(settings).folder.glob("modules-*/nvidia*.ko"):
        told = modinfo(path.read_bytes())
        if told["vermagic"][0].startswith(f"{gpu.manifest.kernel_release} "):
            assert told["license"] == ["Dual MIT/GPL"]
            break
    else:
        pytest.fail("no module was kept for this kernel")


def test_the_command_line_alone_leaves_the_kernel_open(gpu: Bundle) -> None:
    for mode in Mode:
        assert not {"lockdown=integrity", "module.sig_enforce=1"} & set(gpu.cmdline(mode).split())


def test_the_driver_s_library_has_everything_that_the_guest_calls(settings: Settings) -> None:
    """By name: the binding looks a function up only when it is called."""
    called = set(re.findall(r"nvml\.(nvml\w+)", (PACKAGE_DIR / "guest/gpu.py").read_text()))
    assert len(called) >= 6
    lock = parse_lock((resources("images") / "gpu/packages.lock").read_bytes())
    (package,) = (package for package in lock.packages if package.name == "libnvidia-ml1")
    assert package.version.startswith(DRIVER)
    with Tree() as tree:
        tree.add_deb(package_store(settings).path(package))
        library = tree.read("usr/lib/x86_64-linux-gnu/nvidia/current/libnvidia-ml.so.1")
    assert not [name for name in called if f"\0{name}".encode() not in library]


def test_licences_of_what_is_not_free_are_in_the_bill_of_materials(gpu: Bundle) -> None:
    document = json.loads((gpu.folder / gpu.manifest.sbom.file).read_text())
    texts = {info["licenseId"]: info["extractedText"] for info in document["hasExtractedLicensingInfos"]}
    declared = {package["name"]: package["licenseDeclared"] for package in document["packages"]}
    assert any("NVIDIA" in texts[name] for name in declared["libcuda1"].split(" AND "))
    assert declared["nvidia-open-kernel-dkms"] != "NOASSERTION"


@pytest.mark.vm
def test_the_module_fits_the_kernel_and_finds_no_gpu(console: str) -> None:
    """ "No such device" is the driver's own answer: version, symbols and layout were accepted before it was asked."""
    assert "could not insert 'nvidia': No such device" in console
    assert "NVRM: No NVIDIA GPU found" in console
    assert "disagrees about version" not in console
    assert "Unknown symbol" not in console


@pytest.mark.vm
def test_the_libraries_are_found(console: str) -> None:
    assert "PROBE nvml: NVMLError_DriverNotLoaded" in console  # else LibraryNotFound
    assert "PROBE nvidia-persistenced --uvm-persistence-mode -> 1" in console  # it ran, and found no device
    assert "error while loading shared libraries" not in console


@pytest.mark.vm
def test_the_guest_says_why_it_has_no_gpu(console: str) -> None:
    assert re.search(r"PROBE refused: gpu modprobe nvidia .*No such device", console)


@pytest.mark.vm
def test_after_the_lock_no_module_of_ours_comes_in_and_debian_s_do(console: str) -> None:
    assert "PROBE lockdown none [integrity] confidentiality Y" in console
    after = console.split("PROBE lockdown")[1]
    assert "PROBE modprobe nvidia -> 1" in after
    assert "No such device" not in after
    assert "PROBE modprobe btrfs -> 0" in after


def container(console: str, name: str) -> str:
    return console.partition(f"PROBE container {name}")[2].partition("PROBE container over")[0]


@pytest.mark.vm
def test_a_container_with_a_gpu_opens_its_device_and_reads_the_driver_s_libraries(console: str) -> None:
    said = container(console, "with its device")
    assert "PROBE opened /dev/nvidia0" in said
    assert "PROBE libraries /driver 4" in said
    assert "Read-only file system" in said
    assert "PROBE changed" not in said


@pytest.mark.vm
def test_it_is_the_rule_that_lets_the_container_open_it(console: str) -> None:
    said = container(console, "without the rule")
    assert "PROBE opened" not in said
    assert "Operation not permitted" in said


@pytest.mark.vm
def test_a_job_without_gpus_runs_in_it(gpu: Bundle, example: Path, environment: dict[str, str], tmp_path: Path) -> None:
    job = example.with_name("job-gpu.yaml")
    job.write_text(example.read_text().replace("image: base", "image: gpu"))
    done = subprocess.run(
        [sys.executable, "-m", "cvmtool", "train", str(job), "--dry-run", "--results", str(tmp_path), "--json"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert json.loads((tmp_path / "metrics.json").read_text())["accuracy_after"] >= 0.90
    summary = json.loads(done.stdout.splitlines()[-1])
    assert gpu.manifest.launch_digests[Mode.DRYRUN]["EPYC-Genoa"][0] in Path(summary["policy"]).read_text()
