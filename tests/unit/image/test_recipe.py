# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""image.toml, read strictly, and the digest of what it asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvmtool.errors import ConfigError
from cvmtool.image.recipe import asks_for_packages, extended, parse_recipe
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


# ---- an image that extends another ----------------------------------------------------------------------------------

OPERATOR = (PATH.parents[1] / "operator/image.toml").read_bytes()


def test_the_operator_image_is_the_base_image_and_a_shell() -> None:
    base, operator = parse_recipe(RECIPE), parse_recipe(OPERATOR, base=RECIPE)
    assert (extended(RECIPE), extended(OPERATOR)) == (None, "base")
    assert (base.shell, operator.shell) == (False, True)
    assert operator.name == "operator"
    assert operator.request == base.request
    assert operator.rootfs.busybox[: len(base.rootfs.busybox)] == base.rootfs.busybox
    assert len(set(operator.rootfs.busybox)) == len(operator.rootfs.busybox) > len(base.rootfs.busybox)
    assert operator.rootfs.links == {**base.rootfs.links, "volumes": "/run/cvmtool/volumes"}
    assert (operator.cmdline, operator.rootfs_modules) == (base.cmdline, base.rootfs_modules)


def test_an_image_that_asks_for_nothing_has_the_lock_of_the_other() -> None:
    assert asks_for_packages(RECIPE)
    assert not asks_for_packages(OPERATOR)
    assert asks_for_packages(OPERATOR + b'[packages.rootfs]\ninclude = ["bash"]')


def test_packages_are_added_to_those_of_the_other() -> None:
    recipe = parse_recipe(OPERATOR + b'[packages.rootfs]\ninclude = ["bash"]', base=RECIPE)
    assert recipe.request.roles["rootfs"].include == (*parse_recipe(RECIPE).request.roles["rootfs"].include, "bash")


GPU = (PATH.parents[1] / "gpu/image.toml").read_bytes()


def test_the_gpu_image_is_the_base_image_and_a_driver() -> None:
    base, gpu = parse_recipe(RECIPE), parse_recipe(GPU, base=RECIPE)
    assert (base.modules, base.request.components) == (None, ("main",))
    assert gpu.modules is not None
    assert set(gpu.modules.take) < set(gpu.rootfs_modules)
    assert set(gpu.request.roles) - set(base.request.roles) == {"modules"}
    assert gpu.request.components == ("main", "contrib", "non-free", "non-free-firmware")
    taken = set(base.cmdline) - set(gpu.cmdline)
    assert (taken, set(gpu.cmdline) - set(base.cmdline)) == ({"lockdown=integrity", "module.sig_enforce=1"}, set())


def test_the_lock_of_the_gpu_image_answers_its_recipe() -> None:
    from cvmtool.image.lock import parse_lock

    lock = parse_lock((PATH.parents[1] / "gpu/packages.lock").read_bytes())
    assert lock.request == parse_recipe(GPU, base=RECIPE).request.digest()
    (source,) = (package for package in lock.packages if package.name == "nvidia-open-kernel-dkms")
    assert (source.roles, source.path.split("/")[1]) == (frozenset({"modules"}), "contrib")


def test_components_are_asked_for_and_change_the_request() -> None:
    more = RECIPE.replace(b"[packages]\n", b'[packages]\ncomponents = ["main", "contrib"]\n', 1)
    assert parse_recipe(more).request.digest() != parse_recipe(RECIPE).request.digest()
    same = RECIPE.replace(b"[packages]\n", b'[packages]\ncomponents = ["main"]\n', 1)
    assert parse_recipe(same).request.digest() == parse_recipe(RECIPE).request.digest()


@pytest.mark.parametrize(
    "gone",
    [
        b'cmdline = ["lockdown=confidentiality"]',
        b'cpu = ["EPYC-Rome"]',
        b'name = ["base"]',
        b'rootfs = ["prune"]',
        b'rootfs = {prune = "etc"}',
    ],
)
def test_what_is_not_there_is_not_taken_out(gone: bytes) -> None:
    with pytest.raises(ConfigError, match="without"):
        parse_recipe(b"without = {" + gone + b"}\n" + OPERATOR, base=RECIPE)


def test_what_is_taken_out_is_a_table() -> None:
    with pytest.raises(ConfigError, match="without is a list"):
        parse_recipe(b'without = ["quiet"]\n' + OPERATOR, base=RECIPE)


def test_a_word_is_taken_out_of_a_table_s_list() -> None:
    recipe = parse_recipe(b'without = {rootfs = {busybox = ["awk"]}}\n' + OPERATOR, base=RECIPE)
    assert set(parse_recipe(OPERATOR, base=RECIPE).rootfs.busybox) - set(recipe.rootfs.busybox) == {"awk"}


def test_only_an_image_that_extends_another_takes_words_out() -> None:
    with pytest.raises(ConfigError, match="without"):
        parse_recipe(b'without = {cmdline = ["quiet"]}\n' + RECIPE)


@pytest.mark.parametrize(
    ("old", "key"), [(b"take =", "take"), (b"[packages.modules]", "modules"), (b"[modules]", "modules")]
)
def test_modules_are_compiled_from_packages_by_a_recipe_that_is_whole(old: bytes, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        parse_recipe(GPU.replace(old, old.replace(b"modules", b"moduls").replace(b"take", b"takes"), 1), base=RECIPE)


@pytest.mark.parametrize("name", [b'"../base"', b"1", b'""', b'["base"]'])
def test_what_is_no_image_is_not_extended(name: bytes) -> None:
    with pytest.raises(ConfigError, match="extends"):
        extended(b"extends = " + name)


def test_an_image_that_extends_another_is_not_extended_itself() -> None:
    with pytest.raises(ConfigError, match="extends"):
        parse_recipe(OPERATOR, base=b'extends = "third"\n' + RECIPE)


@pytest.mark.parametrize("value", [b"1", b'"yes"'])
def test_whether_there_is_a_shell_is_true_or_false(value: bytes) -> None:
    with pytest.raises(ConfigError, match="shell"):
        parse_recipe(OPERATOR.replace(b"shell = true", b"shell = " + value), base=RECIPE)
