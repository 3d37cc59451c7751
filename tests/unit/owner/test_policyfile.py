# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cvmtool.errors import ConfigError
from cvmtool.formats.policybits import PLATFORM_BITS, POLICY_BITS
from cvmtool.formats.report import FirmwareVersion
from cvmtool.formats.tcb import ProductLine
from cvmtool.owner.amdroots import AmdRoots, SimulatedRoot
from cvmtool.owner.floors import built_in_floors
from cvmtool.owner.policy import OPTIONAL, IdBlock, KeyKind, MeasurementSet, RevocationRule, RootKind, Rule, baseline
from cvmtool.owner.policyfile import encode_policy, parse_policy
from cvmtool.owner.policytext import commented_policy

BASE = baseline(roots=AmdRoots(), measurements=frozenset({b"M" * 48, b"L" * 48}), host_data=frozenset({b"H" * 32}))
SETS = (
    MeasurementSet(
        name="2026.1",
        digests=frozenset({b"1" * 48}),
        not_before=datetime(2026, 1, 1, tzinfo=UTC),
        not_after=datetime(2026, 6, 30, 12, tzinfo=timezone(timedelta(hours=2))),
    ),
    MeasurementSet(name="next", digests=frozenset({b"2" * 48, b"3" * 48}), not_before=None, not_after=None),
)
FULL = replace(
    BASE,
    measurement_sets=SETS,
    revoked_measurements=frozenset({b"R" * 48}),
    family_ids=frozenset({b"F" * 16}),
    image_ids=frozenset({b"G" * 16, b"J" * 16}),
    roots=RootKind.SIMULATED,
    simulated_root=b"\1" * 32,
    products=frozenset(ProductLine),
    allow_milan=True,
    signing_keys=frozenset(KeyKind),
    vmpl=frozenset({0, 2}),
    min_abi=(1, 55),
    guest_policy=dict(zip(POLICY_BITS, [Rule.REQUIRED, Rule.FORBIDDEN, Rule.ANY] * 3, strict=True)),
    unknown_platform_info=Rule.ANY,
    provisional_firmware=Rule.ANY,
    revocation=RevocationRule.REPORT,
    chips=frozenset({b"c" * 64, b"t" * 8}),
    providers=frozenset({'quote " and \\ slash', "CN=cc-us-east-1.amazonaws.com"}),
    tcb_floors=built_in_floors()[:3],
    min_firmware=FirmwareVersion(major=1, minor=55, build=40),
    mitigations=0x0B,
    id_block=IdBlock(id_keys=frozenset({b"I" * 48}), author_keys=frozenset({b"A" * 48}), min_guest_svn=4),
)
TEXT = encode_policy(BASE)
FULL_TEXT = encode_policy(FULL)


ID_KEYS, AUTHOR_KEYS = replace(FULL.id_block, author_keys=frozenset()), replace(FULL.id_block, id_keys=frozenset())


@pytest.mark.parametrize(
    "policy",
    [
        BASE,
        FULL,
        replace(FULL, measurements=frozenset()),
        replace(BASE, host_data=None, tcb_floors=None),
        replace(FULL, id_block=ID_KEYS),
        replace(FULL, id_block=AUTHOR_KEYS),
    ],
    ids=["base", "full", "sets", "little", "id keys", "author keys"],
)
def test_round_trip(policy):
    assert parse_policy(encode_policy(policy)) == policy
    assert encode_policy(parse_policy(encode_policy(policy))) == encode_policy(policy)


def test_what_is_left_out_is_named():
    assert BASE.unchecked == ("chips", "min-firmware", "mitigations", "id-block")
    assert replace(BASE, host_data=None, tcb_floors=None).unchecked == (
        *("host-data", "chips", "tcb-floors", "min-firmware", "mitigations", "id-block"),
    )
    assert FULL.unchecked == ()
    assert replace(FULL, providers=None).unchecked == ("providers",)


def test_a_list_that_is_only_reported_is_asked_for_by_name():
    assert 'revocation = "report"' in FULL_TEXT


def test_the_policy_says_which_roots():
    assert BASE.trusted_roots() == AmdRoots()
    assert FULL.trusted_roots() == SimulatedRoot(b"\1" * 32)


