# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import base64
import contextlib
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats import channel, control, evidence, job, release, wire
from cvmtool.formats.wire import (
    MAX_FRAME,
    Frame,
    Kind,
    canonical_json,
    json_frame,
    lp,
    members,
    natural,
    parse_base64,
    parse_canonical_json,
    parse_hex,
    parse_json,
    parse_lp,
    read_frame,
    to_base64,
    typed,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
)
OBJECTS = st.dictionaries(st.text(), JSON, max_size=5)


def canonical(data, limit=1 << 20):
    return parse_canonical_json(data, what="thing", limit=limit)


def loose(data, limit=1 << 20):
    return parse_json(data, what="thing", limit=limit)


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_fields_round_trip(fields):
    assert parse_lp(lp(*fields), len(fields), what="thing") == tuple(fields)


def test_a_field_has_its_length_before_it_in_big_endian():
    assert lp(b"ab", b"") == b"\0\0\0\2ab\0\0\0\0"


@pytest.mark.parametrize(
    "data", [lp(b"a"), lp(b"a", b"b", b"c"), lp(b"a", b"b") + b"\0", lp(b"a", b"b")[:-1], lp(b"a") + b"\xff" * 4, b""]
)
def test_another_number_of_fields_is_refused(data):
    with pytest.raises(FormatError):
        parse_lp(data, 2, what="thing")


@given(st.binary(max_size=60), st.integers(0, 4))
def test_any_bytes_are_fields_or_a_format_error(data, count):
    with contextlib.suppress(FormatError):
        assert lp(*parse_lp(data, count, what="thing")) == data


@given(OBJECTS)
def test_canonical_json_round_trips(value):
    assert canonical(canonical_json(value)) == value


@given(OBJECTS)
def test_only_one_spelling_of_an_object_is_canonical(value):
    for spelling in (json.dumps(value), json.dumps(value, indent=1), json.dumps(value, separators=(",", ":"))):
        data = spelling.encode()
        assert loose(data) == value
        if data != canonical_json(value):
            with pytest.raises(FormatError):
                canonical(data)


def test_the_canonical_form_itself():
    assert canonical_json({"b": [1, True, None], "a": 'é"\n\x7f'}) == '{"a":"é\\"\\n\x7f","b":[1,true,null]}'.encode()
    assert canonical(b'{"n":%d}' % (1 << 200)) == {"n": 1 << 200}


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"a":1}',
        '{"a":{"b":1,"b":2}}',
        '{"a":1.0}',
        '{"a":1e3}',
        '{"a":-0.0}',
        '{"a":NaN}',
        '{"a":Infinity}',
        '{"a":-Infinity}',
        '{"a":' + "9" * 5000 + "}",
        '{"a":"\\ud800"}',
        '{"\\uDFFF":1}',
        "[1]",
        '"a"',
        "1",
        "null",
        "",
        "{",
        '{"a":1} x',
        '{"a":01}',
        '{"a":+1}',
        "{'a':1}",
        '{"a":"\n"}',
        '{"a":1,}',
        "\ufeff{}",
    ],
)
def test_what_is_no_strict_json_object_is_refused_even_when_loose(text):
    for parse in (loose, canonical):
        with pytest.raises(FormatError):
            parse(text.encode())


@pytest.mark.parametrize(
    "text", ['{"a": 1}', '{"b":1,"a":1}', '{"a":-0}', '{"a":"\\u00e9"}', '{"a":"\\/"}', '{"a":1}\n', ' {"a":1}']
)
def test_another_spelling_is_json_but_not_canonical(text):
    loose(text.encode())
    with pytest.raises(FormatError):
        canonical(text.encode())


def test_an_escaped_pair_of_surrogates_is_a_character():
    assert loose(b'{"a":"\\ud83d\\ude00"}') == {"a": "\N{GRINNING FACE}"}


def test_bytes_that_are_not_utf8_are_refused():
    with pytest.raises(FormatError):
        canonical(b'{"a":"\xff"}')


