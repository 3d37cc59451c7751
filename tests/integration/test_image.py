# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The real image: built twice, built by another user, and booted by plain QEMU, whole and damaged."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvmtool.config import PACKAGE_DIR, load_settings, resources
from cvmtool.formats.machine import SHELL_WORD
from cvmtool.formats.manifest import Mode
from cvmtool.image.archive import find_archive
from cvmtool.image.build import Source, build_image
from cvmtool.image.bundle import Bundle
from cvmtool.image.reproduce import reproduce_bundle
from cvmtool.image.store import Store
from cvmtool.measure.hashes import kernel_hashes
from cvmtool.measure.ovmf import parse_firmware

pytestmark = pytest.mark.image
BOOT_SECONDS = 120  # the machine may be busy; nothing is measured by the clock


@pytest.fixture(scope="module")
def store() -> Store:
    return Store(folder=load_settings().packages_dir)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A copy: an edit in the checkout while the tests run must not look like a build that cannot be repeated."""
    place = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(resources("images") / "base", place / "image", ignore=ignore)
    shutil.copytree(PACKAGE_DIR, place / "cvmtool", ignore=ignore)
    return Source(image=place / "image", package=place / "cvmtool")


@pytest.fixture(scope="module")
def bundle(store: Store, source: Source, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build_image(source, tmp_path_factory.mktemp("image") / "base", store=store, find_archive=find_archive)


def test_a_second_build_has_nothing_to_do(bundle: Bundle, store: Store, source: Source) -> None:
    stages: list[str] = []
    again = build_image(source, bundle.folder, store=store, find_archive=find_archive, progress=stages.append)
    assert again.digest == bundle.digest
    assert stages == ["packages"]


def test_a_rebuild_is_identical(bundle: Bundle, store: Store, source: Source) -> None:
    result = reproduce_bundle(
        bundle, source, store=store, find_archive=find_archive, progress=lambda _: None, notice=lambda _: None
    )
    assert result.differences == ()
    assert result.rebuilt == bundle.digest


def test_a_changed_file_is_named(bundle: Bundle, store: Store, source: Source, tmp_path: Path) -> None:
    changed = tmp_path / "base"
    shutil.copytree(source.image, changed)
    (changed / "skeleton/etc/hostname").write_text("other\n")
    (changed / "init").write_text((changed / "init").read_text() + "# changed\n")
    result = reproduce_bundle(
        bundle,
        Source(image=changed, package=source.package),
        store=store,
        find_archive=find_archive,
        progress=lambda _: None,
        notice=lambda _: None,
    )
    named = [line for line in result.differences if line.endswith((" differs", " is new", " is gone"))]
    assert named == ["initrd: init differs", "rootfs.img: etc/hostname differs"]
    assert any(line.startswith("sources:") for line in result.differences)


def test_the_operator_image_is_rebuilt_as_well(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    """Built from two folders, its own and that of the image which it extends."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(resources("images"), tmp_path / "images", ignore=ignore)
    shutil.copytree(PACKAGE_DIR, tmp_path / "cvmtool", ignore=ignore)
    source = Source(image=tmp_path / "images/operator", package=tmp_path / "cvmtool")
    operator = build_image(source, tmp_path / "operator", store=store, find_archive=find_archive, locked=True)
    assert operator.manifest.name == "operator"
    for mode in Mode:
        assert SHELL_WORD in operator.cmdline(mode).split()
        assert SHELL_WORD not in bundle.cmdline(mode)
    result = reproduce_bundle(
        operator, source, store=store, find_archive=find_archive, progress=lambda _: None, notice=lambda _: None
    )
    assert (result.differences, result.rebuilt) == ((), operator.digest)


_AS_OTHER = """
import os, sys
from pathlib import Path
os.umask(0o077)
from cvmtool.image.build import Source, build_image
from cvmtool.image.store import Store
def never(): raise SystemExit("nothing may be downloaded")
image, package, kept, out = map(Path, sys.argv[1:])
source = Source(image=image, package=package)
print(build_image(source, out, store=Store(folder=kept), find_archive=never, locked=True).digest)
"""


