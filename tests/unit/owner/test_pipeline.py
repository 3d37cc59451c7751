# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Rules that allow one run; then every one of them made stricter, or the run made worse."""

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import ConfigError
from cvmtool.formats.job import Network, Output, OutputKind
from cvmtool.formats.jobterms import Destination
from cvmtool.formats.receipt import Access, OutputDigest
from cvmtool.owner.age import render_recipient
from cvmtool.owner.floors import built_in_floors
from cvmtool.owner.pipeline import (
    InputFacts,
    RulesError,
    judge_export,
    judge_ingestion,
    judge_launch,
    judge_release,
    judge_sealing,
)
from cvmtool.owner.pipelinefile import parse_rules, unrestricted

DIGEST, OCI, KEY = "aa" * 32, "sha256:" + "bb" * 32, "cc" * 32
PIPELINE, CLIENT = "sha256:" + "ee" * 32, "ff" * 32
AGE = render_recipient(b"\x11" * 32)
TEXT = f"""
schema: cvmtool/rules/v1
images: {{base: ["{DIGEST}"]}}
containers: ["{OCI}"]
inputs:
  must_say: [licence, sensitivity]
  sensitivity: [internal, personal]
  licences: [CC0-1.0]
  must_be_scrubbed: [personal]
  pipelines: ["{PIPELINE}"]
  in_dry_runs: [internal]
network: [none, allow]
destinations: ["example.org:443", "[2001:db8::1]:443"]
plaintext: ["example.org:80"]
access: [exec]
clients: ["{CLIENT}"]
outputs: {{kinds: [json], largest: 1KiB, together: 2KiB}}
recipients: ["{KEY}", "{AGE}"]
evidence: {{floors: built-in, unchecked: [chips]}}
"""
RULES = parse_rules(TEXT)
LOOSE = parse_rules("""
schema: cvmtool/rules/v1
images: any
containers: any
inputs: {must_say: [], sensitivity: any, licences: any, must_be_scrubbed: [personal], pipelines: any, in_dry_runs: any}
network: [allow]
destinations: any
plaintext: any
access: []
clients: any
outputs: {kinds: any, largest: any, together: any}
recipients: any
evidence: {floors: any, unchecked: []}
""")
DATA = InputFacts(name="data", metadata={"licence": "CC0-1.0", "sensitivity": "internal"}, pipelines=())
PERSONAL = replace(DATA, metadata={**DATA.metadata, "sensitivity": "personal"}, pipelines=(PIPELINE,))
OUTPUT = Output(name="a", kind=OutputKind.JSON, max_bytes=1024)
TLS = Destination(host="example.org", port=443, addresses=(), tls=True)
PLAIN = replace(TLS, port=80, tls=False)
DELIVERED = OutputDigest(name="a", kind=OutputKind.JSON, size=1024, sha256="00" * 32)


def denied(decisions):
    return {decision.rule for decision in decisions if not decision.allowed}


def ingestion(**changes):
    return judge_ingestion(RULES, **{"container": OCI, "inputs": [DATA], "simulated": True, **changes})


def sealing(**changes):
    facts = {
        "inputs": [DATA],
        "network": Network.ALLOW,
        "destinations": [TLS, replace(TLS, host="2001:db8::1"), PLAIN],
        "access": [Access.EXEC],
        "clients": [CLIENT],
        "outputs": [OUTPUT],
        "recipients": [KEY, AGE],
    }
    return judge_sealing(RULES, **{**facts, **changes})


def launch(**changes):
    facts = {"image": "base", "image_digest": DIGEST, "unchecked": ["chips"], "floors": built_in_floors()}
    return judge_launch(RULES, **{**facts, **changes})


def release(**changes):
    return judge_release(RULES, **{"inputs": [DATA], "simulated": True, "unchecked": ["chips"], **changes})


def export(**changes):
    facts = {"outputs": [DELIVERED], "access": [Access.EXEC], "owner_key": KEY}
    return judge_export(RULES, **{**facts, **changes})


@pytest.mark.parametrize("judge", [ingestion, sealing, launch, release, export])
def test_what_follows_the_rules_is_allowed_and_every_rule_is_heard(judge):
    decisions = judge()
    assert decisions
    assert denied(decisions) == set()
    assert all(decision.reason for decision in decisions)


