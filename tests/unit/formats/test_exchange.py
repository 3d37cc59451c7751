# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats.exchange import Answer, Consent, PooledJob, parse_answer, parse_pooled_job
from cvmtool.formats.wire import canonical_json, to_base64
from tests.samples import changed_json, manifest, pooled_manifest
from tests.unit.formats.test_grant import grant
from tests.unit.formats.test_wire import JSON

POOLED = PooledJob(manifest=pooled_manifest(), names={"clinic": "77" * 32, "ward-3": "88" * 32})


def answer(said) -> Answer:
    return Answer(
        manifest_sha256=pooled_manifest().sha256, round=1, said=said, owner_key="77" * 32, signature="22" * 64
    )


ANSWERS = tuple(map(answer, (Consent(nonce=b"n" * 32, grant=grant()), "not with these recipients", b"sealed")))
DOCUMENTS = [json.loads(each.encode()) for each in ANSWERS]


def test_what_each_document_calls_itself():
    assert json.loads(POOLED.encode())["schema"] == "cvmtool/exchange-job/v1"
    assert {document["schema"] for document in DOCUMENTS} == {"cvmtool/exchange-answer/v1"}


@pytest.mark.parametrize("key", ["schema", "manifest", "round", "owner_key", "signature"])
@pytest.mark.parametrize("document", DOCUMENTS, ids=["consent", "refusal", "sealed"])
def test_no_key_of_an_answer_may_be_missing(document, key):
    with pytest.raises(FormatError, match=f"lacks.*{key}"):
        parse_answer(canonical_json({name: value for name, value in document.items() if name != key}))


@pytest.mark.parametrize("key", ["schema", "manifest", "names"])
def test_no_key_of_a_pooled_job_may_be_missing(key):
    document = json.loads(POOLED.encode())
    del document[key]
    with pytest.raises(FormatError, match=f"lacks.*{key}"):
        parse_pooled_job(canonical_json(document))


def test_a_pooled_job_is_read_as_it_was_written():
    assert parse_pooled_job(POOLED.encode()) == POOLED


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema",), "cvmtool/exchange-job/v2"),
        (("manifest",), to_base64(b"{}")),
        (("manifest",), to_base64(manifest().encode())),
        (("names",), {"clinic": "77" * 32}),
        (("names",), {"clinic": "77" * 32, "ward-3": "77" * 32}),
        (("names",), {"../clinic": "77" * 32, "ward-3": "88" * 32}),
        (("names",), {f"p{n}": f"{n:02x}" * 32 for n in range(16)}),
        (("policy",), "mine"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_pooled_job_is_refused(path, value):
    with pytest.raises(FormatError):
        parse_pooled_job(changed_json(json.loads(POOLED.encode()), path, value))


def test_an_answer_is_read_as_it_was_written():
    for each in ANSWERS:
        assert parse_answer(each.encode()) == each


@pytest.mark.parametrize("each", ANSWERS, ids=["consent", "refusal", "sealed"])
def test_the_signature_covers_everything_but_itself(each):
    assert replace(each, signature="33" * 64).signed == each.signed
    others = {"manifest_sha256": b"o" * 32, "round": 2, "owner_key": "88" * 32, "said": "something else"}
    for key, value in others.items():
        assert replace(each, **{key: value}).signed != each.signed, key
    assert each.signed.startswith(b"\0\0\0\x17cvmtool/v1/party-answer")


@pytest.mark.parametrize(
    ("number", "path", "value"),
    [
        (0, ("nonce",), "00" * 31),
        (0, ("grant",), "yes"),
        (0, ("refusal",), "no"),
        (0, ("round",), 0),
        (0, ("round",), 1_001),
        (1, ("refusal",), ""),
        (1, ("refusal",), "a\nb"),
        (1, ("refusal",), "\x1b[31mno"),
        (1, ("refusal",), "n" * 1_025),
        (1, ("sealed",), ""),
        (2, ("sealed",), "AAA"),
        (2, ("sealed",), to_base64(bytes(65_537))),
        (2, ("schema",), "cvmtool/exchange-answer/v2"),
        (2, ("manifest",), None),
        (2, ("signature",), ""),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_answer_is_refused(number, path, value):
    with pytest.raises(FormatError):
        parse_answer(changed_json(DOCUMENTS[number], path, value))


def test_an_answer_has_one_spelling():
    with pytest.raises(FormatError):
        parse_answer(ANSWERS[1].encode() + b"\n")


@given(st.sampled_from(DOCUMENTS), st.sampled_from(sorted(set().union(*DOCUMENTS))), JSON)
def test_any_value_is_read_or_refused(document, key, value):
    with contextlib.suppress(FormatError):
        data = canonical_json({**document, key: value})
        assert parse_answer(data).encode() == data
