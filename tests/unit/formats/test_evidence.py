# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import hashlib
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats.evidence import (
    MAX_CERT_TABLE,
    MAX_EVIDENCE,
    Evidence,
    host_data,
    is_evidence,
    parse_evidence,
    report_data,
)
from cvmtool.formats.wire import lp

EVIDENCE = Evidence(
    report=b"r" * 1184, cert_table=b"table", ssh_host_key=b"s" * 32, hpke_key=b"h" * 32, receipt_key=b"k" * 32
)
BOUND = {
    name: bytes((number,)) * 32 for number, name in enumerate(("nonce", "ssh_host_key", "hpke_key", "receipt_key"))
}


def test_evidence_round_trips_without_and_with_the_longest_table():
    for table in (b"", b"table", bytes(MAX_CERT_TABLE)):
        evidence = replace(EVIDENCE, cert_table=table)
        assert parse_evidence(evidence.encode()) == evidence
        assert len(evidence.encode()) <= MAX_EVIDENCE


def test_evidence_is_spelled_as_the_protocol_says():
    assert EVIDENCE.encode() == lp(b"cvmtool/v1/evidence", b"r" * 1184, b"table", b"s" * 32, b"h" * 32, b"k" * 32)


@pytest.mark.parametrize("name", [field.name for field in fields(Evidence)])
def test_a_field_of_another_size_is_refused_and_named(name):
    value = bytes(MAX_CERT_TABLE + 1) if name == "cert_table" else getattr(EVIDENCE, name) + b"\0"
    with pytest.raises(FormatError, match=name):
        replace(EVIDENCE, **{name: value})
    parts = [value if field.name == name else getattr(EVIDENCE, field.name) for field in fields(Evidence)]
    with pytest.raises(FormatError, match=name):
        parse_evidence(lp(b"cvmtool/v1/evidence", *parts))


def test_another_label_is_refused():
    with pytest.raises(FormatError, match="labelled"):
        parse_evidence(EVIDENCE.encode().replace(b"/v1/", b"/v2/"))


@pytest.mark.parametrize(
    "change", [lambda data: data[:-1], lambda data: data + b"\0", lambda _: b"", lambda data: data * 60]
)
def test_bytes_too_few_or_too_many_are_refused(change):
    with pytest.raises(FormatError):
        parse_evidence(change(EVIDENCE.encode()))


def test_evidence_is_known_by_its_label():
    assert is_evidence(EVIDENCE.encode())
    assert not is_evidence(EVIDENCE.report)
    assert not is_evidence(EVIDENCE.encode()[1:])


def test_more_than_any_evidence_has_is_not_looked_at():
    with pytest.raises(FormatError, match=f"evidence has {MAX_EVIDENCE + 1} bytes"):
        parse_evidence(bytes(MAX_EVIDENCE + 1))
    with pytest.raises(FormatError, match="follow the last field"):
        parse_evidence(bytes(MAX_EVIDENCE))


@given(st.binary(max_size=64), st.integers(0, 1400), st.integers(0, 1400))
def test_any_bytes_are_evidence_or_a_format_error(data, start, end):
    whole = EVIDENCE.encode()
    for tried in (data, whole[:start] + data + whole[end:]):
        with contextlib.suppress(FormatError):
            assert parse_evidence(tried).encode() == tried


def test_report_data_is_the_hash_that_the_protocol_says():
    label = b"cvmtool/v1/report-data"
    expected = hashlib.sha512(lp(label, *BOUND.values(), b"H" * 32)).digest()
    assert report_data(**BOUND, host_data=b"H" * 32) == expected


@pytest.mark.parametrize("name", [*BOUND, "host_data"])
def test_report_data_depends_on_each_field_and_its_size(name):
    base = {**BOUND, "host_data": b"H" * 32}
    assert report_data(**{**base, name: b"!" * 32}) != report_data(**base)
    with pytest.raises(FormatError, match=name):
        report_data(**{**base, name: b"!" * 31})


def test_host_data_commits_to_owner_and_manifest():
    expected = hashlib.sha256(lp(b"cvmtool/v1/host-data", b"o" * 32, b"m" * 32)).digest()
    assert host_data(owner_key=b"o" * 32, manifest_sha256=b"m" * 32) == expected
    assert host_data(owner_key=b"m" * 32, manifest_sha256=b"o" * 32) != expected
    for bad in ({"owner_key": b"o"}, {"manifest_sha256": b"m" * 33}):
        with pytest.raises(FormatError, match=next(iter(bad))):
            host_data(**{"owner_key": b"o" * 32, "manifest_sha256": b"m" * 32, **bad})
