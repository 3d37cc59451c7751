# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import io
import json
import pickle
import struct

import numpy
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats.job import OutputKind
from cvmtool.guest.kinds import check_kind

GOOD = safetensors.numpy.save(
    {"w": numpy.arange(6, dtype="float32").reshape(2, 3), "b": numpy.zeros(0, "int64"), "s": numpy.array(1, "uint8")},
    metadata={"made": "by the real library"},
)


def check(data, kind):
    check_kind(io.BytesIO(data), len(data), kind, name="out")


def tensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(begin=0, end=4, dtype="F32", shape=(1,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_safetensors_of_the_real_library():
    check(GOOD, OutputKind.SAFETENSORS)


BAD = {
    "empty": b"",
    "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94.",
    "short": b"\0" * 7,
    "header longer than the file": struct.pack("<Q", 1 << 60) + b"{}",
    "not json": tensors(b"nope"),
    "list": tensors(b"[]"),
    "trailing byte": GOOD + b"x",
    "cut": GOOD[:-1],
    "gap": tensors({"a": tensor(4, 8)}, bytes(8)),
    "overlap": tensors({"a": tensor(0, 4), "b": tensor(2, 6)}, bytes(6)),
    "dtype": tensors({"a": tensor(dtype="OBJECT")}, bytes(4)),
    "shape": tensors({"a": tensor(shape=(2,))}, bytes(4)),
    "negative": tensors({"a": tensor(shape=(-1,))}, bytes(4)),
    "truth for a number": tensors({"a": tensor(shape=(True,))}, bytes(4)),
    "backwards": tensors({"a": tensor(4, 0)}, bytes(4)),
    "extra key": tensors({"a": {**tensor(), "code": "x"}}, bytes(4)),
    "metadata": tensors({"__metadata__": {"a": 1}}),
    "same name twice": tensors(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}}'),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_what_is_not_safetensors(data):
    with pytest.raises(FormatError):
        check(data, OutputKind.SAFETENSORS)


@given(st.binary(max_size=200))
def test_any_bytes_are_safetensors_or_not(data):
    try:
        check(tensors(data), OutputKind.SAFETENSORS)
    except FormatError:
        return
    assert json.loads(data) is not None


@given(st.sampled_from(sorted(OutputKind)), st.binary(max_size=100))
def test_any_bytes_are_of_a_kind_or_not(kind, data):
    with contextlib.suppress(FormatError):
        check(data, kind)


@pytest.mark.parametrize("data", [b'{"loss": 0.5, "when": [1, null]}', b"3"])
def test_json(data):
    check(data, OutputKind.JSON)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000], ids=["empty", "open", "bytes", "deep"])
def test_what_is_not_json(data):
    with pytest.raises(FormatError):
        check(data, OutputKind.JSON)


@pytest.mark.parametrize("kind", [OutputKind.CSV, OutputKind.LOG])
@pytest.mark.parametrize(("data", "good"), [("a;ü\n".encode(), True), (b"", True), (b"\xc3", False), (b"a\0b", False)])
def test_text(kind, data, good):
    if good:
        check(data, kind)
    else:
        with pytest.raises(FormatError):
            check(data, kind)


def test_character_may_lie_across_pieces():
    check(b"x" * ((1 << 20) - 1) + "ü".encode(), OutputKind.LOG)


@pytest.mark.parametrize(("name", "data"), [("weights", pickle.dumps({"w": 1})), ("w.pt", b"weights")])
def test_a_pickle_is_no_file_that_may_leave(name, data):
    with pytest.raises(FormatError, match="pickle"):
        check_kind(io.BytesIO(data), len(data), OutputKind.FILE, name=name)
