# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Build a guest image: from a recipe, a lock and this package's guest part to a bundle.

Zone: image. Reads the source tree, the kept packages and (for what is not kept) the archive; writes one folder.

    packages.lock -> kept packages -> root file system -> squashfs + dm-verity tree -> root hash
                  source, compiler -> kernel modules, in some images
                                   -> initrd, kernel, firmware                      -> command line -> launch digests

Nothing of the building machine enters the image: see tools.py and tree.py. `reproduce.py` proves it.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cvmtool.errors import BuildError, FormatError
from cvmtool.formats.machine import SHELL_WORD
from cvmtool.formats.manifest import MAX_VCPUS, Artefact, ImageManifest, Mode
from cvmtool.image.archive import Archive, UnavailableError, resolve
from cvmtool.image.bundle import MANIFEST_FILE, Bundle, load_bundle
from cvmtool.image.compile import Compilation, compiled_modules, read_patches
from cvmtool.image.initrd import pack_initrd
from cvmtool.image.licences import licences_of
from cvmtool.image.lock import Lock, parse_lock
from cvmtool.image.modules import add_compiled, find_modules, kernel_release
from cvmtool.image.recipe import MODULES_ROLE, Recipe, Request, asks_for_packages, extended, parse_recipe
from cvmtool.image.rootfs import GUEST_FILES, build_rootfs
from cvmtool.image.sbom import encode_sbom
from cvmtool.image.store import Store
from cvmtool.image.tools import Tools
from cvmtool.image.tree import Tree, matches
from cvmtool.image.verity import append_tree
from cvmtool.measure.hashes import kernel_hashes
from cvmtool.measure.launch import launch_digests
from cvmtool.measure.ovmf import parse_firmware

RECIPE_FILE = "image.toml"
LOCK_FILE = "packages.lock"
INIT_FILE = "init"
INITRD_PROGRAMS = ("usr/bin/busybox", "usr/sbin/dmsetup")
ROOTFS_FILE = "rootfs.img"
_SALT_LABEL = b"cvmtool/v1/verity-salt"


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What an image is built from."""

    image: Path
    """The image's folder: image.toml, packages.lock, init, skeleton/, overlay/, patches/. One that extends another, which
    lies beside it, holds what differs."""
    package: Path
    """The cvmtool package, whose guest part goes into the image."""

    def recipe(self) -> Recipe:
        """Read the recipe.

        Raises:
            ConfigError: it cannot be used.
            BuildError: it is not there.
        """
        *below, own = (_read(folder / RECIPE_FILE) for folder in self.folders)
        return parse_recipe(own, base=below[0] if below else None)

    @property
    def folders(self) -> tuple[Path, ...]:
        """The image's folder, after that of the image which it extends.

        Raises:
            ConfigError: the recipe cannot be used.
            BuildError: it is not there.
        """
        base = extended(_read(self.image / RECIPE_FILE))
        return (self.image,) if base is None else (self.image.parent / base, self.image)

    @property
    def lock_path(self) -> Path:
        """The lock: an image that asks for no package of its own has that of the image which it extends.

        Raises:
            ConfigError: the recipe cannot be used.
            BuildError: it is not there.
        """
        asking = [folder for folder in self.folders if asks_for_packages(_read(folder / RECIPE_FILE))]
        return (asking or [self.image])[-1] / LOCK_FILE

    @property
    def init_path(self) -> Path:
        """The initrd's program: the image's own, or that of the image which it extends.

        Raises:
            ConfigError: the recipe cannot be used.
            BuildError: it is not there.
        """
        own = self.image / INIT_FILE
        return own if own.exists() else self.folders[0] / INIT_FILE

    def digest(self, lock: bytes) -> str:
        """Return the SHA-256 over everything that a build reads, 64 hex digits.

        The builder's own code counts: another builder may make another image.
        """
        state = hashlib.sha256()
        named = {f"package/{path.relative_to(self.package)}": path for path in self._code()}
        for label, folder in zip(("image", "extended"), reversed(self.folders), strict=False):
            inside = (path for path in folder.rglob("*") if path.name != LOCK_FILE)
            named |= {f"{label}/{path.relative_to(folder)}": path for path in inside if path.is_file()}
        for name, path in sorted(named.items()):
            executable = path.stat().st_mode & 0o100
            data = hashlib.sha256(path.read_bytes()).hexdigest()
            state.update(f"{name} {executable} {data}\n".encode())
        state.update(lock)
        return state.hexdigest()

    def _code(self) -> list[Path]:
        return [path for part in (*GUEST_FILES, "image", "measure") for path in _python_files(self.package / part)]


def build_image(
    source: Source,
    out: Path,
    *,
    store: Store,
    find_archive: Callable[[], Archive],
    locked: bool = False,
    force: bool = False,
    progress: Callable[[str], None] = _silent,
    notice: Callable[[str], None] = _silent,
) -> Bundle:
    """Build a bundle at `out`, or return the one that stands there if its inputs are unchanged (unless `force`).

    Args:
        source: what to build.
        out: the bundle's folder; replaced as a whole, at the end.
        store: kept packages.
        find_archive: called only when something must be downloaded.
        locked: accept the packages of the lock alone, never a newer lock.
        force: build even if nothing changed.
        progress: gets the name of each stage.
        notice: gets what the user should know: a renewed lock.

    Raises:
        BuildError: the image cannot be built.
        ConfigError: the recipe cannot be used.
    """
    recipe = source.recipe()
    progress("packages")
    lock = obtain_lock(
        source.lock_path, recipe.request, store=store, find_archive=find_archive, locked=locked, notice=notice
    )
    inputs = source.digest(lock.encode())
    if not force:
        standing = _standing(out, inputs)
        if standing is not None:
            return standing
    with scratch(out) as work:
        bundle = work / "bundle"
        bundle.mkdir()
        _assemble(source, recipe, lock, inputs, bundle, work=work, store=store, force=force, progress=progress)
        _replace(bundle, out, work / "old")
    return load_bundle(out)


@contextmanager
def scratch(out: Path) -> Iterator[Path]:
    """Yield a temporary folder on the file system of `out`, so that what is made there can be renamed into place.

    Raises:
        BuildError: something cannot be written there.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as name:
            yield Path(name)
    except OSError as error:
        raise BuildError(f"{error.filename or out} cannot be used: {error.strerror}") from error