def test_a_document_may_be_as_long_as_its_limit():
    assert canonical(b'{"a":1}', limit=7) == {"a": 1}
    with pytest.raises(FormatError):
        canonical(b'{"a":1}', limit=6)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_no_depth_of_nesting_is_more_than_a_format_error(opening, closing):
    # Three recursions with limits of their own read, check and write a document: at some depth each is the first to fail.
    for depth in [*range(1, 1100, 7), *range(900, 1000), 100_000]:
        data = ('{"a":' + opening * depth + "1" + closing * depth + "}").encode()
        try:
            canonical(data)
        except FormatError:
            if depth < 100:
                raise


@pytest.mark.parametrize("value", [{"a": 1.5}, {"a": [{"b": 0.0}]}, {"a": b"x"}, {"a": "\ud800"}, {1: 2, "a": 3}])
def test_what_has_no_canonical_form_is_refused(value):
    with pytest.raises(FormatError):
        canonical_json(value)


@given(st.binary(max_size=80))
def test_any_bytes_are_an_object_or_a_format_error(data):
    for parse in (loose, canonical):
        with contextlib.suppress(FormatError):
            assert isinstance(parse(data), dict)


@given(st.binary(min_size=3, max_size=3))
def test_hex_round_trips_in_lower_case_alone(data):
    assert parse_hex(data.hex(), 3, what="thing") == data
    if data.hex() != data.hex().upper():
        with pytest.raises(FormatError):
            parse_hex(data.hex().upper(), 3, what="thing")


@pytest.mark.parametrize(
    "text", ["", "00", "000000", "0g00", "00 0", "0000\n", " 0000", "\u0660" * 4, None, 0, b"0000", ["00"]]
)
def test_what_is_not_two_bytes_of_hex_is_refused(text):
    with pytest.raises(FormatError):
        parse_hex(text, 2, what="thing")


@given(st.binary(max_size=50))
def test_base64_round_trips(data):
    assert parse_base64(to_base64(data), what="thing", limit=50) == data


@pytest.mark.parametrize(
    "text", ["QQ", "QQ=", "QR==", "Q Q==", "QQ==\n", "QQ==QQ==", "Q-8=", "====", "é", None, 1, b"QQ=="]
)
def test_another_spelling_of_base64_is_refused(text):
    with pytest.raises(FormatError):
        parse_base64(text, what="thing", limit=50)


@given(st.text(alphabet="AQgw+/=-_ \n", max_size=12))
def test_every_base64_that_is_read_is_the_one_that_would_be_written(text):
    try:
        data = parse_base64(text, what="thing", limit=50)
    except FormatError:
        return
    assert base64.b64encode(data).decode() == text


@pytest.mark.parametrize("size", [4, 5, 6])
def test_base64_has_a_limit_in_bytes(size):
    assert parse_base64(to_base64(bytes(size)), what="thing", limit=size) == bytes(size)
    with pytest.raises(FormatError):
        parse_base64(to_base64(bytes(size)), what="thing", limit=size - 1)


def reader(data):
    stream = io.BytesIO(data)

    def exactly(size):
        piece = stream.read(size)
        if len(piece) != size:
            raise EOFError
        return piece

    return exactly


@pytest.mark.parametrize("frame", [Frame(Kind.JSON, b"{}"), Frame(Kind.DATA, b"x" * MAX_FRAME), Frame(Kind.END, b"")])
def test_a_frame_round_trips(frame):
    assert read_frame(reader(frame.encode())) == frame


def test_a_json_frame_is_its_kind_its_length_and_its_text():
    assert json_frame({"a": 1}) == b'J\0\0\0\7{"a":1}'


def test_a_frame_that_is_too_long_is_neither_written_nor_waited_for():
    with pytest.raises(FormatError):
        Frame(Kind.DATA, bytes(MAX_FRAME + 1)).encode()
    with pytest.raises(FormatError):
        read_frame(reader(b"D" + (MAX_FRAME + 1).to_bytes(4, "big")))


@pytest.mark.parametrize("data", [b"X\0\0\0\0", b"\0\0\0\0\0", b"j\0\0\0\0", b"E\0\0\0\1x"])
def test_what_is_no_frame_is_refused(data):
    with pytest.raises(FormatError):
        read_frame(reader(data))