def test_built_in_floors_can_be_named():
    text = TEXT[: TEXT.index("\n[[tcb_floors]]")].replace("unchecked", 'tcb_floors = "built-in"\nunchecked')
    assert parse_policy(text) == BASE


def line(key):
    return next(line for line in TEXT.splitlines() if line.startswith(f"{key} "))


@pytest.mark.parametrize(
    "key",
    [
        "schema",
        "roots",
        "products",
        "signing_keys",
        "min_report_version",
        "measurements",
        "vmpl",
        "min_abi",
        "provisional_firmware",
        "revocation",
        "host_data",
        "unchecked",
        *POLICY_BITS,
        *(name for name in PLATFORM_BITS if name != "rapl-dis"),
        "unknown",
        "[guest_policy]",
        "[platform_info]",
    ],
)
def test_nothing_can_be_left_out_silently(key):
    without = "\n".join(text for text in TEXT.splitlines() if text.partition(" =")[0] != key)
    assert without != TEXT.rstrip()
    with pytest.raises(ConfigError):
        parse_policy(without)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"cvmtool/policy/v1"', '"cvmtool/policy/v2"', "policy.schema"),
        ('roots = "amd"', 'roots = "any"', "policy.roots"),
        ('roots = "amd"', 'roots = "simulated"', "policy.simulated_root"),
        ('roots = "amd"', f'roots = "amd"\nsimulated_root = "{"01" * 32}"', "policy.simulated_root"),
        ('"Genoa", "Turin"', '"Genoa", "Venice"', "policy.products"),
        ('"Genoa", "Turin"', '"Genoa", "Genoa"', "policy.products"),
        ('"Genoa", "Turin"', '"Genoa", "Milan"', "policy.products holds Milan"),
        ('"Genoa", "Turin"', "", "policy.products"),
        ('["vcek"]', '"vcek"', "policy.signing_keys"),
        ('["vcek"]', '["vcek", "vlek"]', "policy lacks the key 'providers'"),
        ("min_report_version = 3", "min_report_version = 6", "policy.min_report_version"),
        ("min_report_version = 3", "min_report_version = true", "policy.min_report_version"),
        ('"4d4d', '"4D4D', "policy.measurements"),
        ('"4d4d', '"4d', "policy.measurements"),
        ('"4d4d', '"4X4d', "policy.measurements"),
        ("4d" * 48, "00" * 48, "policy.measurements"),
        ("48" * 32, "00" * 32, "policy.host_data"),
        ("vmpl = [0]", "vmpl = [4]", "policy.vmpl"),
        ("vmpl = [0]", "vmpl = []", "policy.vmpl"),
        ("vmpl = [0]", "vmpl = [0, 0]", "policy.vmpl"),
        ("vmpl = [0]", "vmpl = 0", "policy.vmpl"),
        ('min_abi = "0.0"', 'min_abi = "1"', "policy.min_abi"),
        ('min_abi = "0.0"', 'min_abi = "1.256"', "policy.min_abi"),
        ('min_abi = "0.0"', 'min_abi = "1.-5"', "policy.min_abi"),
        ('provisional_firmware = "forbidden"', 'provisional_firmware = "required"', "policy.unknown_platform_info"),
        ('revocation = "required"', 'revocation = "never"', "policy.revocation"),
        ('debug = "forbidden"', 'debug = "forbiden"', "policy.guest_policy.debug"),
        ('debug = "forbidden"', "debug = false", "policy.guest_policy.debug"),
        (
            'debug = "forbidden"',
            'debug = "forbidden"\nextra = "any"',
            "policy.guest_policy has the unknown key 'extra'",
        ),
        ('"chips"', '"chps"', "policy.unchecked holds 'chps'"),
        ('"chips", ', "", "policy lacks the key 'chips'"),
        ('"chips"', '"host-data", "chips"', "policy.host_data is stated"),
        ('"chips"', '"image-ids", "chips"', "policy.unchecked holds 'image-ids'"),
        ("vmpl =", 'family_ids = ["46464646464646464646464646464646"]\nvmpl =', "policy.family_ids or image_ids"),
        ("vmpl =", 'revoked_measurements = ["00"]\nvmpl =', "policy.revoked_measurements"),
        ("vmpl =", "measurement_sets = []\nvmpl =", "policy.measurement_sets"),
        ('"chips"', '"measurement", "chips"', "policy.unchecked holds 'measurement'"),
        ('"chips"', '"providers", "chips"', "policy.unchecked holds 'providers'"),
        ("value = 23", "value = 256", "policy.tcb_floors[0].value"),
        ('component = "snp"', 'component = "sound"', "policy.tcb_floors[0].component"),
    ],
)
def test_one_wrong_value_is_refused_and_named(old, new, message):
    assert old in TEXT
    with pytest.raises(ConfigError) as refusal:
        parse_policy(TEXT.replace(old, new, 1))
    assert refusal.value.message.startswith(message)


