# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Kernel modules compiled from locked source with a locked compiler, in a root of their own and without a network.

Zone: image. Starts processes; reads kept packages and the image's patches; keeps what it compiled.

The packages of the role `modules` are the whole of that root: nothing of the building machine is in it but /dev/null. It is
entered through namespaces of Linux, so no rights are needed. What could differ between two builds is given: paths, time, user and
host name. What comes out is kept under a digest of all that went in, and its own digests tell damage, not malice: who writes there
can write the checkout as well. A build that must prove itself compiles anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cvmtool.errors import BuildError
from cvmtool.image.lock import Package
from cvmtool.image.recipe import ModulesRecipe
from cvmtool.image.run import run
from cvmtool.image.store import Store
from cvmtool.image.tree import Tree

PATCHES = "patches"
"""Folder of an image, and of the root: what is changed in the source before it is compiled."""
_MERGED = ("bin", "lib", "lib64", "sbin")  # links into usr that no package of the role has
_ENTER = """\
mount --bind /dev/null "$1/dev/null" && exec chroot "$@"
"""
_NAMESPACES = ("--user", "--map-root-user", "--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--kill-child")
_KEPT = "modules-"  # below the folder of kept packages
_SUMS = "SHA256SUMS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compilation:
    """Everything that decides the bytes of the modules."""

    recipe: ModulesRecipe
    packages: tuple[Package, ...]
    """Those of the role `modules`."""
    patches: dict[str, bytes]
    release: str
    """The kernel's."""
    time: int
    """Seconds; SOURCE_DATE_EPOCH."""

    @property
    def words(self) -> list[str]:
        """What make is asked for."""
        place = f"/usr/lib/modules/{self.release}/build"
        own = [word.replace("{release}", self.release) for word in self.recipe.make]
        return ["-C", place, f"M=/{self.recipe.source}", "modules", *own]

    @property
    def environment(self) -> list[str]:
        """The only variables there are."""
        given = {
            "PATH": "/usr/bin:/usr/sbin",
            "HOME": "/",
            "LC_ALL": "C",
            "TZ": "UTC",
            "SOURCE_DATE_EPOCH": str(self.time),
            "KBUILD_BUILD_TIMESTAMP": f"@{self.time}",
            "KBUILD_BUILD_USER": "cvmtool",
            "KBUILD_BUILD_HOST": "cvmtool",
        }
        return [f"{name}={value}" for name, value in given.items()]

    def digest(self) -> str:
        """Return the SHA-256 of all that goes in, 64 hex digits."""
        patches = {name: hashlib.sha256(data).hexdigest() for name, data in self.patches.items()}
        packages = [package.sha256 for package in self.packages]
        goes_in = [_ENTER, self.environment, self.words, self.recipe.take, packages, patches]
        return hashlib.sha256(json.dumps(goes_in, sort_keys=True).encode()).hexdigest()


def compiled_modules(
    what: Compilation, *, store: Store, work: Path, fresh: bool, progress: Callable[[str], None]
) -> dict[str, bytes]:
    """Return each module that the recipe takes, by its name, without debugging information.

    Args:
        what: the compilation.
        store: kept packages; what was compiled before is kept beside them.
        work: an empty folder for the root.
        fresh: compile even if the modules are kept.
        progress: gets the name of each stage.

    Raises:
        BuildError: they do not compile, or this machine lets nobody enter a root.
    """
    kept = store.folder / f"{_KEPT}{what.digest()}"
    if not fresh:
        found = _kept_modules(kept, what.recipe.take)
        if found is not None:
            return found
    progress("unpack the compiler")
    _lay_out(what, store, work)
    _enter(what, work, _patching(what))
    progress("compile modules (minutes)")
    _enter(what, work, ["make", f"-j{os.cpu_count() or 1}", *what.words])
    modules = {}
    for name in what.recipe.take:
        path = f"{what.recipe.source}/{name}.ko"
        if not (work / path).is_file():
            hint = "change modules.take in the image's image.toml"
            raise BuildError(f"make left no {name}.ko in {what.recipe.source}; one is required", hint=hint)
        _enter(what, work, ["strip", "--strip-debug", f"/{path}"])
        modules[name] = (work / path).read_bytes()
    _keep(kept, modules)
    return modules


def read_patches(folders: Iterable[Path]) -> dict[str, bytes]:
    """Return the patches of an image's folders, by name."""
    return {path.name: path.read_bytes() for folder in folders for path in sorted((folder / PATCHES).glob("*.patch"))}


def _lay_out(what: Compilation, store: Store, root: Path) -> None:
    with Tree() as tree:
        for package in what.packages:
            tree.add_deb(store.path(package))
        if f"usr/lib/modules/{what.release}/build" not in tree:
            raise BuildError(
                f"no package of the role modules has the headers of kernel {what.release}",
                hint="renew the lock: build without --locked",
            )
        for name, data in what.patches.items():
            tree.add_file(f"{PATCHES}/{name}", data)
        for folder in ("dev", "tmp"):
            tree.add_directory(folder)
        tree.add_file("dev/null", b"")
        tree.extract(root)
    for name in _MERGED:
        with suppress(FileExistsError):
            (root / name).symlink_to(f"usr/{name}")


def _patching(what: Compilation) -> list[str]:
    script = "".join(f"patch -p1 -i /{PATCHES}/{name}\n" for name in sorted(what.patches))
    return ["sh", "-ec", f"cd /{what.recipe.source}\n{script}"]


def _enter(what: Compilation, root: Path, argv: list[str]) -> None:
    """Run a program of the root inside it, as its root, without a network."""
    inside = ["/usr/bin/env", "-i", *what.environment, *argv]
    try:
        run(["unshare", *_NAMESPACES, "--", "sh", "-c", _ENTER, "enter", root, *inside])
    except BuildError as error:
        hint = "if it is unshare that complains, this machine lets nobody make namespaces: docs/howto/build-an-image.md"
        message = f"{argv[0]} failed in the root of the compiler; it must end with code 0"
        raise BuildError(message, detail=error.detail or error.message, hint=hint) from error


def _kept_modules(folder: Path, names: tuple[str, ...]) -> dict[str, bytes] | None:
    try:
        modules = {name: (folder / f"{name}.ko").read_bytes() for name in names}
        return modules if (folder / _SUMS).read_text("ascii") == _sums(modules) else None
    except (OSError, UnicodeDecodeError):
        return None  # never compiled, or not written to the end


def _keep(folder: Path, modules: dict[str, bytes]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".modules-") as name:
        new = Path(name)
        for module, data in modules.items():
            (new / f"{module}.ko").write_bytes(data)
        (new / _SUMS).write_text(_sums(modules), "ascii")
        folder.mkdir(exist_ok=True)
        for path in new.iterdir():
            path.replace(folder / path.name)


def _sums(modules: dict[str, bytes]) -> str:
    """Return what sha256sum would print."""
    return "".join(f"{hashlib.sha256(data).hexdigest()}  {name}.ko\n" for name, data in sorted(modules.items()))
