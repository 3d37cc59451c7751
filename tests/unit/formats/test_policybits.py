# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import pytest

from cvmtool.errors import FormatError
from cvmtool.formats.policybits import PLATFORM_BITS, POLICY_BITS, GuestPolicy, PlatformInfo


def test_the_policies_seen_in_the_field():
    assert GuestPolicy(0x30000).names() == ("smt",)
    assert GuestPolicy(0x3001F).abi_minor == 31
    assert GuestPolicy(0xB0000).names() == ("smt", "debug")
    assert GuestPolicy(0x2012F).abi_major == 1


@pytest.mark.parametrize("value", [0, 0x10000, 0x20000 | 1 << 26, 0x20000 | 1 << 63, 1 << 64 | 0x20000, -1])
def test_reserved_policy_bits_are_refused(value):
    with pytest.raises(FormatError) as refusal:
        GuestPolicy(value)
    assert refusal.value.message.startswith("policy")


@pytest.mark.parametrize("name", POLICY_BITS)
def test_each_policy_bit_is_read_alone(name):
    policy = GuestPolicy(0x20000 | 1 << POLICY_BITS[name])
    assert policy.names() == (name,)
    assert not GuestPolicy(0x20000).has(name)


@pytest.mark.parametrize("name", PLATFORM_BITS)
def test_each_platform_bit_is_read_alone(name):
    assert PlatformInfo(1 << PLATFORM_BITS[name]).names() == (name,)
    assert not PlatformInfo(0).has(name)


def test_unknown_platform_bits_are_kept_in_place():
    assert PlatformInfo(0x125).unknown == 0x100
    assert PlatformInfo(0xFF).unknown == 0


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_platform_info_is_64_bits(value):
    with pytest.raises(FormatError):
        PlatformInfo(value)