def test_an_ordinary_user_builds_the_same_bytes(bundle: Bundle, store: Store, source: Source, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("this run is already that of an ordinary user; the other way round needs root")
    # The interpreter of the environment may stand below /root; building needs the standard library alone.
    python = next((path for path in (sys.executable, "/usr/bin/python3") if _runs_for_nobody(path)), None)
    if python is None:
        pytest.skip("no Python >= 3.11 that another user may run")
    place = Path("/var/tmp") / f"cvmtool-test-{os.getpid()}"
    try:
        for name, origin in (("images", source.image), ("cvmtool", source.package), ("kept", store.folder)):
            shutil.copytree(origin, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        subprocess.run(["chown", "-R", "65534:65534", place], check=True)
        done = subprocess.run(
            [
                *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", python, "-c", _AS_OTHER),
                *(place / name for name in ("images", "cvmtool", "kept", "out")),
            ],
            env={
                "PYTHONPATH": str(place),
                "HOME": str(place),
                "PATH": "/usr/bin:/bin",
                "LANG": "tr_TR.UTF-8",
                "TZ": "Asia/Tokyo",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == bundle.digest
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _runs_for_nobody(python: str) -> bool:
    probe = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", python, "-c"]
    code = "import sys; sys.exit(sys.version_info < (3, 11))"
    return subprocess.run([*probe, code], capture_output=True, check=False).returncode == 0


# ---- booted by plain QEMU -------------------------------------------------------------------------------------------


class Guest:
    """A virtual machine without SNP whose firmware enforces the hash table that it is given."""

    def __init__(
        self, bundle: Bundle, work: Path, *, rootfs: Path, promised: str | None = None, serial: str = "cvmtool-root"
    ) -> None:
        cmdline = bundle.cmdline(Mode.DRYRUN)
        hashes = kernel_hashes(bundle.kernel.read_bytes(), bundle.initrd.read_bytes(), promised or cmdline)
        (work / "hashes").write_bytes(hashes.table())
        gpa = parse_firmware(bundle.firmware.read_bytes()).hash_table_gpa
        argv = [
            *(
                "qemu-system-x86_64",
                "-accel",
                "tcg",
                "-cpu",
                "EPYC-Genoa",
                "-m",
                "1024",
                "-machine",
                "q35",
                "-nodefaults",
            ),
            *("-display", "none", "-no-reboot", "-serial", "stdio", "-bios", bundle.firmware, "-kernel", bundle.kernel),
            *("-initrd", bundle.initrd, "-append", cmdline),
            *("-device", f"loader,addr={gpa:#x},file={work}/hashes,force-raw=on"),
            *("-drive", f"if=none,id=root,file={rootfs},format=raw,readonly=on"),
            *("-device", f"virtio-blk-pci,drive=root,serial={serial}"),
        ]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def console(self, *, until: str | None = None, seconds: float = BOOT_SECONDS) -> str:
        """Return what the console said until a word of it, the machine's end, or (a failure) the deadline."""
        stop = threading.Timer(seconds, self.process.kill)
        stop.start()
        seen = b""
        try:
            while self.process.stdout is not None and (piece := self.process.stdout.read1(4096)):
                seen += piece
                if until is not None and until.encode() in seen:
                    break
        finally:
            stop.cancel()
        return seen.decode("utf-8", "replace")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture
def boot(bundle: Bundle, tmp_path: Path) -> Iterator[object]:
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    guests: list[Guest] = []

    def start(**change: object) -> Guest:
        guest = Guest(bundle, tmp_path, **{"rootfs": bundle.rootfs, **change})  # type: ignore[arg-type]
        guests.append(guest)
        return guest

    yield start
    for guest in guests:
        guest.end()


@pytest.mark.vm
def test_it_boots_to_its_root(boot) -> None:
    console = boot().console(until="CVM-STAGE root")
    assert "CVM-STAGE initrd" in console
    assert "CVM-STAGE root" in console
    assert "CVM-FAIL" not in console


def damaged(bundle: Bundle, where: Path, at: int, *, size: int = 1) -> Path:
    path = where / "damaged.img"
    shutil.copyfile(bundle.rootfs, path)
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(size)
        file.seek(at)
        file.write(bytes(byte ^ 0xFF for byte in old))
    return path


@pytest.mark.vm
@pytest.mark.parametrize("part", ["first block", "root hash block"])
def test_a_damaged_root_is_never_mounted(boot, bundle: Bundle, tmp_path: Path, part: str) -> None:
    blocks = int(bundle.cmdline(Mode.DRYRUN).split("cvmtool.verity=")[1].split(":")[0])
    at = 8 if part == "first block" else blocks * 4096
    console = boot(rootfs=damaged(bundle, tmp_path, at)).console()
    assert "CVM-STAGE initrd" in console
    assert "CVM-STAGE root" not in console
    assert "dm-verity device corrupted" in console


@pytest.mark.vm
def test_every_data_block_damaged_but_the_first_ends_the_guest(boot, bundle: Bundle, tmp_path: Path) -> None:
    size = bundle.rootfs.stat().st_size // 2
    console = boot(rootfs=damaged(bundle, tmp_path, 4096, size=size)).console()
    assert "CVM-STAGE agent" not in console
    assert "dm-verity device corrupted" in console


@pytest.mark.vm
def test_no_root_disk_is_a_failure_with_a_word(boot) -> None:
    console = boot(serial="another").console()
    assert "CVM-FAIL disk" in console


@pytest.mark.vm
def test_the_firmware_never_starts_a_kernel_with_another_command_line(boot, bundle: Bundle) -> None:
    guest = boot(promised=bundle.cmdline(Mode.PRODUCTION))
    assert guest.console(seconds=25) == ""
