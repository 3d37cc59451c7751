# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats.reportmsg import (
    STATUS_INVALID_KEY_SELECTION,
    STATUS_INVALID_PARAMETERS,
    STATUS_SUCCESS,
    KeySelection,
    ReportRequest,
    ReportResponse,
    parse_request,
    parse_response,
)

REQUEST = ReportRequest(report_data=b"D" * 64, vmpl=1, key=KeySelection.VCEK)
RESPONSE = ReportResponse(status=0, report=b"R" * 1184)


def test_a_request_is_96_bytes():
    assert REQUEST.encode() == b"D" * 64 + b"\1\0\0\0" + b"\1\0\0\0" + bytes(24)
    assert parse_request(REQUEST.encode()) == REQUEST


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (REQUEST.encode()[:-1], "report request has 95"),
        (REQUEST.encode() + b"\0", "report request has 97"),
        (bytes(64) + b"\4\0\0\0" + bytes(28), "vmpl is 4"),
        (bytes(68) + b"\3\0\0\0" + bytes(24), "key_sel is 3"),
        (bytes(95) + b"\1", "report request reserved"),
    ],
)
def test_a_wrong_request_is_refused(data, field):
    with pytest.raises(FormatError) as refusal:
        parse_request(data)
    assert refusal.value.message.startswith(field)


def test_the_numbers_of_the_specification():
    assert (STATUS_SUCCESS, STATUS_INVALID_PARAMETERS, STATUS_INVALID_KEY_SELECTION) == (0, 0x16, 0x27)
    assert ReportRequest(report_data=bytes(64)).vmpl == 0


@pytest.mark.parametrize("vmpl", range(4))
def test_every_privilege_level_can_ask(vmpl):
    request = ReportRequest(report_data=bytes(64), vmpl=vmpl)
    assert parse_request(request.encode()) == request


@pytest.mark.parametrize("vmpl", [-1, 4])
def test_no_other_level_can(vmpl):
    with pytest.raises(FormatError, match=f"vmpl is {vmpl}"):
        ReportRequest(report_data=bytes(64), vmpl=vmpl)


def test_a_short_report_data_cannot_be_asked_for():
    with pytest.raises(FormatError):
        ReportRequest(report_data=bytes(63))


def test_a_response_is_a_header_and_a_report():
    assert RESPONSE.encode() == b"\0\0\0\0" + b"\xa0\4\0\0" + bytes(24) + b"R" * 1184
    assert parse_response(RESPONSE.encode()) == RESPONSE
    assert parse_response(RESPONSE.encode().ljust(4000, b"\0")) == RESPONSE
    refused = ReportResponse(status=0x16, report=b"")
    assert parse_response(refused.encode()) == refused


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (bytes(31), "report response has 31"),
        (RESPONSE.encode()[:-1], "report response claims"),
        (RESPONSE.encode() + b"\1", "report response has bytes"),
        (bytes(31) + b"\1", "report response has bytes"),
        (bytes(32), "report has 0 bytes at status 0x0"),
        (b"\x16" + RESPONSE.encode()[1:], "report has 1184 bytes at status 0x16"),
    ],
)
def test_a_wrong_response_is_refused(data, field):
    with pytest.raises(FormatError) as refusal:
        parse_response(data)
    assert refusal.value.message.startswith(field)


@given(st.binary(max_size=100) | st.binary(min_size=96, max_size=96))
def test_any_bytes_give_a_message_or_format_error(data):
    with contextlib.suppress(FormatError):
        assert parse_request(data).encode() == data
    with contextlib.suppress(FormatError):
        parse_response(data)
