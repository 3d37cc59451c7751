# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""OCI layouts made in memory and written to a folder, right in every detail until a test says otherwise."""

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

TAR = "application/vnd.oci.image.layer.v1.tar"
GZIP = TAR + "+gzip"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def member(name, content=b"", *, kind=tarfile.REGTYPE, link="", **fields):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.size = len(content) if kind == tarfile.REGTYPE else 0
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def directory(name, **fields):
    return member(name, kind=tarfile.DIRTYPE, **fields)


def hard(name, link):
    return member(name, kind=tarfile.LNKTYPE, link=link)


def symbolic(name, link):
    return member(name, kind=tarfile.SYMTYPE, link=link)


def layer(*members, form=tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return file.getvalue()


CONFIG = {
    "os": "linux",
    "architecture": "amd64",
    "config": {"Entrypoint": ["python3"], "Cmd": ["-V"], "Env": ["A=1", "B=x=y"], "WorkingDir": "/app"},
    "rootfs": {"type": "layers", "diff_ids": []},
}


class Image:
    """An image; `write` puts it down as a layout directory, `archive` as a tar file."""

    def __init__(self, *layers: bytes, config=None, media=TAR, manifest=None):
        self.blobs: dict[str, bytes] = {}
        described = []
        for content in layers:
            data = gzip.compress(content, mtime=0) if media.endswith("gzip") else content
            described.append({**self.add(data), "mediaType": media})
        self.config = self.add(CONFIG if config is None else config)
        self.manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": self.config, "layers": described}
        self.manifest |= manifest or {}
        self.descriptor = {**self.add(self.manifest), "mediaType": MANIFEST}
        self.index = {"schemaVersion": 2, "manifests": [self.descriptor]}

    @property
    def digest(self) -> str:
        return self.descriptor["digest"]

    def add(self, value) -> dict:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        name = hashlib.sha256(data).hexdigest()
        self.blobs[name] = data
        return {"digest": f"sha256:{name}", "size": len(data)}

    def files(self) -> dict[str, bytes]:
        index = self.index if isinstance(self.index, bytes) else json.dumps(self.index).encode()
        files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": index}
        return files | {f"blobs/sha256/{name}": data for name, data in self.blobs.items()}

    def write(self, folder: Path) -> Path:
        for name, data in self.files().items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder

    def archive(self, path: Path, *, prefix="") -> Path:
        with tarfile.open(path, "w") as tar:
            for name, data in self.files().items():
                info = tarfile.TarInfo(prefix + name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path
