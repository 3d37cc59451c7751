# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Read an OCI image, pinned by digest, into the one tar stream that its root file system is.

Zone: data. The archive is the owner's own file but its content may come from a registry: every blob is checked against
the digest that names it before a byte of it is used, and sizes are bounded.
Spec: OCI image-spec v1: image-layout.md, manifest.md, config.md, layer.md (whiteouts).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from cvmtool.data.layers import Merge
from cvmtool.errors import ConfigError, FormatError, VerificationError
from cvmtool.formats.wire import JsonObject, parse_json

MAX_DOCUMENT = 4 << 20  # bytes of an index, manifest or config
_TAR = {
    "application/vnd.oci.image.layer.v1.tar": False,
    "application/vnd.oci.image.layer.v1.tar+gzip": True,
    "application/vnd.docker.image.rootfs.diff.tar": False,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": True,
}
_INDEXES = {
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """What an image says about running it."""

    args: tuple[str, ...]
    env: dict[str, str]
    workdir: str


class _Blobs(Protocol):
    def open(self, name: str) -> IO[bytes]: ...


class _Directory:
    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self, name: str) -> IO[bytes]:
        return (self._path / name).open("rb")


class _Archive:
    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path, "r:")  # noqa: SIM115 - lives as long as the image
        self._members = {member.name.removeprefix("./"): member for member in self._tar if member.isreg()}

    def open(self, name: str) -> IO[bytes]:
        member = self._members.get(name)
        file = self._tar.extractfile(member) if member else None
        if file is None:
            raise FileNotFoundError(name)
        return file


