# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import ConfigError
from cvmtool.owner.gpupolicy import GpuPolicy, encode_gpu_policy, parse_gpu_policy, version_numbers
from cvmtool.owner.policy import Rule

POLICY = GpuPolicy(
    chips=frozenset({"GH100"}),
    min_driver="550.90.07",
    min_vbios="96.00.9F.00.01",
    protected_pcie=Rule.FORBIDDEN,
    devices=frozenset({"41431d480fe5e87274"}),
    revocation=True,
)
LOOSE = replace(POLICY, devices=None, revocation=False)


@pytest.mark.parametrize("policy", [POLICY, LOOSE, replace(POLICY, devices=None), replace(POLICY, revocation=False)])
def test_what_is_written_is_read_back(policy):
    assert parse_gpu_policy(encode_gpu_policy(policy)) == policy


def test_what_is_left_out_is_said():
    assert POLICY.unchecked == ()
    assert LOOSE.unchecked == ("gpu-devices", "gpu-revocation")


def test_the_file_is_written_so():
    assert encode_gpu_policy(POLICY) == (
        'schema = "cvmtool/gpu-policy/v1"\n'
        'chips = ["GH100"]\n'
        'min_driver = "550.90.07"\n'
        'min_vbios = "96.00.9F.00.01"\n'
        'protected_pcie = "forbidden"\n'
        'devices = ["41431d480fe5e87274"]\n'
        'revocation = "required"\n'
    )
    assert encode_gpu_policy(LOOSE).endswith('unchecked = ["devices", "revocation"]\n')


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("cvmtool/gpu-policy/v1", "cvmtool/gpu-policy/v2", "gpu policy.schema is 'cvmtool/gpu-policy/v2'"),
        ('chips = ["GH100"]', "chips = []", "gpu policy.chips is '[]'"),
        ('chips = ["GH100"]', "", "gpu policy lacks the key 'chips'"),
        ('chips = ["GH100"]', 'chips = ["hopper"]', "gpu policy.chips holds 'hopper'; required: names such as GH100"),
        ('"550.90.07"', '"550"', "gpu policy.min_driver holds '550'; required: a version such as 550.90.07"),
        ('"550.90.07"', '"550.90.07b"', "gpu policy.min_driver holds '550.90.07b'"),
        (
            '"96.00.9F.00.01"',
            '"96.00.9f.00.01"',
            "gpu policy.min_vbios holds '96.00.9f.00.01'; required: a version such as 96.00.9F.00.01",
        ),
        ('"96.00.9F.00.01"', '"96.00.9F.00"', "gpu policy.min_vbios holds '96.00.9F.00'"),
        ('"forbidden"', '"off"', "gpu policy.protected_pcie is 'off'"),
        (
            '["41431d480fe5e87274"]',
            '["41431D480FE5E87274"]',
            "gpu policy.devices holds '41431D480FE5E87274'; required: serial numbers in lower-case hex",
        ),
        ('revocation = "required"', 'revocation = "report"', "gpu policy.revocation is 'report'"),
        ('revocation = "required"', "", "'revocation' is neither stated nor unchecked"),
        (
            'revocation = "required"',
            'revocation = "required"\nunchecked = ["revocation"]',
            "'revocation' is both stated and unchecked",
        ),
        (
            'revocation = "required"',
            'unchecked = ["measurements"]',
            "gpu policy.unchecked holds 'measurements'; required: some of devices, revocation",
        ),
        ('revocation = "required"', 'revocation = "required"\nmore = 1', "gpu policy has the unknown key 'more'"),
    ],
)
def test_anything_else_is_refused(old, new, words):
    text = encode_gpu_policy(POLICY)
    assert old in text
    with pytest.raises(ConfigError, match=re.escape(words)):
        parse_gpu_policy(text.replace(old, new, 1))


def test_an_empty_set_is_no_policy():
    for field in ("chips", "devices"):
        with pytest.raises(ConfigError, match=f"gpu policy.{field} holds 'nothing'"):
            replace(POLICY, **{field: frozenset()})


@pytest.mark.parametrize(
    ("version", "base", "numbers"),
    [
        ("550.90.07", 10, (550, 90, 7)),
        ("1.2", 10, (1, 2)),
        ("96.00.9F.00.01", 16, (0x96, 0, 0x9F, 0, 1)),
        ("96.00.9F.00.01", 10, None),
        ("550.90.07", 16, None),
        ("", 10, None),
        ("550.90.07 ", 10, None),
    ],
)
def test_a_version_is_its_numbers(version, base, numbers):
    assert version_numbers(version, base=base) == numbers


def test_a_version_is_decimal_unless_said():
    assert version_numbers("10.11") == (10, 11)


@given(st.text(max_size=200))
def test_any_text_is_refused(text):
    with pytest.raises(ConfigError):
        parse_gpu_policy(text)
