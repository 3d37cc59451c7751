# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Heads of safetensors files: what the library writes is read, and one thing wrong at a time is refused."""

import contextlib
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from cvmtool.errors import FormatError
from cvmtool.formats.safetensors import MAX_TENSOR_HEADER, read_tensor_names, read_tensors
from tests.unit.formats.test_wire import JSON


def read(data, size=None):
    return read_tensors(io.BytesIO(data).read, len(data) if size is None else size)


def written(header, content=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content


def tensor(dtype="U8", shape=(2,), offsets=(0, 2), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)} | more


def test_what_the_library_writes_is_read():
    data = save({"w": np.zeros((2, 3), np.float32), "none": np.zeros((0, 4), np.int64), "b": np.float16([[1]])})
    assert read(data) == {"w": 6, "none": 0, "b": 1}
    assert read_tensor_names(io.BytesIO(data).read, len(data)) == {"w", "none", "b"}


SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


@pytest.mark.parametrize("dtype", SIZES)
def test_every_type_has_its_size(dtype):
    size = 8 * SIZES[dtype]
    assert read(written({"w": tensor(dtype, (8,), (0, size))}, bytes(size))) == {"w": 8}
    with pytest.raises(FormatError, match="must span"):
        read(written({"w": tensor(dtype, (8,), (0, size - 1))}, bytes(size - 1)))


def test_tensors_stand_in_any_order_and_one_may_be_a_single_number():
    header = {"b": tensor(shape=(2,), offsets=(1, 3)), "a": tensor(shape=(), offsets=(0, 1))}
    assert read(written(header, bytes(3))) == {"a": 1, "b": 2}


def test_metadata_are_texts():
    header = {"__metadata__": {"format": "pt"}, "w": tensor()}
    assert read(written(header, bytes(2))) == {"w": 2}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"__metadata__": {"step": 1}, "w": tensor()}, "__metadata__"),
        ({"__metadata__": ["pt"], "w": tensor()}, "__metadata__"),
        ({"w": "U8"}, "'w' is a str"),
        ({"w": tensor(more=1)}, "more"),
        ({"w": {"dtype": "U8", "shape": [2]}}, "data_offsets"),
        ({"w": tensor("F4")}, "dtype is 'F4'"),
        ({"w": tensor(8)}, "dtype"),
        ({"w": tensor(shape=(-2,))}, "shape"),
        ({"w": tensor(shape=(True, 2))}, "shape"),
        ({"w": tensor(shape=("2",))}, "shape"),
        ({"w": tensor(shape=(1 << 48,))}, "shape is"),
        ({"w": tensor(shape=(2,) + (1,) * 64)}, "shape is"),
        ({"w": tensor(offsets=(0, 2, 4))}, "data_offsets"),
        ({"w": tensor(offsets=(0,))}, "data_offsets"),
        ({"w": tensor(offsets=(2, 0))}, "must span"),
        ({"w": tensor(shape=(1,), offsets=(1, 2))}, "begins at byte 1; 0 is required"),
        ({"w": tensor(shape=(1,), offsets=(0, 1))}, "end at byte 1 of 2"),
        ({"w": tensor(shape=(3,), offsets=(0, 3))}, "end at byte 3 of 2"),
        ({"v": tensor(), "w": tensor()}, "begins at byte 0; 2 is required"),
        ([], "object"),
    ],
    ids=str,
)
def test_what_is_no_safetensors_file_is_refused(header, said):
    with pytest.raises(FormatError, match=said):
        read(written(header, bytes(2)))


def test_a_shape_has_up_to_64_dimensions_of_less_than_2_48():
    assert read(written({"w": tensor(shape=(2,) + (1,) * 63)}, bytes(2))) == {"w": 2}
    large = (1 << 48) - 1
    data = written({"w": tensor(shape=(large,), offsets=(0, large))})
    assert read(data, len(data) + large) == {"w": large}


@pytest.mark.parametrize("size", range(8))
def test_a_file_has_8_bytes_at_least(size):
    with pytest.raises(FormatError, match="at most"):
        read(bytes(size))


def test_a_header_is_within_its_file_and_within_16_mib():
    head = b'{"__metadata__":{}}'
    assert read(written(head)) == {}
    with pytest.raises(FormatError, match=f"at most {len(head)} are"):
        read((len(head) + 1).to_bytes(8, "little") + head)
    assert MAX_TENSOR_HEADER == 16_777_216
    assert read(written(head.ljust(MAX_TENSOR_HEADER))) == {}
    with pytest.raises(FormatError, match="at most 16777216 are"):
        read(written(head.ljust(MAX_TENSOR_HEADER + 1)))


@given(st.binary(max_size=60), JSON)
def test_anything_is_read_or_refused(data, value):
    for file in (data, written(data), written({"w": value}), written({"w": tensor() | {"shape": value}}, bytes(2))):
        with contextlib.suppress(FormatError):
            assert isinstance(read(file), dict)