ABI = "2 numbers from 0 to 255 with dots between"


@pytest.mark.parametrize(
    ("old", "new", "required"),
    [
        ("min_report_version = 3", "min_report_version = 1", "an integer from 2 to 5"),
        ("min_report_version = 3", "min_report_version = 6", "an integer from 2 to 5"),
        ("vmpl = [0, 2]", "vmpl = [4]", "a list of integers from 0 to 3, one or more"),
        ("mitigations = 0xb", "mitigations = 0", "an integer from 1 to 9223372036854775807"),
        ("min_guest_svn = 4", "min_guest_svn = -1", "an integer from 0 to 4294967295"),
        ("min_guest_svn = 4", "min_guest_svn = 4294967296", "an integer from 0 to 4294967295"),
        ('min_abi = "1.55"', 'min_abi = "a.b"', ABI),
        ('min_abi = "1.55"', 'min_abi = "1.-5"', ABI),
        ('min_abi = "1.55"', 'min_abi = "1.256"', ABI),
        ("min_guest_svn = 4", "min_guest_svn = 4\nmore = 1", "a known one"),
    ],
)
def test_the_reader_names_its_own_bounds(old, new, required):
    assert old in FULL_TEXT
    with pytest.raises(ConfigError) as refusal:
        parse_policy(FULL_TEXT.replace(old, new, 1))
    assert refusal.value.message.endswith(f"; required: {required}")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("min_report_version = 3", "min_report_version = 2"),
        ("min_report_version = 3", "min_report_version = 5"),
        ("vmpl = [0, 2]", "vmpl = [0, 3]"),
        ("mitigations = 0xb", "mitigations = 0x1"),
        ("mitigations = 0xb", "mitigations = 0x7fffffffffffffff"),
        ('min_abi = "1.55"', 'min_abi = "255.255"'),
        ("min_guest_svn = 4", "min_guest_svn = 0"),
        ("min_guest_svn = 4", "min_guest_svn = 4294967295"),
    ],
)
def test_the_last_values_are_read(old, new):
    assert old in FULL_TEXT
    changed = FULL_TEXT.replace(old, new, 1)
    assert encode_policy(parse_policy(changed)) == changed


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ("chps", f"policy.unchecked holds 'chps'; required: some of {', '.join(OPTIONAL)}"),
        (
            "providers",
            "policy.unchecked holds 'providers', which means nothing; required: 'vlek' in policy.signing_keys",
        ),
        ("image-ids", "policy.unchecked holds 'image-ids', which means nothing; required: policy.id_block"),
    ],
)
def test_what_cannot_be_left_unchecked_says_why(listed, message):
    with pytest.raises(ConfigError) as refusal:
        parse_policy(TEXT.replace('"chips"', f'"{listed}", "chips"', 1))
    assert refusal.value.message == message


def test_measurements_are_a_key_unless_there_are_sets():
    without = TEXT.replace(line("measurements"), "", 1)
    with pytest.raises(ConfigError, match="policy lacks the key 'measurements'"):
        parse_policy(without)


@pytest.mark.parametrize("allowed", [False, True])
def test_milan_is_allowed_by_its_value_and_not_by_its_key(allowed):
    assert baseline(roots=AmdRoots(), measurements=BASE.measurements, host_data=None).allow_milan is False
    assert (
        parse_policy(TEXT.replace("vmpl =", f"allow_milan = {str(allowed).lower()}\nvmpl =", 1)).allow_milan is allowed
    )


def test_an_unknown_key_is_told_its_nearest():
    with pytest.raises(ConfigError) as refusal:
        parse_policy(TEXT.replace("[guest_policy]", 'mesurements = ["00"]\n\n[guest_policy]'))
    assert "mesurements" in refusal.value.message
    assert "measurements" in refusal.value.hint