class OciImage:
    """An image in an OCI layout, opened by reference and pinned by the digest of its manifest."""

    def __init__(self, reference: str, digest: str, *, base: Path) -> None:
        """Open `oci:DIR[:TAG]` or `oci-archive:FILE[:TAG]` below `base` and check the chain of digests down to the config.

        Raises:
            ConfigError: another transport, or no such file.
            VerificationError: the layout does not hold the manifest of `digest`, or a blob is not what its digest says.
            FormatError: a document does not follow the OCI specification.
        """
        self.reference = reference
        self.digest = digest
        self._blobs = _open_layout(reference, base)
        self._manifest = self._find_manifest(digest)
        config = self._document(self._descriptor(self._manifest, "config"))
        self.config = _parse_config(config)

    def _find_manifest(self, digest: str) -> JsonObject:
        try:
            with self._blobs.open("index.json") as file:
                index = parse_json(file.read(MAX_DOCUMENT + 1), what="index.json", limit=MAX_DOCUMENT)
        except (OSError, KeyError, tarfile.TarError) as error:
            raise FormatError(f"{self.reference} is not an OCI image layout: no index.json") from error
        found = []
        entries = index.get("manifests")
        for entry in entries if isinstance(entries, list) else [None]:
            if not isinstance(entry, dict):
                raise FormatError(f"{self.reference}: index.json lists something that is no descriptor")
            found.append(str(entry.get("digest"))[:80])
            if entry.get("digest") == digest:
                return self._document(entry)
        raise VerificationError(
            f"container digest is {', '.join(found) or 'missing'} in {self.reference}; the job pins {digest}",
            hint="is this the image you meant? then pin its digest in the job file (cvmtool image container --pin)",
        )

    def _descriptor(self, parent: JsonObject, key: str) -> JsonObject:
        value = parent.get(key)
        if not isinstance(value, dict):
            raise FormatError(f"{self.reference}: the manifest has no {key}")
        return value

    def _document(self, descriptor: JsonObject) -> JsonObject:
        if str(descriptor.get("mediaType")) in _INDEXES:
            raise FormatError(
                f"{self.reference}: {self.digest} is a multi-platform index; pin the linux/amd64 manifest"
            )
        digest, size = _digest_of(descriptor, self.reference)
        try:
            with self._blobs.open(f"blobs/sha256/{digest}") as file:
                data = file.read(MAX_DOCUMENT + 1)
        except (OSError, tarfile.TarError) as error:
            raise FormatError(f"{self.reference}: the blob sha256:{digest} is missing") from error
        actual = hashlib.sha256(data).hexdigest()
        if actual != digest or len(data) != size:
            raise VerificationError(
                f"{self.reference}: a blob's digest is sha256:{actual}; sha256:{digest} is required"
            )
        # parse_json refuses floats: no document read here has a place for one.
        return parse_json(data, what=f"sha256:{digest}", limit=MAX_DOCUMENT)

    @property
    def size(self) -> int:
        """Bytes of its layers as they lie in the layout, mostly compressed. What they claim: nothing is read."""
        layers = self._manifest.get("layers")
        entries = [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []
        return sum(_digest_of(layer, self.reference)[1] for layer in entries)

    def rootfs(self) -> Iterator[bytes]:
        """Yield the image's root file system as pieces of one tar stream, whiteouts applied, every layer's digest checked.

        Raises:
            VerificationError: a layer is not what its digest says; nothing that was yielded may be used.
            FormatError: a layer of an unknown kind, or a malformed one.
        """
        layers = self._manifest.get("layers")
        if not isinstance(layers, list) or not layers:
            raise FormatError(f"{self.reference}: the manifest has no layers")
        checked = [self._check_layer(layer) for layer in layers]
        sink = _Pieces()
        merge = Merge(self.reference)
        try:
            with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as merged:
                # From the top layer down: what an upper layer has or hides, a lower one cannot bring back.
                for layer in reversed(checked):
                    with self._open_layer(layer) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
                        merge.begin(tar)
                    with self._open_layer(layer) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
                        for source in tar:
                            for member in merge.take(source):
                                merged.addfile(member, tar.extractfile(source) if member.isreg() else None)
                            yield from sink.take()
                merge.end()
            yield from sink.take()
        except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
            raise FormatError(f"{self.reference}: a layer is not a tar archive", detail=str(error)) from error

    def _check_layer(self, layer: object) -> JsonObject:
        if not isinstance(layer, dict):
            raise FormatError(f"{self.reference}: the manifest lists a layer that is no descriptor")
        digest, size = _digest_of(layer, self.reference)
        if str(layer.get("mediaType")) not in _TAR:
            raise FormatError(
                f"{self.reference}: layer mediaType is {str(layer.get('mediaType'))[:80]!r}; tar or tar+gzip is required",
                hint="convert it: skopeo copy --dest-compress-format gzip ...",
            )
        hasher = hashlib.sha256()
        length = 0
        try:
            with self._blobs.open(f"blobs/sha256/{digest}") as file:
                while chunk := file.read(1 << 20):
                    hasher.update(chunk)
                    length += len(chunk)
        except (OSError, tarfile.TarError) as error:
            raise FormatError(f"{self.reference}: the layer sha256:{digest} is missing") from error
        if hasher.hexdigest() != digest or length != size:
            raise VerificationError(
                f"{self.reference}: a layer's digest is sha256:{hasher.hexdigest()}; sha256:{digest} is required"
            )
        return layer

    def _open_layer(self, layer: JsonObject) -> IO[bytes]:
        digest, _ = _digest_of(layer, self.reference)
        file = self._blobs.open(f"blobs/sha256/{digest}")
        return gzip.open(file, "rb") if _TAR[layer["mediaType"]] else file  # type: ignore[return-value]


class _Pieces(io.RawIOBase):
    """A file that hands on what was written to it."""

    def __init__(self) -> None:
        super().__init__()
        self._written: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        piece = bytes(data)  # type: ignore[call-overload]
        self._written.append(piece)
        return len(piece)

    def take(self) -> list[bytes]:
        written, self._written = self._written, []
        return written


def _open_layout(reference: str, base: Path) -> _Blobs:
    transport, _, rest = reference.partition(":")
    if transport not in ("oci", "oci-archive") or not rest:
        raise ConfigError(
            f"container image {reference!r} has the transport {transport!r}; oci: or oci-archive: is required",
            hint=f"fetch it first: skopeo copy {reference} oci-archive:image.oci.tar",
        )
    path = base / rest
    if not path.exists() and ":" in rest:
        path = base / rest.rpartition(":")[0]  # PATH:TAG; the digest, not the tag, says which manifest
    if not path.exists():
        raise ConfigError(
            f"container image {path} does not exist", hint="cvmtool image container DIR --out FILE builds one"
        )
    if transport == "oci":
        return _Directory(path)
    try:
        return _Archive(path)
    except (tarfile.TarError, OSError) as error:
        raise FormatError(f"{path} is not an uncompressed tar archive", detail=str(error)) from error


def _digest_of(descriptor: JsonObject, reference: str) -> tuple[str, int]:
    digest, size = descriptor.get("digest"), descriptor.get("size")
    algorithm, _, value = str(digest).partition(":")
    if algorithm != "sha256" or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
        raise FormatError(f"{reference}: a descriptor's digest is {str(digest)[:80]!r}; sha256 is required")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise FormatError(f"{reference}: a descriptor's size is {size!r}; a number of bytes is required")
    return value, size


def _parse_config(config: JsonObject) -> ImageConfig:
    platform = (config.get("os"), config.get("architecture"))
    if platform != ("linux", "amd64"):
        raise ConfigError(f"container platform is {platform[0]}/{platform[1]}; linux/amd64 is required")
    run = config.get("config") or {}
    if not isinstance(run, dict):
        raise FormatError(f"image config.config is a {type(run).__name__}; an object is required")
    workdir = run.get("WorkingDir") or "/"
    if not isinstance(workdir, str) or not workdir.startswith("/"):
        raise FormatError(f"image config.WorkingDir is {str(workdir)[:80]!r}; an absolute path is required")
    env = dict(item.partition("=")[::2] for item in _strings(run, "Env"))
    return ImageConfig(args=(*_strings(run, "Entrypoint"), *_strings(run, "Cmd")), env=env, workdir=workdir)


def _strings(run: JsonObject, key: str) -> list[str]:
    value = run.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise FormatError(f"image config.{key} is not a list of strings")
    return value
