# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Kept packages: every package a build ever used, under its SHA-256, so that a release can be built again.

Zone: image. Reads and writes one folder.

The folder is a cache, so it is not believed: a package is hashed each time it is used.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cvmtool.errors import BuildError
from cvmtool.image.archive import Archive, UnavailableError, download_debs, download_wheels
from cvmtool.image.lock import Package, PackageKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """A folder of packages, each named by its SHA-256."""

    folder: Path

    def fetch(self, packages: Iterable[Package], archive: Archive | None) -> int:
        """Make sure that every package is kept; return how many bytes were downloaded.

        Raises:
            UnavailableError: one is neither kept nor served (or not kept, and `archive` is None).
        """
        lacking = [package for package in packages if not self._kept(package)]
        if not lacking:
            return 0
        if archive is None:
            raise UnavailableError(f"{lacking[0].label} is not kept, and nothing may be downloaded")
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".download-") as name:
            folder = Path(name)
            debs = [package for package in lacking if package.kind is PackageKind.DEB]
            wheels = [package for package in lacking if package.kind is PackageKind.WHEEL]
            if debs:
                download_debs(debs, archive, folder)
            if wheels:
                download_wheels(wheels, folder)
            for package in lacking:
                _check(folder / package.sha256, package)
                (folder / package.sha256).rename(self.folder / package.sha256)
        return sum(package.size for package in lacking)

    def has(self, packages: Iterable[Package]) -> bool:
        """Say whether every package is kept."""
        return all(self._kept(package) for package in packages)

    def path(self, package: Package) -> Path:
        """Return where a kept package is.

        Raises:
            UnavailableError: it is not kept, or its bytes are other ones.
        """
        path = self.folder / package.sha256
        _check(path, package)
        return path

    def _kept(self, package: Package) -> bool:
        try:
            self.path(package)
        except BuildError:
            return False
        return True


def _check(path: Path, package: Package) -> None:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UnavailableError(f"{package.label} is not kept: {error.strerror}") from error
    if digest != package.sha256:
        raise UnavailableError(f"{package.label}: SHA-256 is {digest}; the lock requires {package.sha256}")