@pytest.mark.parametrize("text", ["", "\n# nothing\n", "x = [", "a" * (1 << 21)])
def test_an_empty_or_broken_policy_is_refused(text):
    with pytest.raises(ConfigError):
        parse_policy(text)


@pytest.mark.parametrize(
    "changes",
    [
        {"measurements": frozenset()},
        {"measurements": frozenset({b"M" * 47})},
        {"chips": frozenset({b"c" * 9})},
        {"chips": frozenset()},
        {"host_data": frozenset({bytes(32)})},
        {"simulated_root": b"\1" * 31, "roots": RootKind.SIMULATED},
        {"roots": RootKind.SIMULATED},
        {"simulated_root": b"\1" * 32},
        {"products": frozenset({ProductLine.MILAN})},
        {"providers": frozenset({"cloud"})},
        {"guest_policy": {"debug": Rule.FORBIDDEN}},
        {"platform_info": {**BASE.platform_info, "new": Rule.ANY}},
        {"min_report_version": 1},
        {"vmpl": frozenset({4})},
        {"min_abi": (0, 256)},
        {"mitigations": 0},
        {"mitigations": 1 << 63},
        {"unknown_platform_info": Rule.REQUIRED},
        {"tcb_floors": ()},
        {"measurement_sets": (SETS[0], SETS[0])},
        {"measurement_sets": (replace(SETS[0], digests=frozenset()),)},
        {"measurement_sets": (replace(SETS[0], digests=frozenset({b"x"})),)},
        {"revoked_measurements": frozenset({b"x"})},
        {"family_ids": frozenset({b"F" * 16})},
        {"image_ids": frozenset({b"G" * 16})},
        {"id_block": FULL.id_block, "image_ids": frozenset()},
        {"id_block": FULL.id_block, "image_ids": frozenset({bytes(16)})},
        {"id_block": FULL.id_block, "family_ids": frozenset({b"F" * 15})},
        {"id_block": IdBlock(id_keys=frozenset(), author_keys=frozenset(), min_guest_svn=0)},
        {"id_block": IdBlock(id_keys=frozenset({bytes(48)}), author_keys=frozenset(), min_guest_svn=0)},
    ],
)
def test_a_policy_that_contradicts_itself_is_not_made(changes):
    with pytest.raises(ConfigError):
        replace(BASE, **changes)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("measurements", {"measurements": frozenset({b"x"})}),
        ("revoked_measurements", {"revoked_measurements": frozenset({b"x"})}),
        ("measurement_sets.next", {"measurement_sets": (replace(SETS[1], digests=frozenset({b"x"})),)}),
        ("family_ids", {"family_ids": frozenset({b"x"})}),
        ("image_ids", {"image_ids": frozenset({b"x"})}),
        ("host_data", {"host_data": frozenset({b"x"})}),
        ("chips", {"chips": frozenset({b"x"})}),
        ("simulated_root", {"simulated_root": b"x"}),
        ("id_block.id_keys", {"id_block": replace(FULL.id_block, id_keys=frozenset({b"x"}))}),
        ("id_block.author_keys", {"id_block": replace(FULL.id_block, author_keys=frozenset({b"x"}))}),
        ("guest_policy.new", {"guest_policy": FULL.guest_policy | {"new": Rule.ANY}}),
        ("platform_info.smt-en", {"platform_info": {name: Rule.ANY for name in PLATFORM_BITS if name != "smt-en"}}),
    ],
)
def test_the_field_with_a_wrong_entry_is_named(field, changes):
    with pytest.raises(ConfigError) as refusal:
        replace(FULL, **changes)
    assert refusal.value.message.startswith(f"policy.{field} ")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "not_before = 2026-01-01T00:00:00+00:00",
            "not_before = 2026-01-01T00:00:00",
            "policy.measurement_sets[0].not_b",
        ),
        ("not_before = 2026-01-01T00:00:00+00:00", "not_before = 2026-01-01", "policy.measurement_sets[0].not_before"),
        (
            "not_before = 2026-01-01T00:00:00+00:00",
            "not_before = 2027-01-01T00:00:00Z",
            "policy.measurement_sets.2026.1",
        ),
        ('name = "next"', 'nam = "next"', "policy.measurement_sets[1] lacks"),
        ('name = "next"', 'name = "next"\nuntil = 3', "policy.measurement_sets[1] has the unknown key"),
        ('name = "next"', 'name = "2026.1"', "policy.measurement_sets has a name twice"),
        ("family_ids = ", "family_id = ", "policy lacks the key 'family_ids'"),
    ],
)
def test_one_wrong_value_of_a_full_policy_is_named(old, new, message):
    assert old in FULL_TEXT
    with pytest.raises(ConfigError) as refusal:
        parse_policy(FULL_TEXT.replace(old, new, 1))
    assert refusal.value.message.startswith(message)


