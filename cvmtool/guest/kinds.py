# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Check that an output is what the job said it would be, before it leaves.

Zone: guest (measured). Reads only.
Spec: safetensors format; docs/protocol.md section 5.

These checks keep a job from sending a pickle, where weights were promised or where any file would do. They do not, and
cannot, tell what the numbers in a tensor mean: whoever reads an output trusts the training code that the manifest names.
"""

from __future__ import annotations

import codecs
import json
from typing import BinaryIO

from cvmtool.errors import FormatError
from cvmtool.formats.job import OutputKind
from cvmtool.formats.safetensors import read_tensor_names

MAX_JSON = 64 << 20  # bytes; parsed in memory
_PIECE = 1 << 20


def check_kind(file: BinaryIO, size: int, kind: OutputKind, *, name: str) -> None:
    """Read `file` (of `size` bytes, from its beginning) as a `kind`; its `name` may say that it is a pickle.

    Raises:
        FormatError: it is not one.
    """
    file.seek(0)
    if kind is OutputKind.SAFETENSORS:
        read_tensor_names(file.read, size)
    elif kind is OutputKind.JSON:
        _check_json(file, size)
    elif kind in {OutputKind.CSV, OutputKind.LOG}:
        _check_text(file)
    else:
        _refuse_pickle(file, name)


def _refuse_pickle(file: BinaryIO, name: str) -> None:
    from cvmtool.formats.pickles import find_pickle  # noqa: PLC0415 - its libraries cost the boot 0.1 s under TCG

    if reason := find_pickle(name, file):
        raise FormatError(f"a pickle ({reason}), which runs a program when it is loaded; safetensors are required")


def _check_json(file: BinaryIO, size: int) -> None:
    if size > MAX_JSON:
        raise FormatError(f"json has {size} bytes; at most {MAX_JSON} are allowed")
    try:
        json.loads(file.read().decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise FormatError(f"not valid JSON: {error}") from error


def _check_text(file: BinaryIO) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while piece := file.read(_PIECE):
            if "\0" in decoder.decode(piece):
                raise FormatError("text has a NUL character")
        decoder.decode(b"", True)  # noqa: FBT003 (positional only)
    except UnicodeDecodeError as error:
        raise FormatError(f"not UTF-8 text: {error.reason}") from error
