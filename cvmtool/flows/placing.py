# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What a machine needs on its host, and how it gets there.

Zone: flows. Public artefacts and ciphertext alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cvmtool.config import write_atomic
from cvmtool.errors import HostError
from cvmtool.flows.hosts import Host
from cvmtool.flows.packs import SealedPack
from cvmtool.flows.reporter import Reporter
from cvmtool.formats.manifest import Artefact as ImageFile
from cvmtool.host.storage import MachineDir
from cvmtool.host.store import Artefact
from cvmtool.image.bundle import Bundle

FIRMWARE_FILE = "firmware.fd"
KERNEL_FILE = "vmlinuz"
INITRD_FILE = "initrd"
ROOTFS_FILE = "rootfs.img"


def pack_file(pack: SealedPack) -> str:
    """Return a pack's name in a machine's directory."""
    return f"pack-{pack.descriptor.name}.img"


def artefacts(bundle: Bundle, packs: Sequence[SealedPack]) -> dict[str, Artefact]:
    """Return what goes into a machine's directory, by name there.

    Raises:
        HostError: a pack cannot be read.
    """
    manifest = bundle.manifest
    named: dict[str, ImageFile] = {
        FIRMWARE_FILE: manifest.firmware,
        KERNEL_FILE: manifest.kernel,
        INITRD_FILE: manifest.initrd,
        ROOTFS_FILE: manifest.rootfs,
    }
    found = {name: Artefact(path=bundle.path(item), sha256=item.sha256, size=item.size) for name, item in named.items()}
    return found | {pack_file(pack): _pack(pack.path) for pack in packs}


def place(host: Host, directory: MachineDir, bundle: Bundle, packs: Sequence[SealedPack], reporter: Reporter) -> None:
    """Give a machine's directory what it needs; what the host has already is not sent again.

    Raises:
        HostError: the host cannot take it.
    """
    for name, artefact in artefacts(bundle, packs).items():
        reporter.step(f"{name} to the host")
        host.store.place(artefact, directory.path(name), reporter.progress)


def _pack(path: Path) -> Artefact:
    """Hash a pack, once: the digest is kept beside it, with the size and time of the file that it is of."""
    kept = path.with_name(f"{path.name}.sha256")
    try:
        status = path.stat()
        label = f"{status.st_size} {status.st_mtime_ns}"
        with suppress(OSError, ValueError):
            digest, _, of = kept.read_text("ascii").strip().partition(" ")
            if of == label and len(bytes.fromhex(digest)) == hashlib.sha256().digest_size:
                return Artefact(path=path, sha256=digest, size=status.st_size)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        write_atomic(kept, f"{digest} {label}\n".encode("ascii"))
    except OSError as error:
        raise HostError(f"the pack {path} cannot be read", detail=str(error)) from error
    return Artefact(path=path, sha256=digest, size=status.st_size)
