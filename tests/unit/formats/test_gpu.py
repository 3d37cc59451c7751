# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
from dataclasses import replace

import pytest

from cvmtool.errors import FormatError
from cvmtool.formats.gpu import MAX_CERTIFICATES, MAX_GPUS, GpuEvidence, gpu_nonce, parse_gpu_evidence
from cvmtool.formats.job import parse_job_manifest
from cvmtool.formats.wire import canonical_json
from tests import samples

DATA = bytes(range(64))
ONE = GpuEvidence(report=b"report", certificates=b"pem", devtools=False)


def test_the_nonce_is_the_protocols():
    label = b"cvmtool/v1/gpu-nonce"
    fields = (label, DATA, bytes([0, 0, 0, 3]))
    packed = b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    assert gpu_nonce(DATA, 3) == hashlib.sha256(packed).digest()


def test_each_place_and_session_has_its_own():
    assert len({gpu_nonce(data, index) for data in (DATA, DATA[::-1]) for index in range(MAX_GPUS)}) == 2 * MAX_GPUS


def test_what_is_written_is_read_back():
    assert parse_gpu_evidence({"gpus": [ONE.to_json(), ONE.to_json()]}) == (ONE, ONE)
    assert parse_gpu_evidence({"gpus": []}) == ()


def test_the_bounds_are_inside():
    assert MAX_CERTIFICATES == 5_120
    full = GpuEvidence(report=bytes(8_192), certificates=bytes(MAX_CERTIFICATES), devtools=True)
    assert parse_gpu_evidence({"gpus": [full.to_json()] * MAX_GPUS}) == (full,) * MAX_GPUS
    for large in ({"report": bytes(8_193)}, {"certificates": bytes(MAX_CERTIFICATES + 1)}):
        with pytest.raises(FormatError):
            parse_gpu_evidence({"gpus": [replace(full, **large).to_json()]})


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"gpus": {}},
        {"gpus": ["x"]},
        {"gpus": [ONE.to_json()] * 9},
        {"gpus": [{**ONE.to_json(), "more": 1}]},
        {"gpus": [{"report": "", "certificates": ""}]},
        {"gpus": [{**ONE.to_json(), "devtools": 0}]},
        {"gpus": [{**ONE.to_json(), "report": "!"}]},
        {"gpus": [{**ONE.to_json(), "report": "AAAA" * 4000}]},
        {"gpus": [{**ONE.to_json(), "certificates": "AAAA" * 2000}]},
    ],
)
def test_another_shape_is_refused(value):
    with pytest.raises(FormatError):
        parse_gpu_evidence(value)


def test_a_manifest_names_gpus_where_there_are_any():
    manifest = samples.manifest()
    assert b'"gpus"' not in manifest.encode()
    wanting = replace(manifest, resources=replace(manifest.resources, gpus=MAX_GPUS))
    assert parse_job_manifest(wanting.encode()) == wanting
    assert wanting.host_data != manifest.host_data


@pytest.mark.parametrize("gpus", [0, MAX_GPUS + 1, -1, True, "1"])
def test_a_number_of_gpus_that_no_guest_has_is_refused(gpus):
    document = json.loads(samples.manifest().encode())
    document["resources"]["gpus"] = gpus
    with pytest.raises(FormatError):
        parse_job_manifest(canonical_json(document))
