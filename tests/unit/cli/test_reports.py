# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Reports are read from where they come from; what is something else is told apart."""

import base64
import json
from contextlib import suppress

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.cli.reports import RAW, read_report
from cvmtool.errors import ConfigError, CvmError, FormatError
from cvmtool.formats.certtable import CertKind
from cvmtool.formats.containers import Container
from cvmtool.formats.reportmsg import ReportResponse
from tests import fakes


@pytest.fixture(scope="module")
def shown():
    return fakes.launch(fakes.fake_amd())


@pytest.fixture
def put(tmp_path):
    def write(data, name="file"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


def test_a_bare_report(put, shown):
    found = read_report(put(shown.report))
    assert (found.unwrapped.report, found.evidence, found.unwrapped.table.entries) == (shown.report, None, ())


def test_our_own_evidence_and_the_directory_it_lies_in(put, shown, tmp_path):
    path = put(shown.encode(), "evidence.bin")
    for place in (path, tmp_path):
        found = read_report(place)
        assert found.evidence == shown
        assert found.unwrapped.report == shown.report
        assert found.unwrapped.table.get(CertKind.VCEK)


def test_an_exported_launch(put, shown, tmp_path):
    put(shown.report, "report.bin")
    assert read_report(tmp_path).unwrapped.report == shown.report


def test_containers_are_named(put, shown):
    path = put(shown.report + shown.cert_table)
    assert read_report(path, "extended").unwrapped.table.get(CertKind.ARK)
    table = put(shown.cert_table, "aux")
    assert read_report(put(shown.report, "out"), "tsm", table).unwrapped.table.get(CertKind.ARK)
    with pytest.raises(typer.BadParameter):
        read_report(path, "zip")


def test_evidence_is_not_looked_for_in_a_container(put, shown):
    with pytest.raises(FormatError):
        read_report(put(shown.encode()), "extended")


def test_a_directory_of_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="neither"):
        read_report(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_report(tmp_path / "none")


def something_else(shown):
    return {
        "vTPM": (b"HCLA" + bytes(40), "azure-hcl"),
        "PEM": (b"-----BEGIN CERTIFICATE-----\n", "--vek"),
        "JSON": (json.dumps({"schema": "cvmtool/receipt"}).encode(), "receipt"),
        "DER": (b"\x30\x82\x05\x00" + bytes(40), "--vek"),
        "MSG_REPORT_RSP": (ReportResponse(status=0, report=shown.report).encode(), "response"),
        "text": (base64.encodebytes(shown.report), "base64"),
        "bytes": (shown.report + shown.cert_table, "extended"),
        "1183 bytes": (shown.report[:-1], "cut off"),
    }


@pytest.mark.parametrize("kind", something_else(fakes.launch(fakes.fake_amd())))
def test_what_is_something_else_is_named_with_what_to_do(put, shown, kind):
    data, hint = something_else(shown)[kind]
    with pytest.raises(FormatError, match=kind) as error:
        read_report(put(data))
    assert hint in error.value.hint


@given(data=st.binary(max_size=1400), container=st.sampled_from(Container))
def test_any_bytes_are_a_report_or_refused(tmp_path_factory, data, container):
    path = tmp_path_factory.mktemp("any") / "file"
    path.write_bytes(data)
    with suppress(CvmError):
        assert len(read_report(path, container).unwrapped.report) == 1184


def test_raw_is_the_containers_name():
    assert Container(RAW) is Container.RAW