def test_each_decision_says_what_was_found_and_what_is_required():
    assert [decision.reason for decision in (*ingestion(), *sealing(), *launch(), *release(), *export())] == [
        f"the container is {OCI}; required: one of {OCI}",
        "input data is said to have licence, sensitivity; required: licence, sensitivity",
        "the sensitivity of input data is internal; required: one of internal, personal",
        "the licence of input data is CC0-1.0; required: one of CC0-1.0",
        "the sensitivity of input data in a dry run is internal; required: one of internal",
        "input data is said to have licence, sensitivity; required: licence, sensitivity",
        "the sensitivity of input data is internal; required: one of internal, personal",
        "the licence of input data is CC0-1.0; required: one of CC0-1.0",
        "the network is allow; required: one of allow, none",
        "a destination over TLS is example.org:443; required: one of [2001:db8::1]:443, example.org:443",
        "a destination over TLS is [2001:db8::1]:443; required: one of [2001:db8::1]:443, example.org:443",
        "a destination without TLS is example.org:80; required: one of example.org:80",
        "access to the running job is exec; required: of exec",
        f"a client of its tunnels is {CLIENT}; required: one of {CLIENT}",
        "the kind of output a is json; required: one of json",
        "the size of output a is 1024 bytes; required: at most 1024 bytes",
        "the size of all outputs is 1024 bytes; required: at most 2048 bytes",
        f"a recipient is {KEY}; required: one of {AGE}, {KEY}",
        f"a recipient is {AGE}; required: one of {AGE}, {KEY}",
        f"the guest image base is {DIGEST}; required: one of {DIGEST}",
        "left unchecked by the evidence policy is chips; required: of chips",
        "the evidence policy is at or above every built-in floor; required: at or above every built-in floor",
        "the sensitivity of input data in a dry run is internal; required: one of internal",
        "left unchecked of this guest is chips; required: of chips",
        "the kind of output a is json; required: one of json",
        "the size of output a is 1024 bytes; required: at most 1024 bytes",
        "the size of all outputs is 1024 bytes; required: at most 2048 bytes",
        "access to the running job is exec; required: of exec",
        f"a recipient is {KEY}; required: one of {AGE}, {KEY}",
    ]


@pytest.mark.parametrize(
    ("judge", "changes", "rule", "found"),
    [
        (ingestion, {"inputs": [replace(DATA, metadata={})]}, "inputs.must_say", "silent about licence, sensitivity"),
        (ingestion, {"inputs": [replace(DATA, metadata={})]}, "inputs.licences", "is unsaid;"),
        (ingestion, {"inputs": [replace(PERSONAL, pipelines=())]}, "inputs.must_be_scrubbed", "is not scrubbed;"),
        (
            ingestion,
            {"inputs": [replace(PERSONAL, pipelines=(OCI, CLIENT))]},
            "inputs.must_be_scrubbed",
            f"is scrubbed by {OCI}, {CLIENT}; required: scrubbed by one of {PIPELINE}",
        ),
        (launch, {"floors": ()}, "evidence.floors", f"is below {built_in_floors()[0].component}>="),
        (launch, {"unchecked": []}, "evidence.unchecked", "is nothing;"),
        (launch, {"image": "other"}, "images", "required: nothing"),
        (sealing, {"access": []}, "access", "is nothing;"),
    ],
)
def test_a_decision_says_what_else_there_can_be(judge, changes, rule, found):
    (reason,) = [decision.reason for decision in judge(**changes) if decision.rule == rule]
    assert found in reason


def test_a_decision_is_json():
    decision = launch(image="other")[0]
    assert decision.to_json() == {
        "stage": "launch",
        "rule": "images",
        "subject": "the guest image other",
        "allowed": False,
        "reason": f"the guest image other is {DIGEST}; required: nothing",
    }


