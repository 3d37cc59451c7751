# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import copy
import datetime as dt
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats.packheader import (
    Action,
    Content,
    ContentKind,
    Metadata,
    PackHeader,
    RuleCount,
    Sensitivity,
    Source,
    Step,
    encode_header,
    moment,
    parse_pack_header,
    tree_content,
)
from tests.samples import changed_json, pack
from tests.unit.formats.test_wire import JSON

DIGEST = "sha256:" + "ab" * 32
AT = "2026-11-21T02:27:02Z"


def header(**changes):
    base = {
        "pack": pack("data"),
        "content": Content(kind=ContentKind.TREE, digest=DIGEST),
        "metadata": Metadata(owner="Ärzte", sensitivity=Sensitivity.PERSONAL, origin="ward 3", created=AT),
        "lineage": (
            Step(
                action=Action.SCRUBBED,
                at=AT,
                by="cvmtool 1",
                sources=(Source(name="raw", root_hash="cd" * 32, digest=DIGEST),),
                pipeline=DIGEST,
                counts=(RuleCount(rule="email", changed=3),),
            ),
            Step(action=Action.REKEYED, at=AT, by="cvmtool 1"),
        ),
        "owner_key": "11" * 32,
        "signature": "22" * 64,
    }
    return PackHeader(**base | changes)


def test_a_header_is_read_as_it_was_written():
    for each in (header(), header(metadata=Metadata()), header(lineage=header().lineage[1:])):
        assert parse_pack_header(encode_header(each)) == each


def test_the_signature_covers_everything_but_itself():
    signed = header().signed
    assert header(signature="33" * 64).signed == signed
    others = {
        "pack": pack("other"),
        "content": Content(kind=ContentKind.MODEL, digest=DIGEST),
        "metadata": Metadata(),
        "lineage": header().lineage[:1],
        "owner_key": "44" * 32,
    }
    for key, value in others.items():
        assert header(**{key: value}).signed != signed, key
    assert signed.startswith(b"\0\0\0\x16cvmtool/v1/pack-header")


WRONG = {
    "schema": "cvmtool/pack/v3",
    "owner_key": "11" * 31,
    "signature": "22" * 63,
    "lineage": [],
    "content": {"kind": "film", "digest": DIGEST},
    "metadata": {"sensitivity": "secret"},
    "more": 1,
}


@pytest.mark.parametrize("key", WRONG)
def test_what_is_out_of_range_is_refused(key):
    document = header().to_json() | {key: WRONG[key]}
    with pytest.raises(FormatError):
        parse_pack_header(json.dumps(document).encode())


DOCUMENT = header().to_json()
STEP = ("lineage", 0)
SOURCE, COUNT = (*STEP, "sources", 0), (*STEP, "counts", 0)


@pytest.mark.parametrize("path", [("content",), ("metadata",), STEP, SOURCE, COUNT], ids=str)
def test_nothing_within_has_an_unknown_key(path):
    with pytest.raises(FormatError, match="more"):
        parse_pack_header(changed_json(DOCUMENT, (*path, "more"), 1))


@pytest.mark.parametrize(
    ("path", "key"),
    [
        *((("content",), key) for key in ("kind", "digest")),
        *((STEP, key) for key in ("action", "at", "by")),
        *((SOURCE, key) for key in ("name", "root_hash", "digest")),
        *((COUNT, key) for key in ("rule", "changed")),
    ],
    ids=str,
)
def test_nothing_within_may_be_missing(path, key):
    document = copy.deepcopy(DOCUMENT)
    within = document
    for step in path:
        within = within[step]
    del within[key]
    with pytest.raises(FormatError, match=f"lacks.*{key}"):
        parse_pack_header(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("content", "digest"), "ab" * 32, "digest"),
        (("content", "digest"), "sha256:" + "AB" * 32, "digest"),
        ((*STEP, "pipeline"), "sha256:ab", "pipeline"),
        ((*SOURCE, "name"), "../raw", "name"),
        ((*SOURCE, "root_hash"), "cd" * 31, "root_hash"),
        ((*SOURCE, "digest"), "", "digest"),
        ((*COUNT, "changed"), -1, "changed"),
        (("lineage",), ["packed"], "lineage"),
        ((*STEP, "sources"), [7], "sources"),
        ((*STEP, "counts"), {}, "counts"),
    ],
    ids=str,
)
def test_nothing_within_is_out_of_range(path, value, named):
    with pytest.raises(FormatError, match=named):
        parse_pack_header(changed_json(DOCUMENT, path, value))


