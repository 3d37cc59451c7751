# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import json
from dataclasses import replace

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.v1.statement import Statement as InTotoStatement
from in_toto_attestation.v1.statement_pb2 import Statement as InTotoMessage

from cvmtool.errors import FormatError
from cvmtool.formats.evidence import Evidence
from cvmtool.formats.job import Network, OutputKind
from cvmtool.formats.pack import Role
from cvmtool.formats.receipt import Access, Accesses, InputDigest, OutputDigest, Statement, parse_statement
from cvmtool.formats.wire import canonical_json
from tests.samples import changed_json
from tests.unit.formats.test_egress import EGRESS
from tests.unit.formats.test_wire import JSON

STATEMENT = Statement(
    outputs=(
        OutputDigest(name="model.bin", kind=OutputKind.FILE, size=5, sha256="aa" * 32),
        OutputDigest(name="a/b", kind=OutputKind.CSV, size=0, sha256="bb" * 32),
    ),
    manifest_sha256=b"M" * 32,
    network=Network.NONE,
    access=(Access.EXEC, Access.TUNNEL),
    gpus=1,
    container_digest="sha256:" + "cc" * 32,
    inputs=(
        InputDigest(name="container", role=Role.CONTAINER, root_hash="dd" * 32),
        InputDigest(name="data", role=Role.INPUT, root_hash="de" * 32),
    ),
    measurement=b"L" * 48,
    image_id=b"I" * 16,
    started="2026-01-01T00:00:00Z",
    finished="2026-01-01T00:01:00.5Z",
    log_sha256="ee" * 32,
    log_size=9,
    exit_code=0,
    simulated=True,
    nonce=b"N" * 32,
    owner_key=b"O" * 32,
    evidence=Evidence(
        report=bytes(1184), cert_table=b"t", ssh_host_key=bytes(32), hpke_key=bytes(32), receipt_key=bytes(32)
    ),
)
BASE = json.loads(STATEMENT.encode())
DEFINITION = ["predicate", "buildDefinition"]
GIVEN = [*DEFINITION, "externalParameters"]
NEEDED = [*DEFINITION, "resolvedDependencies"]
DETAILS = ["predicate", "runDetails"]
BUILDER = [*DETAILS, "builder"]
IMAGE = [*BUILDER, "builderDependencies"]
LOG = [*DETAILS, "byproducts"]
METADATA = [*DETAILS, "metadata"]
ATTESTATION = ["predicate", "attestation"]


def at(document, path):
    for step in path:
        document = document[step]
    return document


def test_a_statement_round_trips():
    assert parse_statement(STATEMENT.encode()) == STATEMENT
    empty = replace(STATEMENT, outputs=(), access=(), gpus=0, inputs=(), simulated=False)
    assert parse_statement(empty.encode()) == empty


@pytest.mark.parametrize(
    "accesses", [Accesses(exec=1), Accesses(tunnels=7), Accesses(exec=2, tunnels=1 << 40)], ids=str
)
def test_what_was_reached_stands_in_it_only_if_there_was_any(accesses):
    used = replace(STATEMENT, accesses=accesses)
    assert parse_statement(used.encode()) == used
    assert b"accesses" not in STATEMENT.encode()


def test_what_went_out_stands_in_it_if_there_was_a_way_out():
    used = replace(STATEMENT, network=Network.ALLOW, egress=EGRESS)
    assert parse_statement(used.encode()) == used
    never_ran = replace(used, egress=None)
    assert parse_statement(never_ran.encode()) == never_ran
    assert b"egress" not in STATEMENT.encode()


def test_a_statement_is_in_totos():
    InTotoStatement.copy_from_pb(json_format.Parse(STATEMENT.encode(), InTotoMessage())).validate()
    assert BASE["_type"] == "https://in-toto.io/Statement/v1"
    assert BASE["predicateType"] == "urn:cvmtool:training-receipt:v2"
    assert BASE["subject"][0] == {
        "name": "model.bin", "digest": {"sha256": "aa" * 32}, "annotations": {"kind": "file", "size": 5},
    }  # fmt: skip


def test_the_run_is_told_as_slsa_tells_it():
    told = {key: BASE["predicate"][key] for key in ("buildDefinition", "runDetails")}
    provenance = json_format.ParseDict(told, Provenance())  # refuses a name that SLSA does not have
    assert provenance.build_definition.build_type == "urn:cvmtool:job:v1"
    assert provenance.run_details.builder.id == "urn:cvmtool:simulated-guest:v1"
    assert [item.name for item in provenance.build_definition.resolved_dependencies] == [
        "container-image", "container", "data",
    ]  # fmt: skip
    assert json_format.MessageToDict(provenance.build_definition.external_parameters)["network"] == "none"