@pytest.mark.parametrize(
    ("judge", "changes", "rules"),
    [
        (ingestion, {"container": "sha256:" + "00" * 32}, {"containers"}),
        (
            ingestion,
            {"inputs": [replace(DATA, metadata={})]},
            {"inputs.must_say", "inputs.sensitivity", "inputs.licences", "inputs.in_dry_runs"},
        ),
        (ingestion, {"inputs": [replace(DATA, metadata={**DATA.metadata, "licence": "MIT"})]}, {"inputs.licences"}),
        (ingestion, {"inputs": [PERSONAL]}, {"inputs.in_dry_runs"}),
        (ingestion, {"inputs": [replace(PERSONAL, pipelines=())], "simulated": False}, {"inputs.must_be_scrubbed"}),
        (ingestion, {"inputs": [replace(PERSONAL, pipelines=(OCI,))], "simulated": False}, {"inputs.must_be_scrubbed"}),
        (sealing, {"inputs": [replace(PERSONAL, pipelines=())]}, {"inputs.must_be_scrubbed"}),
        (
            sealing,
            {"inputs": [replace(DATA, metadata={})]},
            {"inputs.must_say", "inputs.sensitivity", "inputs.licences"},
        ),
        (sealing, {"destinations": [replace(TLS, port=444)]}, {"destinations"}),
        (sealing, {"destinations": [replace(TLS, tls=False)]}, {"plaintext"}),
        (sealing, {"destinations": [replace(PLAIN, tls=True)]}, {"destinations"}),
        (sealing, {"access": [Access.TUNNEL]}, {"access"}),
        (sealing, {"clients": ["00" * 32]}, {"clients"}),
        (sealing, {"recipients": [KEY, render_recipient(b"\x22" * 32)]}, {"recipients"}),
        (sealing, {"outputs": [replace(OUTPUT, kind=OutputKind.FILE)]}, {"outputs.kinds"}),
        (sealing, {"outputs": [replace(OUTPUT, max_bytes=1025)]}, {"outputs.largest"}),
        (sealing, {"outputs": [OUTPUT] * 3}, {"outputs.together"}),
        (sealing, {"recipients": ["dd" * 32]}, {"recipients"}),
        (launch, {"image": "other"}, {"images"}),
        (launch, {"image_digest": "00" * 32}, {"images"}),
        (launch, {"unchecked": ["chips", "id-block"]}, {"evidence.unchecked"}),
        (launch, {"floors": None}, {"evidence.floors"}),
        (launch, {"floors": [floor for floor in built_in_floors() if floor.component != "snp"]}, {"evidence.floors"}),
        (release, {"unchecked": ["tcb-floors"]}, {"evidence.unchecked"}),
        (release, {"inputs": [PERSONAL]}, {"inputs.in_dry_runs"}),
        (export, {"outputs": [replace(DELIVERED, size=1025)]}, {"outputs.largest"}),
        (export, {"outputs": [replace(DELIVERED, kind=OutputKind.CSV)]}, {"outputs.kinds"}),
        (export, {"access": [Access.SHELL]}, {"access"}),
        (export, {"owner_key": "dd" * 32}, {"recipients"}),
    ],
)
def test_what_breaks_a_rule_is_denied_by_its_name(judge, changes, rules):
    assert denied(judge(**changes)) == rules


def test_a_job_has_a_network_or_none_as_the_rules_say():
    job = {"inputs": [], "destinations": [], "access": [], "clients": [], "outputs": [], "recipients": []}
    assert denied(judge_sealing(LOOSE, network=Network.ALLOW, **job)) == set()
    assert denied(judge_sealing(LOOSE, network=Network.NONE, **job)) == {"network"}


def test_hardware_may_have_what_a_dry_run_may_not():
    assert denied(ingestion(inputs=[PERSONAL], simulated=False)) == set()
    assert denied(release(inputs=[PERSONAL], simulated=False)) == set()


FLOOR = next(floor for floor in built_in_floors() if floor.component == "microcode")


@pytest.mark.parametrize(
    "other",
    [replace(FLOOR, value=FLOOR.value - 1), replace(FLOOR, silicon=()), replace(FLOOR, component="none")],
    ids=["lower", "for other silicon", "of another component"],
)
def test_another_floor_is_not_that_floor(other):
    decisions = launch(floors=[other if floor == FLOOR else floor for floor in built_in_floors()])
    assert denied(decisions) == {"evidence.floors"}
    (reason,) = [decision.reason for decision in decisions if not decision.allowed]
    assert f"is below {FLOOR.component}>={FLOOR.value} on {'/'.join(FLOOR.silicon)}; required" in reason


def test_a_higher_floor_is_a_floor():
    raised = [replace(floor, value=min(floor.value + 1, 255)) for floor in built_in_floors()]
    assert denied(launch(floors=raised)) == set()


def test_an_error_lists_everything_that_is_denied():
    error = RulesError(ingestion(container="sha256:" + "00" * 32, inputs=[PERSONAL]))
    assert error.exit_code == 6
    assert {finding.code for finding in error.findings} == {"containers", "inputs.in_dry_runs"}
    assert "ingestion" in error.message