@pytest.mark.parametrize(
    ("path", "item", "most"),
    [
        (("lineage",), header().lineage[1].to_json(), 64),
        ((*STEP, "sources"), header().lineage[0].sources[0].to_json(), 64),
        ((*STEP, "counts"), header().lineage[0].counts[0].to_json(), 256),
    ],
    ids=str,
)
def test_lists_are_bounded(path, item, most):
    parse_pack_header(changed_json(DOCUMENT, path, [item] * most))
    with pytest.raises(FormatError, match=f"{most + 1} entries; at most {most}"):
        parse_pack_header(changed_json(DOCUMENT, path, [item] * (most + 1)))


def test_a_header_is_bounded():
    data = encode_header(header())
    parse_pack_header(data + b" " * ((1 << 20) - len(data)))
    with pytest.raises(FormatError):
        parse_pack_header(data + b" " * ((1 << 20) - len(data) + 1))


def test_a_header_is_a_file_for_people():
    """A key in each line, in one order, and letters as they are."""
    text = encode_header(header()).decode()
    assert text.startswith('{\n "content": {\n  "digest": "sha256:')
    assert '"owner": "Ärzte"' in text
    assert [line.split('"')[1] for line in text.splitlines() if line.startswith(' "')] == sorted(DOCUMENT)


def test_words_of_any_length_that_fits_are_kept():
    for said in ("x", "x" * 1024):
        metadata = Metadata(owner=said, origin=said, handling=said, licence=said)
        assert parse_pack_header(encode_header(header(metadata=metadata))).metadata == metadata


@pytest.mark.parametrize("said", ["", "x" * 1025, "a\nb", "\x1b[2J", "\u202e", 7, None])
@pytest.mark.parametrize("key", ["owner", "origin", "handling", "licence"])
def test_words_are_one_printable_line(key, said):
    document = header().to_json() | {"metadata": {key: said}}
    with pytest.raises(FormatError, match=key):
        parse_pack_header(json.dumps(document).encode())


@pytest.mark.parametrize("at", ["2026-13-01T00:00:00Z", "2026-01-01", "2026-01-01T00:00:00+00:00", "now", ""])
def test_a_moment_is_one_spelling_of_a_real_one(at):
    document = header().to_json() | {"metadata": {"created": at}}
    with pytest.raises(FormatError):
        parse_pack_header(json.dumps(document).encode())


@given(st.data(), JSON)
def test_any_change_gives_a_header_or_a_format_error(data, value):
    document = copy.deepcopy(header().to_json())
    where = document
    while True:
        key = data.draw(st.sampled_from(sorted(where) if isinstance(where, dict) else range(len(where))))
        if not where[key] or not isinstance(where[key], dict | list) or data.draw(st.booleans()):
            break
        where = where[key]
    where[key] = value
    with contextlib.suppress(FormatError):
        found = parse_pack_header(json.dumps(document).encode())
        assert found.to_json() == document


def test_a_moment_is_written_in_utc():
    when = dt.datetime(2026, 1, 2, 1, 4, 5, 999_999, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    assert moment(when) == "2026-01-01T23:04:05Z"


def test_a_pack_names_itself_as_a_source():
    assert header().source == Source(name="data", root_hash=pack("data").root_hash, digest=DIGEST)


def test_the_content_of_a_tree_is_what_is_in_it_in_the_order_of_its_paths():
    """Each part behind its length in 4 bytes; the kind and what is inside do not decide the order."""
    entries = [(b"d", b"b", b""), (b"x", b"a", b"\2" * 32), (b"f", b"c", b"\1" * 32)]
    expected = hashlib.sha256(
        b"\0\0\0\1x\0\0\0\1a\0\0\0\x20" + b"\2" * 32
        + b"\0\0\0\1d\0\0\0\1b\0\0\0\0"
        + b"\0\0\0\1f\0\0\0\1c\0\0\0\x20" + b"\1" * 32
    )  # fmt: skip
    assert tree_content(entries) == tree_content(reversed(entries)) == expected.digest()


@given(st.binary(max_size=200))
def test_any_bytes_give_a_format_error(data):
    with pytest.raises(FormatError):
        parse_pack_header(data)