def obtain_lock(
    path: Path,
    request: Request,
    *,
    store: Store,
    find_archive: Callable[[], Archive],
    locked: bool,
    notice: Callable[[str], None],
) -> Lock:
    """Return a lock that answers `request` and whose packages are all kept, renewing the file if that is allowed.

    Raises:
        BuildError: `locked`, and the lock is missing, answers another request or is not served; or nothing is served.
    """
    lock = parse_lock(path.read_bytes()) if path.exists() else None
    hint = "build without --locked to renew it"
    if lock is None or lock.request != request.digest():
        why = "is missing" if lock is None else "answers another recipe"
        if locked:
            raise BuildError(f"{path.name} {why}; --locked requires one that fits", hint=hint)
        notice(f"{path.name} {why}: asking the archive")
        lock = _renew(path, request, find_archive(), notice)
    try:
        store.fetch(lock.packages, _archive_if_needed(store, lock, find_archive))
    except UnavailableError as error:
        if locked:
            raise BuildError(error.message, detail=error.detail, hint=hint) from error
        notice(f"{error.message}: renewing {path.name}")
        archive = find_archive()
        lock = _renew(path, request, archive, notice)
        store.fetch(lock.packages, archive)
    return lock


def _archive_if_needed(store: Store, lock: Lock, find_archive: Callable[[], Archive]) -> Archive | None:
    return None if store.has(lock.packages) else find_archive()


def _renew(path: Path, request: Request, archive: Archive, notice: Callable[[str], None]) -> Lock:
    old = {package.name: package for package in parse_lock(path.read_bytes()).packages} if path.exists() else {}
    lock = resolve(request, archive, notice=notice)
    new = {package.name: package for package in lock.packages}
    changed = [
        f"{name} {new[name].version}" for name in sorted(new) if name in old and old[name].sha256 != new[name].sha256
    ]
    if changed:
        notice(f"{path.name}: {len(changed)} changed: {', '.join(changed)}")
    try:
        path.write_bytes(lock.encode())
    except OSError as error:
        raise BuildError(f"{path} cannot be written: {error.strerror}", hint="build from a checkout") from error
    return lock