def test_what_is_left_to_anybody_is_named():
    assert unrestricted(RULES) == ()
    assert " ".join(unrestricted(LOOSE)) == (
        "images containers inputs.sensitivity inputs.licences inputs.pipelines inputs.in_dry_runs destinations plaintext "
        "clients outputs.kinds outputs.largest outputs.together recipients evidence.floors"
    )


def test_what_is_left_to_anybody_is_allowed_and_called_so():
    decisions = (
        *judge_ingestion(LOOSE, container=OCI, inputs=[replace(PERSONAL, pipelines=(OCI,))], simulated=True),
        *judge_launch(LOOSE, image="base", image_digest=DIGEST, unchecked=[], floors=None),
        *judge_export(LOOSE, outputs=[replace(DELIVERED, size=1 << 40)], access=[], owner_key=KEY),
    )
    assert denied(decisions) == set()
    required = {decision.rule: decision.required for decision in decisions}
    assert required == dict.fromkeys(required, "any") | {
        "inputs.must_say": "nothing",
        "inputs.must_be_scrubbed": "scrubbed",
        "access": "nothing",
        "evidence.unchecked": "nothing",
    }


KEYS = [line.strip().partition(":")[0] for line in TEXT.strip().splitlines()]


@pytest.mark.parametrize("number", range(len(KEYS)), ids=KEYS)
def test_every_key_is_required(number):
    lines = TEXT.strip().splitlines()
    if KEYS[number] == "inputs":
        return
    with pytest.raises(ConfigError):
        parse_rules("\n".join(lines[:number] + lines[number + 1 :]))


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("rules/v1", "rules/v2", "schema"),
        (OCI, "latest", "containers"),
        (DIGEST, "aa", "images.base"),
        ("{base:", "{Base:", "images"),
        ("[licence, sensitivity]", "[licence, licence]", "must_say"),
        ("[licence, sensitivity]", "licence", "must_say"),
        ("[licence, sensitivity]", "[colour]", "must_say"),
        ("[internal, personal]", "[secret]", "sensitivity"),
        ("[none, allow]", "any", "network"),
        ("[none, allow]", "[some]", "network"),
        ("example.org:443", "example.org", "destinations"),
        ("example.org:443", "EXAMPLE.org:443", "destinations"),
        ("example.org:80", "http://example.org", "plaintext"),
        (PIPELINE, "mine.toml", "pipelines"),
        (CLIENT, "ssh-ed25519", "clients"),
        (AGE, "age1", "recipients"),
        ("[exec]", "[root]", "access"),
        ("1KiB", "1000", "largest"),
        ("built-in", "none", "floors"),
        ("[chips]", "[signature]", "unchecked"),
        ("schema:", "more: 1\nschema:", "more"),
        ("must_say:", "may_say: []\n  must_say:", "may_say"),
        ("{kinds:", "{count: 1, kinds:", "count"),
        ("{floors:", "{chips: any, floors:", "evidence.*chips"),
        ("2KiB", "268435457MiB", "together"),
    ],
)
def test_what_is_no_rule_is_refused_by_name(old, new, named):
    assert old in TEXT
    with pytest.raises(ConfigError, match=named):
        parse_rules(TEXT.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "required"),
    [
        (DIGEST, "manifest digests of 64 hex digits"),
        (OCI, "sha256: and 64 hex digits"),
        ("CC0-1.0", "names of licences"),
        (PIPELINE, "sha256: and 64 hex digits"),
        ("example.org:443", "places such as example.org:443"),
        (CLIENT, "Ed25519 keys of 64 hex digits"),
        (KEY, "owner keys of 64 hex digits and age recipients"),
    ],
)
def test_a_refusal_says_what_is_required(old, required):
    with pytest.raises(ConfigError, match=f"; {required} are required$"):
        parse_rules(TEXT.replace(old, "Käse", 1))


def test_all_outputs_may_be_as_large_as_256_of_the_largest():
    assert parse_rules(TEXT.replace("2KiB", "268435456MiB")).all_outputs == 1 << 48


def test_a_refusal_names_a_page_that_there_is():
    with pytest.raises(ConfigError) as refused:
        parse_rules("schema: cvmtool/rules/v1")
    assert (Path(__file__).parents[3] / refused.value.hint.split()[0]).is_file()
    for text in ("[", "7"):
        with pytest.raises(ConfigError, match=r"^the rules is "):
            parse_rules(text)


@given(st.text(max_size=200))
def test_any_text_is_rules_or_a_config_error(text):
    with contextlib.suppress(ConfigError):
        parse_rules(text)