@given(st.binary(max_size=30))
def test_any_bytes_are_a_frame_a_format_error_or_not_yet_whole(data):
    try:
        frame = read_frame(reader(data))
    except (FormatError, EOFError):
        return
    assert data.startswith(frame.encode())


def test_members_names_what_is_missing_or_unknown():
    members({"a": 1, "c": 2}, what="thing", required={"a"}, optional=frozenset({"b", "c"}))
    for value, named in (({}, "'a'"), ({"a": 1, "z": 2}, "'z'")):
        with pytest.raises(FormatError, match=named):
            members(value, what="thing", required={"a"}, optional=frozenset({"b"}))


def test_a_bool_is_no_integer():
    assert typed({"a": True}, "a", bool, what="thing") is True
    for value in (True, "1", None, [1]):
        with pytest.raises(FormatError):
            typed({"a": value}, "a", int, what="thing")
    with pytest.raises(FormatError):
        typed({}, "a", int, what="thing")


def test_a_natural_number_has_two_ends():
    for number in (2, 3, 5):
        assert natural({"a": number}, "a", what="thing", least=2, most=5) == number
    for number in (1, 6, -3, 1 << 80, True):
        with pytest.raises(FormatError):
            natural({"a": number}, "a", what="thing", least=2, most=5)
    assert natural({"a": (1 << 63) - 1}, "a", what="thing") == (1 << 63) - 1
    with pytest.raises(FormatError):
        natural({"a": 1 << 63}, "a", what="thing")


def test_the_numbers_are_the_protocols():
    # docs/protocol.md names each; both sides of a version must agree on them.
    assert (wire.MAX_FRAME, evidence.MAX_EVIDENCE, evidence.MAX_CERT_TABLE) == (1_048_576, 65_536, 32_768)
    assert (job.MAX_MANIFEST, job.MAX_PACKS, release.MAX_SECRETS) == (262_144, 16, 65_536)
    assert (channel.AGENT_PORT, channel.PSP_PORT) == ("org.cvmtool.agent.0", "org.cvmtool.psp.0")
    assert (control.CONTROL_ADDRESS, control.OWNER_USER) == (("127.0.0.1", 7010), "owner")
    assert (control.Stream.TRUNCATED, control.Stream.STDOUT, control.Stream.STDERR) == (0, 1, 2)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "sample: field 0 has no length; 0 bytes are left, 4 are required"),
        (b"\0\0\0", "sample: field 0 has no length; 3 bytes are left, 4 are required"),
        (lp(b"a") + b"\0\0\0", "sample: field 1 has no length; 3 bytes are left"),
        (lp(b"a") + b"\0\0\0\2x", "sample: field 1 claims 2 bytes; 1 are left"),
        (lp(b"a", b"b") + b"x", "sample: 1 bytes follow the last field; none may"),
    ],
)
def test_what_is_wrong_with_a_field_is_said(data, said):
    with pytest.raises(FormatError, match=said):
        parse_lp(data, 2, what="sample")


def test_the_length_of_a_frame_has_four_bytes():
    for size in (b"\xff\0\0\0", b"\0\x10\0\1"):
        with pytest.raises(FormatError, match="claims"):
            read_frame(io.BytesIO(b"D" + size).read)


def test_base64_is_bounded_before_it_is_decoded():
    assert parse_base64("QUJDRA==", what="sample", limit=4) == b"ABCD"
    assert parse_base64("QUJD", what="sample", limit=3) == b"ABC"
    for text, limit in (("QUJDRA==", 3), ("A" * 4000, 3), (b"QUJD", 3), (None, 3)):
        with pytest.raises(FormatError, match=f"sample is not base64 of at most {limit} bytes"):
            parse_base64(text, what="sample", limit=limit)
    with pytest.raises(FormatError, match="sample is not canonical base64 of at most 3 bytes"):
        parse_base64("QR==", what="sample", limit=3)


@pytest.mark.parametrize(("value", "shown"), [("0G", "'0G'"), (7, "int"), ("x" * 500, "'" + "x" * 47)])
def test_what_is_no_hex_is_shown_in_short(value, shown):
    with pytest.raises(FormatError) as refusal:
        parse_hex(value, 1, what="sample")
    assert refusal.value.message == f"sample is {shown}; 2 lower-case hex digits are required"
