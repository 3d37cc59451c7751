# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Build a training container from Debian packages: `container.toml` and its lock to an oci-archive.

Zone: image. Reads a folder, the kept packages and (for what is not kept) the archive; writes one file.

As for the guest image, packages are unpacked and their scripts are not run. What a script would have set up, such as a
choice between alternatives, stands in the recipe as a link.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cvmtool.errors import BuildError, ConfigError
from cvmtool.image.archive import Archive
from cvmtool.image.build import LOCK_FILE, obtain_lock, scratch
from cvmtool.image.bytecode import add_byte_code
from cvmtool.image.libraries import check
from cvmtool.image.lock import Lock, PackageKind
from cvmtool.image.oci import RunConfig, write_oci_archive
from cvmtool.image.recipe import Request, parse_toml, take_request
from cvmtool.image.rootfs import WHEELS_ROOT
from cvmtool.image.store import Store
from cvmtool.image.tools import Tools
from cvmtool.image.tree import Tree

RECIPE_FILE = "container.toml"
ROLES = ("rootfs", "tools")
_PIN = re.compile(r"^(?P<indent>[ \t]+digest:[ \t]*)(?P<value>\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerRecipe:
    """One container image."""

    name: str
    source_date_epoch: int
    request: Request
    run: RunConfig
    prune: tuple[str, ...]
    directories: tuple[str, ...]
    libraries: tuple[str, ...]
    """Folders beside the linker's own in which shared libraries are found."""
    compile: tuple[str, ...]
    """Globs of the Python modules that get byte code."""
    links: dict[str, str]
    files: dict[str, str]
    """Path in the image -> path from the recipe's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A built image."""

    path: Path
    digest: str
    """Of its manifest, `sha256:` and 64 hex digits; a job pins it."""


def parse_container(data: bytes) -> ContainerRecipe:
    """Read container.toml.

    Raises:
        ConfigError: not TOML, a key is missing or unknown, or has another type.
    """
    top = parse_toml(data, RECIPE_FILE)
    request = take_request(top, roles=ROLES)
    rootfs = top.table("rootfs", optional=True)
    run = top.table("run", optional=True)
    recipe = ContainerRecipe(
        name=top.text("name"),
        source_date_epoch=top.number("source_date_epoch"),
        request=request,
        run=RunConfig(entrypoint=run.words("entrypoint", ()), env=run.texts("env"), workdir=run.text("workdir", "/")),
        prune=rootfs.words("prune", ()),
        directories=rootfs.words("directories", ()),
        libraries=rootfs.words("libraries", ()),
        compile=rootfs.words("compile", ()),
        links=rootfs.texts("links"),
        files=top.texts("files"),
    )
    for table in (rootfs, run, top):
        table.end()
    return recipe


def build_container(
    folder: Path,
    out: Path,
    *,
    store: Store,
    find_archive: Callable[[], Archive],
    locked: bool = False,
    progress: Callable[[str], None],
    notice: Callable[[str], None],
) -> Container:
    """Build the image of `folder`/container.toml and write it to `out`, whole or not at all.

    Raises:
        BuildError: the image cannot be built.
        ConfigError: the recipe cannot be used.
    """
    try:
        recipe = parse_container((folder / RECIPE_FILE).read_bytes())
    except OSError as error:
        raise BuildError(f"{folder / RECIPE_FILE} cannot be read: {error.strerror}") from error
    progress("packages")
    lock = obtain_lock(
        folder / LOCK_FILE, recipe.request, store=store, find_archive=find_archive, locked=locked, notice=notice
    )
    with scratch(out) as work:
        progress("root file system")
        layer = work / "layer.tar"
        _write_layer(folder, recipe, lock, layer, store=store, work=work)
        progress("image")
        with (work / "image").open("wb") as file:
            digest = write_oci_archive(file, layer, recipe.run, tag=recipe.name, time=recipe.source_date_epoch)
        (work / "image").rename(out)
    return Container(path=out, digest=digest)


def _write_layer(folder: Path, recipe: ContainerRecipe, lock: Lock, layer: Path, *, store: Store, work: Path) -> None:
    with Tree() as tree:
        for package in lock.role("rootfs"):
            if package.kind is PackageKind.WHEEL:
                tree.add_wheel(store.path(package), WHEELS_ROOT)
            else:
                tree.add_deb(store.path(package))
        tree.prune(recipe.prune)
        for directory in recipe.directories:
            tree.add_directory(directory)
        for path, target in recipe.links.items():
            tree.add_link(path, target, replace=True)
        for path, source in recipe.files.items():
            try:
                tree.add_file(path, (folder / source).read_bytes(), replace=True)
            except OSError as error:
                raise BuildError(f"{RECIPE_FILE}.files: {source} cannot be read: {error.strerror}") from error
        if recipe.compile:
            with Tree() as parts:
                for package in lock.role("tools"):
                    parts.add_deb(store.path(package))
                tools = Tools(root=work / "tools", time=recipe.source_date_epoch)
                parts.extract(tools.root, ("usr/bin", "usr/lib", "usr/lib64"))
            add_byte_code(tree, recipe.compile, tools=tools, work=work / "python")
        check(tree, extra=recipe.libraries)
        with layer.open("wb") as file:
            tree.write_tar(file, time=recipe.source_date_epoch)


def pin(job: str, digest: str) -> str:
    """Return the text of a job file whose `container:` has `digest: <digest>`; nothing else changes.

    Raises:
        ConfigError: there is no such line, or more than one.
    """
    block = re.search(r"^container:[^\n]*\n(?:[ \t]+[^\n]*\n|[ \t]*\n|#[^\n]*\n)*", job + "\n", re.MULTILINE)
    lines = list(_PIN.finditer(block[0])) if block else []
    if block is None or len(lines) != 1:
        raise ConfigError(
            f"the job file has {len(lines)} lines `digest:` below `container:`; exactly one is required",
            hint="add `digest: sha256:0` below `container:`",
        )
    start, end = (block.start() + at for at in lines[0].span("value"))
    return job[:start] + digest + job[end:]
