# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""image.toml, read strictly, and the digest of what it asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvmtool.errors import ConfigError
from cvmtool.image.recipe import parse_recipe
from cvmtool.measure.vmsa import cpu_signature

PATH = Path(__file__).parents[3] / "images/base/image.toml"
RECIPE = PATH.read_bytes()


def test_the_base_image_parses() -> None:
    recipe = parse_recipe(RECIPE)
    assert recipe.name == "base"
    assert all(cpu_signature(cpu) for cpu in recipe.cpus)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        (b'name = "base"', b'name = "base"\nextra = 1', "extra"),
        (b'"quiet",', b'"quiet loud",', "cmdline"),
        (b'"quiet",', b'"cvmtool.dryrun=1",', "cmdline"),
        (b"[packages.initrd]", b"[packages.inittrd]", "initrd"),
        (b"[firmware]", b"[firmwares]", "firmware"),
        (b'python = "3.13"', b"python = 3.13", "python"),
    ],
)
def test_mutation_is_refused(old: bytes, new: bytes, key: str) -> None:
    assert old in RECIPE
    with pytest.raises(ConfigError, match=key):
        parse_recipe(RECIPE.replace(old, new, 1))


@pytest.mark.parametrize(
    "text", ["a = " + "9" * 5000, "a = " + "[" * 5000, "a = \udcff"], ids=["long", "deep", "not utf-8"]
)
def test_what_the_toml_reader_chokes_on_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not TOML"):
        parse_recipe(text.encode("utf-8", "surrogateescape"))


def test_the_request_digest_follows_packages_and_nothing_else() -> None:
    request = parse_recipe(RECIPE).request
    assert parse_recipe(RECIPE.replace(b'"quiet",', b"")).request.digest() == request.digest()
    other = parse_recipe(RECIPE.replace(b'"busybox-static", "dmsetup"', b'"busybox-static"')).request
    assert other.digest() != request.digest()


def test_the_lock_in_the_repository_answers_the_recipe() -> None:
    from cvmtool.image.lock import parse_lock

    lock = parse_lock((PATH.parent / "packages.lock").read_bytes())
    assert lock.request == parse_recipe(RECIPE).request.digest()
