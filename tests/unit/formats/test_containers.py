# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats.certtable import CertKind, CertTable
from cvmtool.formats.containers import (
    MAX_CONTAINER_BYTES,
    Claims,
    ClaimsHash,
    Container,
    Unwrapped,
    unwrap,
)
from cvmtool.formats.report import REPORT_BYTES, parse_report
from cvmtool.formats.reportmsg import ReportResponse
from tests import vectors

REPORT = bytes(range(256)) * 4 + bytes(160)
TABLE = CertTable(((CertKind.VCEK, b"vcek"), (CertKind.ASK, b"ask")))
CLAIMS = b'{"keys":[]}'


def hcl(claims=CLAIMS, *, magic=b"HCLA", version=2, runtime=1, kind=2, hashed=1, count=None, tail=bytes(100)):
    header = struct.pack("<4sI24s", magic, version, b"host's own" * 2)
    data = struct.pack("<IIIII", 20 + len(claims), runtime, kind, hashed, len(claims) if count is None else count)
    return header + REPORT + data + claims + tail


@pytest.mark.parametrize(
    ("container", "data", "auxblob", "table"),
    [
        (Container.RAW, REPORT, b"", CertTable()),
        (Container.TSM, REPORT, b"", CertTable()),
        (Container.TSM, REPORT, TABLE.encode(), TABLE),
        (Container.EXTENDED, REPORT, b"", CertTable()),
        (Container.EXTENDED, REPORT + TABLE.encode(), b"", TABLE),
        (Container.RESPONSE, ReportResponse(status=0, report=REPORT).encode().ljust(4000, b"\0"), b"", CertTable()),
    ],
)
def test_the_report_comes_out_as_it_went_in(container, data, auxblob, table):
    assert unwrap(data, container, auxblob=auxblob) == Unwrapped(report=REPORT, table=table)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("tail", [b"", bytes(1400)])
def test_azure_hcl(version, tail):
    unwrapped = unwrap(hcl(version=version, runtime=version, tail=tail), Container.AZURE_HCL)
    assert unwrapped.report == REPORT
    assert unwrapped.claims == Claims(text=CLAIMS, hash=ClaimsHash.SHA256)


def test_the_largest_container_is_accepted():
    assert unwrap(REPORT + bytes(MAX_CONTAINER_BYTES - REPORT_BYTES), Container.EXTENDED).report == REPORT


def test_the_shortest_claims_are_accepted():
    assert unwrap(hcl(b"{", tail=b""), Container.AZURE_HCL).claims.text == b"{"


def test_the_hashes_have_microsofts_numbers():
    assert {kind.name: kind.value for kind in ClaimsHash} == {"SHA256": 1, "SHA384": 2, "SHA512": 3}


@pytest.mark.parametrize("hashed", ClaimsHash)
def test_claims_say_what_report_data_must_be(hashed):
    claims = unwrap(hcl(hashed=hashed), Container.AZURE_HCL).claims
    digest = getattr(hashlib, hashed.name.lower())(CLAIMS).digest()
    assert claims.report_data == digest + bytes(64 - len(digest))


@pytest.mark.parametrize(
    ("container", "data", "auxblob", "field"),
    [
        (Container.RAW, REPORT + b"\0", b"", "report in raw has 1185"),
        (Container.RAW, REPORT[:-1], b"", "report in raw has 1183"),
        (Container.RAW, REPORT, b"x", "auxblob"),
        (Container.EXTENDED, REPORT, TABLE.encode(), "auxblob"),
        (Container.EXTENDED, REPORT[:-1], b"", "report in extended"),
        (Container.EXTENDED, REPORT + TABLE.encode()[:-1], b"", "certificate"),
        (Container.TSM, REPORT + TABLE.encode(), b"", "report in tsm"),
        (Container.TSM, REPORT, b"x", "certificate table"),
        (Container.EXTENDED, REPORT + bytes(MAX_CONTAINER_BYTES - 1183), b"", "extended has"),
        (Container.RAW, bytes(MAX_CONTAINER_BYTES + 1), b"", f"at most {MAX_CONTAINER_BYTES}"),
        (Container.RESPONSE, ReportResponse(status=0x16, report=b"").encode(), b"", "status is 0x16"),
        (Container.RESPONSE, REPORT, b"", "report response"),
        (Container.AZURE_HCL, hcl(magic=b"HCLB"), b"", "azure-hcl starts with 48434c42"),
        (Container.AZURE_HCL, hcl(version=3), b"", "version 3"),
        (Container.AZURE_HCL, hcl(version=0), b"", "version 0"),
        (Container.AZURE_HCL, hcl(runtime=3), b"", "runtime data is version 3"),
        (Container.AZURE_HCL, hcl(kind=4), b"", "type 4"),
        (Container.AZURE_HCL, hcl(hashed=0), b"", "claims hash is 0"),
        (Container.AZURE_HCL, hcl(hashed=4), b"", "claims hash is 4"),
        (Container.AZURE_HCL, hcl(b""), b"", "claims have 0"),
        (Container.AZURE_HCL, hcl(count=12, tail=b""), b"", "claims have 12"),
        (Container.AZURE_HCL, hcl(count=0xFFFFFFFF), b"", "claims have 4294967295"),
        (Container.AZURE_HCL, hcl(count=10), b"", "behind its claims"),
        (Container.AZURE_HCL, hcl(tail=b"\0\1"), b"", "behind its claims"),
        (Container.AZURE_HCL, hcl()[: 32 + REPORT_BYTES + 19], b"", "azure-hcl has 1235"),
        (Container.AZURE_HCL, hcl()[: 32 + REPORT_BYTES + 20], b"", "required: 1 to 0"),
    ],
)
def test_one_wrong_field_is_refused(container, data, auxblob, field):
    with pytest.raises(FormatError) as refused:
        unwrap(data, container, auxblob=auxblob)
    assert field in refused.value.message


def test_a_container_has_the_name_that_users_give():
    assert list(Container) == ["raw", "tsm", "extended", "response", "azure-hcl"]


@given(st.binary(max_size=2000), st.sampled_from(Container), st.binary(max_size=200))
def test_any_bytes_give_a_value_or_a_format_error(data, container, auxblob):
    with contextlib.suppress(FormatError):
        assert len(unwrap(data, container, auxblob=auxblob).report) == REPORT_BYTES


@given(st.data())
def test_a_changed_byte_gives_a_value_or_a_format_error(data):
    container, whole = data.draw(
        st.sampled_from([(Container.AZURE_HCL, hcl()), (Container.EXTENDED, REPORT + TABLE.encode())])
    )
    changed = bytearray(whole)
    changed[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FormatError):
        unwrap(bytes(changed), container)


@pytest.mark.vectors
def test_a_real_configfs_tsm_pair():
    auxblob = vectors.read("veraison/tsm-auxblob-certtable.bin")
    outblob = vectors.read("veraison/tsm-outblob.bin")
    unwrapped = unwrap(outblob, Container.TSM, auxblob=auxblob)
    assert parse_report(unwrapped.report).version == 3
    assert [guid for guid, _ in unwrapped.table.entries] == [CertKind.ARK, CertKind.ASK, CertKind.VCEK]
    assert unwrap(outblob + auxblob, Container.EXTENDED) == unwrapped