def test_a_dry_run_has_another_builder():
    real = json.loads(replace(STATEMENT, simulated=False).encode())
    assert at(real, BUILDER)["id"] != at(BASE, BUILDER)["id"]
    assert "simulated" in at(BASE, BUILDER)["id"]


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (["_type"], "https://in-toto.io/Statement/v0.1", "_type"),
        (["predicateType"], "urn:cvmtool:training-receipt:v1", "predicateType"),
        (["predicateType"], 1, "predicateType"),
        (["subject"], {}, "subject"),
        (["subject"], ["x"], "subject"),
        (["subject", 0, "digest"], {"sha512": "aa"}, "digest"),
        (["subject", 0, "digest", "sha256"], "AA" * 32, "digest"),
        (["subject", 0, "name"], "../../etc/passwd", "name"),
        (["subject", 0, "name"], "/etc/passwd", "name"),
        (["subject", 0, "annotations", "size"], -5, "size"),
        (["subject", 0, "annotations", "kind"], "pickle", "kind"),
        (["subject", 0, "annotations", "more"], 1, "unknown"),
        (["subject", 1, "name"], "model.bin", "twice"),
        ([*DEFINITION, "buildType"], "urn:cvmtool:job:v2", "buildType"),
        ([*GIVEN, "manifest", "digest", "sha256"], "M", "manifest"),
        ([*GIVEN, "network"], "all", "network"),
        ([*GIVEN, "network"], ["none"], "network"),
        ([*GIVEN, "access"], ["root"], "access"),
        ([*GIVEN, "access"], ["tunnel", "exec"], "sorted"),
        ([*GIVEN, "access"], ["exec", "exec"], "twice"),
        ([*GIVEN, "access"], "shell", "access"),
        (["predicate", "result", "accesses"], {}, "absent"),
        (["predicate", "result", "accesses"], [], "absent"),
        (["predicate", "result", "accesses"], {"exec": 0}, "exec"),
        (["predicate", "result", "accesses"], {"tunnels": True}, "tunnels"),
        (["predicate", "result", "accesses"], {"shell": 1}, "shell"),
        (["predicate", "result", "egress"], EGRESS.to_json(), "'allow' is required"),
        (["predicate", "result", "egress"], {}, "egress"),
        ([*GIVEN, "gpus"], 9, "gpus"),
        ([*GIVEN, "gpus"], True, "gpus"),
        (NEEDED, [], "resolvedDependencies"),
        (NEEDED, {}, "resolvedDependencies"),
        ([*NEEDED, 0, "name"], "data", "begins"),
        ([*NEEDED, 0, "digest", "sha256"], "x", "sha256"),
        ([*NEEDED, 0, "annotations"], {}, "unknown"),
        ([*NEEDED, 1, "digest", "dmVerityRoot"], "x", "dmVerityRoot"),
        ([*NEEDED, 1, "digest"], {"sha256": "dd" * 32}, "dmVerityRoot"),
        ([*NEEDED, 1, "annotations", "role"], "key", "role"),
        ([*NEEDED, 1, "name"], "Data\n", "name"),
        ([*NEEDED, 2, "name"], "container", "twice"),
        ([*BUILDER, "id"], "urn:cvmtool:guest:v1", "id"),
        (IMAGE, [], "exactly one"),
        ([*IMAGE, 0, "name"], "image", "guest-image"),
        ([*IMAGE, 0, "digest", "sevSnpLaunchDigest"], "aa", "sevSnpLaunchDigest"),
        ([*IMAGE, 0, "annotations", "imageId"], "aa", "imageId"),
        ([*METADATA, "startedOn"], "yesterday", "startedOn"),
        ([*METADATA, "startedOn"], 1, "startedOn"),
        ([*METADATA, "finishedOn"], "2026-01-01T00:00:00+01:00", "finishedOn"),
        ([*METADATA, "invocationId"], "x", "unknown"),
        (LOG, [], "exactly one"),
        (LOG, [BASE["predicate"]["runDetails"]["byproducts"][0]] * 2, "exactly one"),
        ([*LOG, 0, "name"], "diary", "log"),
        ([*LOG, 0, "digest", "sha256"], "x", "sha256"),
        ([*LOG, 0, "annotations", "size"], -1, "size"),
        (["predicate", "result", "exitCode"], 256, "exitCode"),
        (["predicate", "result", "exitCode"], -1, "exitCode"),
        ([*ATTESTATION, "kind"], "intel-tdx", "kind"),
        ([*ATTESTATION, "simulated"], "false", "simulated"),
        ([*ATTESTATION, "simulated"], 0, "simulated"),
        ([*ATTESTATION, "simulated"], False, "id"),
        ([*ATTESTATION, "nonce"], "00", "nonce"),
        ([*ATTESTATION, "ownerKey"], None, "ownerKey"),
        ([*ATTESTATION, "evidence"], "AAAA", "evidence"),
        ([*ATTESTATION, "more"], 1, "unknown"),
        (["predicate", "more"], 1, "unknown"),
        (["more"], 1, "unknown"),
    ],
)
def test_a_statement_out_of_shape_is_refused(path, value, named):
    with pytest.raises(FormatError, match=named):
        parse_statement(changed_json(BASE, path, value))


def paths(value, path=()):
    """Every path into a document, its inner nodes included."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from paths(child, (*path, key))


PATHS = list(paths(BASE))


@pytest.mark.parametrize("path", [path for path in PATHS if isinstance(path[-1], str)], ids=str)
def test_every_key_is_required(path):
    document = json.loads(STATEMENT.encode())
    del at(document, path[:-1])[path[-1]]
    with pytest.raises(FormatError):
        parse_statement(canonical_json(document))


@given(st.sampled_from(PATHS), JSON)
def test_any_value_is_a_statement_or_a_format_error(path, value):
    with contextlib.suppress(FormatError):
        data = changed_json(BASE, path, value)
        assert parse_statement(data).encode() == data


@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_a_format_error(data):
    with contextlib.suppress(FormatError):
        parse_statement(data)


def test_a_pack_of_another_owner_names_its_key():
    theirs = replace(STATEMENT.inputs[1], owner="77" * 32)
    statement = replace(STATEMENT, inputs=(STATEMENT.inputs[0], theirs))
    assert parse_statement(statement.encode()) == statement
    entry = [*NEEDED, 2, "annotations", "owner"]
    for wrong in (None, "", "77" * 31, "AA" * 32):
        with pytest.raises(FormatError, match="owner"):
            parse_statement(changed_json(json.loads(statement.encode()), entry, wrong))