def test_a_set_holds_for_its_time_ends_included():
    first, open_ended = SETS
    for moment in (first.not_before, first.not_after):
        assert first.holds(moment)
    assert not first.holds(first.not_before - timedelta(microseconds=1))
    assert not first.holds(first.not_after + timedelta(microseconds=1))
    assert open_ended.holds(first.not_before)
    assert open_ended.period == ""
    assert first.period == "from 2026-01-01T00:00:00+00:00 until 2026-06-30T12:00:00+02:00"
    with pytest.raises(ConfigError):
        replace(first, not_before=datetime(2026, 1, 1))  # noqa: DTZ001 - that is the point


def test_names_of_an_id_block_are_stated_or_left_unchecked():
    assert replace(FULL, family_ids=None, image_ids=None).unchecked == ("family-ids", "image-ids")
    assert parse_policy(encode_policy(replace(FULL, image_ids=None))).unchecked == ("image-ids",)


def test_the_last_values_that_are_allowed():
    assert replace(BASE, vmpl=frozenset({0, 3})).vmpl == {0, 3}
    assert replace(BASE, min_abi=(255, 255)).min_abi == (255, 255)
    assert replace(BASE, mitigations=(1 << 63) - 1).mitigations
    moment = SETS[0].not_before
    assert replace(SETS[0], not_after=moment).holds(moment)


@pytest.mark.parametrize(("present", "allowed"), [(True, {"required", "any"}), (False, {"forbidden", "any"})])
def test_a_rule_allows_what_it_says(present, allowed):
    assert {rule.value for rule in Rule if rule.allows(present=present)} == allowed


def test_floors_are_built_in_or_a_table():
    text = re.sub("(?s)\n\\[\\[tcb_floors.*", "\n", TEXT)
    assert parse_policy(text.replace("[guest_policy]", 'tcb_floors = "built-in"\n[guest_policy]')) == BASE
    with pytest.raises(ConfigError, match="'built-out'; required: 'built-in' or an array"):
        parse_policy(text.replace("[guest_policy]", 'tcb_floors = "built-out"\n[guest_policy]'))


def test_milan_needs_a_list_of_chips_or_a_word():
    milan = frozenset({ProductLine.MILAN})
    assert replace(BASE, products=milan, chips=frozenset({b"c" * 64}))
    assert replace(BASE, products=milan, allow_milan=True)


@given(st.text(min_size=1, max_size=20))
@example('two\nlines\x85\u2028, a "quoted" \\ and \x7f, é, \U0001f600')
def test_whatever_a_policy_says_is_written_and_read_again(text):
    policy = replace(FULL, providers=frozenset({text}), measurement_sets=(replace(SETS[1], name=text),))
    assert parse_policy(encode_policy(policy)) == policy
    assert parse_policy(commented_policy(policy)) == policy


@pytest.mark.parametrize(
    "value", ["9" * 5000, "0x" + "f" * 5000, "[0x" + "f" * 5000 + "]"], ids=["decimal", "hex", "in a list"]
)
def test_a_number_of_thousands_of_digits_is_refused(value):
    with pytest.raises(ConfigError):
        parse_policy(re.sub("min_report_version = .*", f"min_report_version = {value}", TEXT))


@given(st.text(max_size=200))
def test_any_text_gives_a_policy_or_config_error(text):
    with contextlib.suppress(ConfigError):
        parse_policy(text)


@given(st.integers(0, len(TEXT) - 1), st.text(max_size=3))
def test_any_damage_gives_a_policy_or_config_error(position, text):
    with contextlib.suppress(ConfigError):
        parse_policy(TEXT[:position] + text + TEXT[position + 1 :])
