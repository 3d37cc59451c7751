# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Prove that a bundle is what its inputs make: build it again, compare byte for byte, and name what differs.

Zone: image. Builds in a temporary folder; the bundle itself is only read.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cvmtool.errors import BuildError
from cvmtool.formats.manifest import Artefact
from cvmtool.image.archive import Archive
from cvmtool.image.build import Source, build_image
from cvmtool.image.bundle import Bundle
from cvmtool.image.initrd import list_cpio
from cvmtool.image.lock import parse_lock
from cvmtool.image.run import run
from cvmtool.image.store import Store
from cvmtool.image.tools import Tools
from cvmtool.image.tree import Tree

MAX_NAMED = 50  # differing files named for one artefact


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """What a rebuild found."""

    rebuilt: str
    """SHA-256 of the rebuilt manifest, 64 hex digits."""
    differences: tuple[str, ...]
    """One line each; empty if every byte is the same."""

    @property
    def identical(self) -> bool:
        """Say whether every byte is the same."""
        return not self.differences


def reproduce_bundle(
    bundle: Bundle,
    source: Source,
    *,
    store: Store,
    find_archive: Callable[[], Archive],
    progress: Callable[[str], None],
    notice: Callable[[str], None],
) -> Reproduction:
    """Build `bundle` again from the locked packages of `source` and compare.

    Raises:
        BuildError: it cannot be built again.
    """
    lock_path = source.lock_path
    with tempfile.TemporaryDirectory(prefix="cvmtool-reproduce-") as name:
        work = Path(name)
        again = build_image(
            source,
            work / "bundle",
            store=store,
            find_archive=find_archive,
            locked=True,
            force=True,
            progress=progress,
            notice=notice,
        )
        if again.manifest_bytes == bundle.manifest_bytes:
            return Reproduction(rebuilt=again.digest, differences=())
        progress("compare")
        differences = _causes(bundle, again)
        pairs = zip(bundle.manifest.artefacts(), again.manifest.artefacts(), strict=True)
        changed = [(old, new) for old, new in pairs if old.sha256 != new.sha256]
        if changed:
            tools = _tools(lock_path, store, work, again.manifest.source_date_epoch)
            for old, new in changed:
                differences += _compare(bundle, old, again, new, tools=tools, work=work)
        for mode, line in bundle.manifest.cmdline.items():
            if line != again.manifest.cmdline[mode]:
                differences.append(f"cmdline.{mode}: {line!r} is now {again.manifest.cmdline[mode]!r}")
        if bundle.manifest.launch_digests != again.manifest.launch_digests:
            differences.append("launch_digests: they follow from the parts above")
        return Reproduction(rebuilt=again.digest, differences=tuple(differences or ["manifest.json: its bytes differ"]))


def _causes(bundle: Bundle, again: Bundle) -> list[str]:
    """Say which inputs are not those of the bundle, so that a difference has a reason."""
    old, new = bundle.manifest, again.manifest
    lines = []
    if old.lock_sha256 != new.lock_sha256:
        lines.append(
            f"packages.lock: the bundle was built from {old.lock_sha256[:16]}..., here it is {new.lock_sha256[:16]}..."
        )
    elif old.inputs_sha256 != new.inputs_sha256:
        lines.append("sources: the image's folder or the guest part of the package changed since the bundle was built")
    for tool in sorted(old.builder.keys() | new.builder.keys()):
        was, now = old.builder.get(tool, "absent"), new.builder.get(tool, "absent")
        if was != now:
            lines.append(f"builder: {tool} was {was} and is {now}")
    return lines


def _tools(lock: Path, store: Store, work: Path, time: int) -> Tools:
    tools = Tools(root=work / "tools", time=time)
    with Tree() as tree:
        for package in parse_lock(lock.read_bytes()).role("tools"):
            tree.add_deb(store.path(package))
        tree.extract(tools.root, ("usr/bin", "usr/lib", "usr/lib64"))
    return tools


def _compare(old: Bundle, one: Artefact, new: Bundle, other: Artefact, *, tools: Tools, work: Path) -> list[str]:
    lines = [f"{one.file}: {one.size} bytes sha256:{one.sha256} is now {other.size} bytes sha256:{other.sha256}"]
    try:
        if one == old.manifest.rootfs:
            before, after = (
                _squashfs(bundle.rootfs, tools, work / name) for bundle, name in ((old, "old"), (new, "new"))
            )
        elif one == old.manifest.initrd:
            before, after = (list_cpio(tools.unzstd(bundle.initrd.read_bytes())) for bundle in (old, new))
        else:
            return lines
    except BuildError as error:
        return [*lines, f"{one.file}: its files cannot be compared: {error.message}"]
    names = _differing(before, after)
    lines += [f"{one.file}: {name}" for name in names[:MAX_NAMED]]
    if len(names) > MAX_NAMED:
        lines.append(f"{one.file}: and {len(names) - MAX_NAMED} more")
    return lines


def _differing(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    names = []
    for path in sorted(before.keys() | after.keys()):
        if path not in after:
            names.append(f"{path} is gone")
        elif path not in before:
            names.append(f"{path} is new")
        elif before[path] != after[path]:
            names.append(f"{path} differs")
    return names


def _squashfs(image: Path, tools: Tools, where: Path) -> dict[str, str]:
    run(tools.argv("usr/bin/unsquashfs", "-quiet", "-no-progress", "-no-xattrs", "-d", where, image), env=tools.env())
    found = {}
    for path in sorted(where.rglob("*")):
        name = path.relative_to(where).as_posix()
        mode = path.lstat().st_mode
        if path.is_symlink():
            found[name] = f"{mode:o} {path.readlink()}"
        elif path.is_dir():
            found[name] = f"{mode:o}"
        else:
            found[name] = f"{mode:o} {hashlib.sha256(path.read_bytes()).hexdigest()}"
    return found
