# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Write an OCI image of one layer as an `oci-archive`, the same bytes each time.

Zone: image. Writes one file.
Spec: OCI image-spec v1: image-layout.md, manifest.md, config.md.

The layer is an uncompressed tar: deflate differs between zlib versions, and the image is compressed anyway when it is
packed for a guest.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """What the image says about running it; a job states its own command and environment on top."""

    entrypoint: tuple[str, ...]
    env: dict[str, str]
    workdir: str


def write_oci_archive(out: IO[bytes], layer: Path, run: RunConfig, *, tag: str, time: int) -> str:
    """Write an oci-archive and return the digest of the image's manifest, `sha256:` and 64 hex digits.

    `layer` is a tar file; every time stamp is `time`.
    """
    with layer.open("rb") as file:
        layer_digest = hashlib.file_digest(file, "sha256").hexdigest()
    created = datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    config = _json(
        {
            "architecture": "amd64",
            "os": "linux",
            "created": created,
            "config": {
                "Env": [f"{key}={value}" for key, value in sorted(run.env.items())],
                "WorkingDir": run.workdir,
                **({"Entrypoint": list(run.entrypoint)} if run.entrypoint else {}),
            },
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
            "history": [{"created": created, "created_by": "cvmtool image container"}],
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _descriptor(_CONFIG, _digest(config), len(config)),
            "layers": [_descriptor(_LAYER, layer_digest, layer.stat().st_size)],
        }
    )
    entry = _descriptor(_MANIFEST, _digest(manifest), len(manifest))
    entry["annotations"] = {"org.opencontainers.image.ref.name": tag}
    index = _json({"schemaVersion": 2, "mediaType": _INDEX, "manifests": [entry]})
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        _put(archive, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}), time)
        _put(archive, "index.json", index, time)
        for blob in sorted((config, manifest), key=_digest):
            _put(archive, f"blobs/sha256/{_digest(blob)}", blob, time)
        with layer.open("rb") as file:
            _put_file(archive, f"blobs/sha256/{layer_digest}", file, layer.stat().st_size, time)
    return f"sha256:{_digest(manifest)}"


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _descriptor(kind: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": size}


def _put(archive: tarfile.TarFile, name: str, data: bytes, time: int) -> None:
    _put_file(archive, name, io.BytesIO(data), len(data), time)


def _put_file(archive: tarfile.TarFile, name: str, file: IO[bytes], size: int, time: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mtime = time
    archive.addfile(info, file)
