# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import pytest

from cvmtool.errors import ConfigError
from cvmtool.flows.egress import look_up, pin
from cvmtool.formats.jobterms import MAX_ADDRESSES, Destination, parse_destinations
from cvmtool.owner.jobterms import Wish

NAMES = {
    "a.example": {"192.0.2.9", "192.0.2.10", "2001:db8::1"},
    "b.example": {"192.0.2.9"},
    "six.example": {"2001:db8::2", "2001:db8::1"},
    "many.example": {f"198.51.{number}.1" for number in range(100)},
    "inward.example": {"192.0.2.1", "127.0.0.1"},
    "here.example": {"fe80::1%eth0"},
    "mapped.example": {"::ffff:192.0.2.1"},
    "nothing.example": set(),
}


def resolve(name):
    try:
        return NAMES[name]
    except KeyError as error:
        raise OSError(-2, "Name or service not known") from error


def wish(host, port=443, *, tls=True):
    return Wish(host=host, port=port, tls=tls)


def test_names_are_pinned_as_a_manifest_has_them():
    pinned = pin([wish("six.example"), wish("a.example"), wish("a.example", 80, tls=False)], resolve=resolve)
    assert pinned == (
        Destination(host="a.example", port=80, addresses=("192.0.2.10", "192.0.2.9"), tls=False),
        Destination(host="a.example", port=443, addresses=("192.0.2.10", "192.0.2.9"), tls=True),
        Destination(host="six.example", port=443, addresses=("2001:db8::1", "2001:db8::2"), tls=True),
    )
    assert parse_destinations([place.to_json() for place in pinned]) == pinned


def test_an_address_is_not_asked_for():
    def fail(name):
        raise AssertionError(name)

    assert [place.addresses for place in pin([wish("192.0.2.1"), wish("2001:db8::1")], resolve=fail)] == [
        ("192.0.2.1",),
        ("2001:db8::1",),
    ]


def test_no_more_addresses_than_a_manifest_takes():
    (place,) = pin([wish("many.example")], resolve=resolve)
    assert len(place.addresses) == MAX_ADDRESSES
    parse_destinations([place.to_json()])


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("unknown.example", "Name or service not known"),
        ("nothing.example", "no address"),
        ("inward.example", "127.0.0.1"),
        ("here.example", "fe80::1%eth0"),
        ("mapped.example", "::ffff:192.0.2.1"),
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "0.0.0.0"),
    ],
)
def test_what_is_no_machine_outside_is_refused(host, said):
    with pytest.raises(ConfigError) as refused:
        pin([wish(host)], resolve=resolve)
    assert host in refused.value.message
    assert said in refused.value.message


def test_tls_is_not_waived_where_another_destination_demands_it():
    with pytest.raises(ConfigError) as refused:
        pin([wish("a.example"), wish("b.example", tls=False)], resolve=resolve)
    assert "waives TLS for b.example:443, which is at 192.0.2.9 as a.example:443 is" in refused.value.message
    assert len(pin([wish("a.example", 80), wish("b.example", tls=False)], resolve=resolve)) == 2


def test_this_machine_has_a_resolver():
    assert "127.0.0.1" in look_up("localhost")
    with pytest.raises(OSError, match=r"."):
        look_up("no-such-name.invalid")
