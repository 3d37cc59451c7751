# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Firmware seeds on disk: what a launch digest needs of a firmware, by the SHA-256 of its image.

Zone: flows. Reads and writes one folder of the cache directory.

    SEEDS/SHA-256 of the image.json     the SHA-256 of what follows, 64 hex digits | line feed | the seed (measure/seed.py)

Why by content, and why only seeds: a path, size or time of change can be another file's, and then the digest would be wrong; a
SHA-256 cannot. Hashes of kernels and initrds need no store, for a guest image's manifest names them, and where there is no
manifest the file is hashed. So the digests of any kept image are worked out without reading one of its megabytes.

Whoever can write here can have another seed believed. So no decision comes from this store: `train`, `attest` and `measure BUNDLE`
work from the bytes or the manifest. `measure explain` asks it, whose answer is a hint for people. The sum in front finds a
disk's mistakes; an entry that does not hold is worked out again.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from cvmtool.config import private_dir, write_atomic
from cvmtool.errors import ConfigError, CvmError, FormatError
from cvmtool.measure.launch import FirmwareSeed, firmware_seed
from cvmtool.measure.ovmf import MAX_FIRMWARE_BYTES
from cvmtool.measure.seed import MAX_SEED_BYTES, encode_seed, parse_seed

_SUM_BYTES = 65  # hex digits and a line feed


class SeedStore:
    """Seeds by the SHA-256 (64 hex digits) of their firmware, below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def seed(self, firmware: bytes) -> FirmwareSeed:
        """Return what `firmware_seed` returns, and keep it.

        Raises:
            FormatError: `firmware` is malformed; that is not kept.
        """
        sha256 = hashlib.sha256(firmware).hexdigest()
        return self._kept(sha256) or self._keep(sha256, firmware)

    def seed_of_file(self, path: Path, sha256: str) -> FirmwareSeed:
        """Return the seed of the image with that SHA-256; the file is read only if the seed is not kept yet.

        Raises:
            ConfigError: the file cannot be read, or is another one than its SHA-256 says.
            FormatError: it is no firmware.
        """
        kept = self._kept(sha256)
        if kept is not None:
            return kept
        try:
            with path.open("rb") as file:
                firmware = file.read(MAX_FIRMWARE_BYTES + 1)
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
        actual = hashlib.sha256(firmware).hexdigest()
        if actual != sha256:
            raise ConfigError(f"{path}: SHA-256 is {actual}; required: {sha256}")
        return self._keep(sha256, firmware)

    def _kept(self, sha256: str) -> FirmwareSeed | None:
        try:
            with self._path(sha256).open("rb") as file:
                entry = file.read(_SUM_BYTES + MAX_SEED_BYTES + 1)
            written, text = entry[:_SUM_BYTES], entry[_SUM_BYTES:]
            return parse_seed(text) if written == _sum(text) else None
        except (OSError, FormatError):
            return None

    def _keep(self, sha256: str, firmware: bytes) -> FirmwareSeed:
        seed = firmware_seed(firmware)
        text = encode_seed(seed)
        # A disk that is full or read-only costs the next run some milliseconds, and this one nothing.
        with suppress(OSError, CvmError):
            private_dir(self._folder)
            write_atomic(self._path(sha256), _sum(text) + text)
        return seed

    def _path(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.json"


def _sum(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode("ascii") + b"\n"
