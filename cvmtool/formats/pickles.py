# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Is a file a pickle, or does it hold one: bare, in PyTorch's archives, or in NumPy's?

Zone: shared. Pure: the file comes in, and is read in bounded pieces.
Spec: pickle protocols 0 to 5; torch.save (zip since 1.6, tar before 0.1.10); NumPy's NPY format 1 to 3.

A pickle is a program: whoever loads it runs it. One of protocol 2 or later says so in its first bytes. An older one has no
mark, and a mark may be hidden behind other opcodes, so a file is also read as opcodes, from its beginning as an unpickler
would: if they go on to STOP and one of them calls something, it is a pickle. What is compressed or encrypted is not seen.
"""

from __future__ import annotations

import io
import lzma
import pickletools
import re
import tarfile
import zipfile
import zlib
from typing import IO, BinaryIO, cast

from cvmtool.errors import FormatError

PICKLE_NAMES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill")
"""Endings that promise a pickle."""
_PROTOCOL = re.compile(rb"\x80[\x02-\x05]")  # the opcode PROTO and a version, which every pickle since 2003 begins with
_CALLS = {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD", "EXT1", "EXT2", "EXT4"}
_MOST_OPCODES = 100_000  # what reads as so many is no accident
_MOST_READ = 16 << 20  # bytes at a time: an archive's table of contents, a string of a pickle
_ENCRYPTED = 1  # of a zip member's flags
_NPY = b"\x93NUMPY"
_NPY_HEADER = 65_536 + 12  # bytes; whoever has a larger one is not believed
# The Python that NumPy writes, and no other: no escapes, and no strings side by side, which Python would join.
_NPY_TYPES = re.compile(rb"(?:[\s{}()\[\],:0-9L]|True|False|'[^'\\]*'(?=\s*[]),:}]))*")
_NPY_OBJECT = re.compile(rb"[',][^a-z',]*(?:o|object)[^a-z',]*(?=[',])", re.IGNORECASE)  # '|O', 'object', 'i4,2O'
_OLD_TORCH = {"pickle", "storages", "tensors"}


def find_pickle(name: str, file: BinaryIO) -> str | None:
    """Return why a file may not be loaded by those who trust its author no further than numbers, or None if it may.

    Raises:
        FormatError: it is an archive that does not parse, or asks for more memory than is given.
        OSError: it cannot be read.
    """
    ending = next((ending for ending in PICKLE_NAMES if name.lower().endswith(ending)), None)
    if ending:
        return f"it ends in {ending}"
    bounded = _Bounded(file)
    try:
        return "its content is a pickle" if _holds_pickle(bounded) else None
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        RuntimeError,
        ValueError,
    ) as error:
        raise FormatError(f"{name[:128]} is an archive that cannot be read: {error}") from error


def _holds_pickle(file: _Bounded) -> bool:
    file.seek(0)
    head = file.read(_NPY_HEADER)
    if head.startswith(b"PK") and zipfile.is_zipfile(file):  # PyTorch since 1.6, NumPy's .npz
        with zipfile.ZipFile(file) as archive:
            return any(_is_pickled(archive, member) for member in archive.infolist())
    if _is_tar(head):  # PyTorch before 0.1.10
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            return any(member.name in _OLD_TORCH for member in tar)
    return bool(_PROTOCOL.match(head)) or _has_objects(head) or _is_program(file)


def _is_pickled(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    if member.filename.endswith((".pkl", ".pickle")):
        return True
    if member.flag_bits & _ENCRYPTED:
        return False
    with archive.open(member) as file:  # NumPy loads an array under any name
        return _has_objects(file.read(_NPY_HEADER))


def _is_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True


def _has_objects(head: bytes) -> bool:
    """Whether it is an array of NumPy's and its types are not, beyond doubt, of numbers: one of objects is a pickle."""
    if not head.startswith(_NPY):
        return False
    begin = 10 if head[6:7] == b"\1" else 12
    size = int.from_bytes(head[8:begin], "little")
    types = head[begin : begin + size]
    return len(types) < size or not _NPY_TYPES.fullmatch(types) or bool(_NPY_OBJECT.search(types))


def _is_program(file: _Bounded) -> bool:
    """Whether an unpickler would come to the end of a file, or far into it, and would have called something."""
    file.seek(0)
    calls = False
    try:
        for count, (opcode, _, _) in enumerate(pickletools.genops(cast("IO[bytes]", file))):
            calls = calls or opcode.name in _CALLS
            if count == _MOST_OPCODES:
                return True
    except (ValueError, IndexError, UnicodeError):
        return False  # genops: an unknown opcode, or an argument that is none
    return calls


class _Bounded(io.RawIOBase):
    """A file that gives no more than `_MOST_READ` bytes at once, whatever is asked of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        return self._within(self._file.read(self._most(size)))

    def readline(self, size: int | None = -1) -> bytes:
        return self._within(self._file.readline(self._most(size)))

    @staticmethod
    def _most(size: int | None) -> int:
        return _MOST_READ + 1 if size is None or size < 0 else min(size, _MOST_READ + 1)

    @staticmethod
    def _within(data: bytes) -> bytes:
        if len(data) > _MOST_READ:
            raise FormatError(f"it reads as a pickle or an archive with a piece of over {_MOST_READ} bytes")
        return data
