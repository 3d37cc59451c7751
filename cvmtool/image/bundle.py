# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A bundle: the folder that a build makes, and the check that it is what its manifest says.

Zone: image. Reads one folder.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cvmtool.errors import BuildError
from cvmtool.formats.manifest import MAX_MANIFEST, Artefact, ImageManifest, Mode, parse_image_manifest

MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A guest image on disk whose files were checked against its manifest."""

    folder: Path
    manifest: ImageManifest
    manifest_bytes: bytes

    def path(self, artefact: Artefact) -> Path:
        """Return where one of its files is."""
        return self.folder / artefact.file

    @property
    def firmware(self) -> Path:
        """The firmware image."""
        return self.path(self.manifest.firmware)

    @property
    def kernel(self) -> Path:
        """The kernel."""
        return self.path(self.manifest.kernel)

    @property
    def initrd(self) -> Path:
        """The initrd."""
        return self.path(self.manifest.initrd)

    @property
    def rootfs(self) -> Path:
        """The root disk: squashfs and its dm-verity tree."""
        return self.path(self.manifest.rootfs)

    def cmdline(self, mode: Mode) -> str:
        """Return the measured command line of a mode."""
        return self.manifest.cmdline[mode]

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, 64 hex digits: the image's name for machines."""
        return hashlib.sha256(self.manifest_bytes).hexdigest()


def load_bundle(folder: Path) -> Bundle:
    """Read a bundle and check the size and SHA-256 of every file.

    Raises:
        BuildError: there is no bundle, or a file is missing or another one.
        FormatError: its manifest does not follow the format.
    """
    path = folder / MANIFEST_FILE
    hint = f"cvmtool image build {folder.name}"
    try:
        if path.stat().st_size > MAX_MANIFEST:
            raise BuildError(f"{path} has {path.stat().st_size} bytes; at most {MAX_MANIFEST} are allowed", hint=hint)
        data = path.read_bytes()
    except OSError as error:
        raise BuildError(f"{folder} holds no guest image: {error.strerror}", hint=hint) from error
    bundle = Bundle(folder=folder, manifest=parse_image_manifest(data), manifest_bytes=data)
    for artefact in bundle.manifest.artefacts():
        _check(bundle.path(artefact), artefact, hint)
    return bundle


def _check(path: Path, artefact: Artefact, hint: str) -> None:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size != artefact.size:
                raise BuildError(f"{artefact.file} has {size} bytes; the manifest requires {artefact.size}", hint=hint)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BuildError(f"{artefact.file} of the guest image cannot be read: {error.strerror}", hint=hint) from error
    if digest != artefact.sha256:
        raise BuildError(f"{artefact.file}: SHA-256 is {digest}; the manifest requires {artefact.sha256}", hint=hint)