def _assemble(
    source: Source,
    recipe: Recipe,
    lock: Lock,
    inputs: str,
    bundle: Path,
    *,
    work: Path,
    store: Store,
    force: bool,
    progress: Callable[[str], None],
) -> None:
    time = recipe.source_date_epoch
    progress("unpack")
    with Tree() as kernel_tree, Tree() as parts:
        for package in lock.role("tools"):
            parts.add_deb(store.path(package))
        tools = Tools(root=work / "tools", time=time)
        parts.extract(tools.root, ("usr/bin", "usr/lib", "usr/lib64", "usr/sbin"))
        for package in lock.role("kernel"):
            kernel_tree.add_deb(store.path(package))
        if recipe.modules is not None:
            what = Compilation(
                recipe=recipe.modules,
                packages=lock.role(MODULES_ROLE),
                patches=read_patches(source.folders),
                release=kernel_release(kernel_tree),
                time=time,
            )
            add_compiled(
                kernel_tree, compiled_modules(what, store=store, work=work / "root", fresh=force, progress=progress)
            )
        modules = find_modules(kernel_tree)
        (bundle / "vmlinuz").write_bytes(_only(kernel_tree, recipe.vmlinuz))
        progress("root file system")
        rootfs = bundle / ROOTFS_FILE
        build_rootfs(
            source.folders, source.package, recipe, lock, rootfs, store=store, tools=tools, modules=modules, work=work
        )
        progress("initrd")
        with Tree() as initrd_tree:
            for package in lock.role("initrd"):
                initrd_tree.add_deb(store.path(package))
            cpio = pack_initrd(
                initrd_tree,
                init=_read(source.init_path),
                programs=INITRD_PROGRAMS,
                modules=modules.closure(recipe.initrd_modules),
                time=time,
            )
        (bundle / "initrd").write_bytes(tools.zstd(cpio))
    with Tree() as firmware_tree:
        for package in lock.role("firmware"):
            firmware_tree.add_deb(store.path(package))
        (bundle / "OVMF.amdsev.fd").write_bytes(firmware_tree.read(recipe.firmware))
    (bundle / "sbom.spdx.json").write_bytes(_sbom(recipe.name, lock, store, time=time))
    progress("measure")
    verity = append_tree(rootfs, salt=_salt(recipe.name, lock))
    production = " ".join([*recipe.cmdline, *([SHELL_WORD] if recipe.shell else []), verity.word()])
    manifest = measure_bundle(bundle, recipe, production, lock=lock, inputs=inputs, release=modules.release)
    (bundle / MANIFEST_FILE).write_bytes(manifest.encode())


def _sbom(name: str, lock: Lock, store: Store, *, time: int) -> bytes:
    return encode_sbom(name, lock, time=time, licences=licences_of(lock, store))


def measure_bundle(
    bundle: Path, recipe: Recipe, production: str, *, lock: Lock, inputs: str, release: str
) -> ImageManifest:
    """Return the manifest of the files in `bundle` under the command line `production`.

    Raises:
        BuildError: the firmware would not measure a kernel.
    """
    firmware = (bundle / "OVMF.amdsev.fd").read_bytes()
    try:
        if not parse_firmware(firmware).has_kernel_hashes:
            raise BuildError(
                "the firmware has no SNP_KERNEL_HASHES section, so it would boot any kernel; one is required"
            )
    except FormatError as error:
        raise BuildError(f"the firmware cannot be measured: {error.message}") from error
    kernel = (bundle / "vmlinuz").read_bytes()
    initrd = (bundle / "initrd").read_bytes()
    cmdline = {Mode.PRODUCTION: production, Mode.DRYRUN: f"{production} cvmtool.dryrun=1"}
    digests = {
        mode: {
            cpu: tuple(
                digest.hex()
                for digest in launch_digests(
                    firmware, hashes=kernel_hashes(kernel, initrd, line), cpu=cpu, vcpus=MAX_VCPUS
                )
            )
            for cpu in recipe.cpus
        }
        for mode, line in cmdline.items()
    }
    return ImageManifest(
        name=recipe.name,
        source_date_epoch=recipe.source_date_epoch,
        inputs_sha256=inputs,
        lock_sha256=hashlib.sha256(lock.encode()).hexdigest(),
        kernel_release=release,
        builder={package.name: package.version for package in lock.role("tools")},
        firmware=_artefact(bundle / "OVMF.amdsev.fd"),
        kernel=_artefact(bundle / "vmlinuz"),
        initrd=_artefact(bundle / "initrd"),
        rootfs=_artefact(bundle / ROOTFS_FILE),
        sbom=_artefact(bundle / "sbom.spdx.json"),
        cmdline=cmdline,
        launch_digests=digests,
    )


def _standing(out: Path, inputs: str) -> Bundle | None:
    try:
        bundle = load_bundle(out)
    except (BuildError, FormatError):
        return None  # none, an old form, or damaged: build it
    return bundle if bundle.manifest.inputs_sha256 == inputs else None


def _replace(new: Path, out: Path, old: Path) -> None:
    if out.exists():
        out.rename(old)
    new.rename(out)


def _only(tree: Tree, glob: str) -> bytes:
    found = [path for path, _ in tree.items() if matches(path, (glob,))]
    if len(found) != 1:
        raise BuildError(f"{glob} is {len(found)} files of the kernel package; exactly one is required")
    return tree.read(found[0])


def _salt(name: str, lock: Lock) -> bytes:
    # Derived from the inputs: a salt must differ between images, and must not differ between builds of one.
    return hashlib.sha256(_SALT_LABEL + f"/{name}\n".encode() + lock.encode()).digest()


def _artefact(path: Path) -> Artefact:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Artefact(file=path.name, sha256=digest, size=path.stat().st_size)


def _python_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BuildError(f"{path.name} of the image cannot be read: {error.strerror}", detail=str(path)) from error
