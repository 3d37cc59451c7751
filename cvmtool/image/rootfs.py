# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The root file system: locked packages, the guest part of cvmtool, kernel modules and a few files, as a squashfs.

Zone: image. Reads packages and the source tree; writes one file.
"""

from __future__ import annotations

from pathlib import Path

from cvmtool.errors import BuildError
from cvmtool.image.bytecode import add_byte_code
from cvmtool.image.libraries import check
from cvmtool.image.lock import Lock, PackageKind
from cvmtool.image.modules import ROOT, Modules
from cvmtool.image.recipe import Recipe
from cvmtool.image.store import Store
from cvmtool.image.tools import Tools
from cvmtool.image.tree import Tree

GUEST_FILES = ("__init__.py", "errors.py", "formats", "guest")
"""What of the package is measured: nothing of the owner's or the host's side."""
GUEST_ROOT = "usr/lib/cvmtool/cvmtool"
WHEELS_ROOT = "usr/lib/python3/dist-packages"
_BUSYBOX = "usr/bin/busybox"
_PYTHON = ("usr/lib/python3", "usr/lib/python3.13", "usr/lib/cvmtool")


def build_rootfs(
    folders: tuple[Path, ...],
    package: Path,
    recipe: Recipe,
    lock: Lock,
    out: Path,
    *,
    store: Store,
    tools: Tools,
    modules: Modules,
    work: Path,
) -> None:
    """Write the squashfs of a guest image. `folders`: those of the image, each laid over the ones before.

    Raises:
        BuildError: a part is missing, two parts collide, or a library is missing.
    """
    with Tree() as tree:
        for locked in lock.role("rootfs"):
            if locked.kind is PackageKind.WHEEL:
                tree.add_wheel(store.path(locked), WHEELS_ROOT)
            else:
                tree.add_deb(store.path(locked))
        tree.prune(recipe.rootfs.prune)
        for directory in recipe.rootfs.directories:
            tree.add_directory(directory)
        _add_extra(tree, recipe, lock, store)
        _add_busybox(tree, recipe.rootfs.busybox)
        for path, target in recipe.rootfs.links.items():
            tree.add_link(path, target, replace=True)
        for part in GUEST_FILES:
            if (package / part).is_dir():
                tree.add_files(package / part, f"{GUEST_ROOT}/{part}")
            else:
                tree.add_file(f"{GUEST_ROOT}/{part}", (package / part).read_bytes())
        for folder in folders:
            for part in ("skeleton", "overlay"):
                tree.add_files(folder / part)
        _add_modules(tree, recipe, modules, tools, work)
        add_byte_code(tree, _PYTHON, tools=tools, work=work / "python")
        check(tree)
        with tools.squashfs(out) as pipe:
            tree.write_tar(pipe, time=recipe.source_date_epoch)


def _add_busybox(tree: Tree, applets: tuple[str, ...]) -> None:
    program = tree.read(_BUSYBOX) if applets else b""
    for applet in applets:
        if f"\0{applet}\0".encode() not in program:  # its table of names
            raise BuildError(f"busybox has no {applet}", hint="take it out of rootfs.busybox in the image's image.toml")
        if f"usr/bin/{applet}" not in tree and f"usr/sbin/{applet}" not in tree:
            tree.add_link(f"usr/bin/{applet}", "busybox")


def _add_extra(tree: Tree, recipe: Recipe, lock: Lock, store: Store) -> None:
    with Tree() as extra:
        for locked in lock.role("extra"):
            extra.add_deb(store.path(locked))
        for path, source in recipe.rootfs.extra.items():
            tree.add_file(path, extra.read(source), mode=extra.mode(source))


def _add_modules(tree: Tree, recipe: Recipe, modules: Modules, tools: Tools, work: Path) -> None:
    folder = f"{ROOT}/{modules.release}"
    chosen = modules.closure(recipe.rootfs_modules)
    root = work / "modules"
    place = root / "lib/modules" / modules.release
    files = {f"{folder}/{path}": data for path, data in chosen.items()}
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        files[f"{folder}/{name}"] = modules.tree.read(f"{folder}/{name}")
    for path, data in files.items():
        tree.add_file(path, data)
        on_disk = place / path.removeprefix(folder + "/")
        on_disk.parent.mkdir(parents=True, exist_ok=True)
        on_disk.write_bytes(data)
    tools.depmod(root, modules.release)
    for index in [*sorted(place.glob("modules.*.bin")), place / "modules.dep", place / "modules.softdep"]:
        tree.add_file(f"{folder}/{index.name}", index.read_bytes(), replace=True)
