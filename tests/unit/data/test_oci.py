# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import io
import json
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.data.oci import ImageConfig, OciImage
from cvmtool.errors import ConfigError, CvmError, FormatError, VerificationError
from tests.samples import DIGEST
from tests.unit.data.oci_images import CONFIG, GZIP, TAR, Image, directory, hard, layer, member, symbolic
from tests.unit.formats.test_wire import JSON


@pytest.fixture
def opened(tmp_path):
    def open_image(image, digest=None):
        return OciImage(f"oci:{image.write(tmp_path / 'layout').name}", digest or image.digest, base=tmp_path)

    return open_image


def tree(image):
    """The merged root file system: path -> content, link target or kind."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(b"".join(image.rootfs()))) as tar:
        for info in tar:
            path = info.name.rstrip("/")
            assert path not in found, f"{path} twice"
            if info.isreg():
                found[path] = tar.extractfile(info).read()
            elif info.islnk():
                assert info.linkname in found, f"{path} links to what is not there yet"
                found[path] = found[info.linkname]
            elif info.issym():
                found[path] = "-> " + info.linkname
            else:
                found[path] = "dir" if info.isdir() else "special"
    return found


def files(opened, *layers, **named):
    return tree(opened(Image(*layers, **named)))


@pytest.mark.parametrize("media", [TAR, GZIP, "application/vnd.docker.image.rootfs.diff.tar.gzip"])
def test_one_layer(opened, media):
    content = layer(directory("etc"), member("etc/a", b"1"), symbolic("b", "/etc/a"), hard("c", "etc/a"))
    assert files(opened, content, media=media) == {"etc": "dir", "etc/a": b"1", "b": "-> /etc/a", "c": b"1"}


def test_the_config_says_how_to_run(opened):
    assert opened(Image(layer())).config == ImageConfig(
        args=("python3", "-V"), env={"A": "1", "B": "x=y"}, workdir="/app"
    )
    bare = {**CONFIG, "config": {"Env": None, "Cmd": None, "Entrypoint": None, "WorkingDir": ""}}
    for config in (bare, {**CONFIG, "config": None}, {"os": "linux", "architecture": "amd64"}):
        assert opened(Image(layer(), config=config)).config == ImageConfig(args=(), env={}, workdir="/")


def test_an_upper_layer_replaces_adds_and_hides(opened):
    below = layer(
        directory("d"), member("d/keep", b"1"), member("d/gone", b"2"), member("d/new", b"old"), member("x", b"3")
    )
    above = layer(member("d/.wh.gone"), member("d/new", b"new"), member(".wh.x"), member("y", b"4"))
    assert files(opened, below, above) == {"d": "dir", "d/keep": b"1", "d/new": b"new", "y": b"4"}


def test_a_whiteout_of_a_directory_takes_all_of_it_and_it_may_come_back(opened):
    one = layer(directory("d"), directory("d/e"), member("d/e/f", b"1"), member("de", b"not below d"))
    two = layer(member(".wh.d"))
    three = layer(directory("d"), member("d/g", b"2"))
    assert files(opened, one, two) == {"de": b"not below d"}
    assert files(opened, one, two, three) == {"d": "dir", "d/g": b"2", "de": b"not below d"}


def test_an_opaque_directory_hides_what_is_below_it_and_stays(opened):
    below = layer(directory("d"), member("d/a", b"1"), directory("d/e"), member("d/e/b", b"2"), member("c", b"3"))
    above = layer(directory("d", mode=0o700), member("d/.wh..wh..opq"), member("d/new", b"4"))
    assert files(opened, below, above) == {"d": "dir", "d/new": b"4", "c": b"3"}


def test_an_opaque_root_hides_every_layer_below(opened):
    below = layer(member("a", b"1"), directory("d"), member("d/b", b"2"))
    assert files(opened, below, layer(member(".wh..wh..opq"), member("new", b"3"))) == {"new": b"3"}


def test_a_whiteout_says_nothing_of_its_own_layer(opened):
    content = layer(member("d/.wh..wh..opq"), member(".wh.a"), member("a", b"1"), directory("d"), member("d/b", b"2"))
    assert files(opened, content) == {"a": b"1", "d": "dir", "d/b": b"2"}


def test_a_file_in_a_directorys_place_hides_what_was_below(opened):
    below = layer(directory("d"), member("d/a", b"1"))
    assert files(opened, below, layer(member("d", b"file"))) == {"d": b"file"}
    assert files(opened, below, layer(symbolic("d", "/etc"))) == {"d": "-> /etc"}


def test_a_directory_in_a_files_place(opened):
    assert files(opened, layer(member("d", b"1")), layer(directory("d"), member("d/a", b"2"))) == {
        "d": "dir",
        "d/a": b"2",
    }


LINKED = layer(member("a", b"old"), hard("b", "a"), hard("c", "a"))


@pytest.mark.parametrize(
    ("above", "expected"),
    [
        ([member(".wh.a")], {"b": b"old", "c": b"old"}),
        ([member("a", b"new")], {"a": b"new", "b": b"old", "c": b"old"}),
        ([member("b", b"new")], {"a": b"old", "b": b"new", "c": b"old"}),
        ([member(".wh.b")], {"a": b"old", "c": b"old"}),
        ([member(".wh.a"), member(".wh.b"), member(".wh.c")], {}),
        ([hard("d", "a")], {"a": b"old", "b": b"old", "c": b"old", "d": b"old"}),
        ([hard("d", "a"), member("a2", b"x")], {"a": b"old", "b": b"old", "c": b"old", "d": b"old", "a2": b"x"}),
        ([hard("b", "a")], {"a": b"old", "b": b"old", "c": b"old"}),
    ],
)
def test_a_hard_link_keeps_its_content_whatever_becomes_of_the_file_it_names(opened, above, expected):
    assert files(opened, LINKED, layer(*above)) == expected


def test_a_link_above_to_a_file_below_does_not_get_what_stands_above_the_link(opened):
    one, two, three = layer(member("a", b"1"), member("b", b"lower")), layer(hard("b", "a")), layer(member("a", b"3"))
    assert files(opened, one, two, three) == {"a": b"3", "b": b"1"}


def test_a_link_to_a_link_and_a_link_before_its_file(opened):
    assert files(opened, layer(member("a", b"1"), hard("b", "a"), hard("c", "b"))) == {"a": b"1", "b": b"1", "c": b"1"}
    assert files(opened, layer(hard("b", "a"), member("a", b"1"))) == {"a": b"1", "b": b"1"}


@pytest.mark.parametrize(
    "content", [layer(hard("a", "missing")), layer(hard("a", "b"), hard("b", "a")), layer(hard("a", "a"))]
)
def test_a_link_to_nothing_is_refused(opened, content):
    with pytest.raises(FormatError):
        files(opened, content)


def test_of_a_name_that_a_layer_has_twice_the_last_counts(opened):
    assert files(opened, layer(member("a", b"1"), member("./a", b"2"))) == {"a": b"2"}
    assert files(opened, layer(member("a", b"1"), hard("b", "a"), member("b", b"2"))) == {"a": b"1", "b": b"2"}


LONG = "d" * 90 + "/" + "é" * 60


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names_survive_in_both_dialects(opened, form):
    content = layer(member("./" + LONG, b"1"), hard("l", "./" + LONG), symbolic("s", LONG), form=form)
    assert files(opened, content) == {LONG: b"1", "l": b"1", "s": "-> " + LONG}
    assert files(opened, content, layer(member("x", b"2"), form=form))["l"] == b"1"


def test_a_renamed_long_name_does_not_come_back(opened):
    content = layer(member(LONG, b"1"), hard("short", LONG))
    above = layer(member(f"{'d' * 90}/.wh.{'é' * 60}"))
    assert files(opened, content, above) == {"short": b"1"}


@pytest.mark.parametrize("name", ["/etc/a", "./etc/a", "etc//a", "//etc/./a"])
def test_every_spelling_of_a_path_is_one_path(opened, name):
    assert files(opened, layer(member("etc/a", b"old")), layer(member(name, b"new"))) == {"etc/a": b"new"}


@pytest.mark.parametrize(
    "bad", [member("../x"), member("a/../../x"), member(".."), member("/.."), hard("a", "../x"), directory("../d/")]
)
def test_no_name_leads_out(opened, bad):
    with pytest.raises(FormatError):
        files(opened, layer(bad))


def test_a_whiteout_of_what_no_path_can_be_hides_nothing(opened):
    assert files(opened, layer(member("a", b"1")), layer(member("b/.wh..."), member("b/.wh."))) == {"a": b"1"}


def test_owners_modes_and_special_files_are_kept(opened):
    image = opened(
        Image(
            layer(
                member("a", b"1", uid=5, gid=6, mode=0o4755), member("n", kind=tarfile.CHRTYPE, devmajor=1, devminor=3)
            )
        )
    )
    with tarfile.open(fileobj=io.BytesIO(b"".join(image.rootfs()))) as tar:
        a, n = tar.getmembers()
    assert (a.uid, a.gid, a.mode) == (5, 6, 0o4755)
    assert (n.type, n.devmajor, n.devminor) == (tarfile.CHRTYPE, 1, 3)


def test_a_layer_that_is_not_what_its_digest_says(opened, tmp_path):
    image = Image(layer(member("a", b"1")))
    name = image.manifest["layers"][0]["digest"].removeprefix("sha256:")
    image.blobs[name] = image.blobs[name].replace(b"1", b"2", 1)
    with pytest.raises(VerificationError):
        next(opened(image).rootfs())


def test_a_layer_of_another_size_than_its_descriptor_says(opened):
    content = layer(member("a", b"1"))
    described = {**Image(content).manifest["layers"][0], "size": len(content) - 1}
    with pytest.raises(VerificationError):
        next(opened(Image(content, manifest={"layers": [described]})).rootfs())


@pytest.mark.parametrize("which", ["manifest", "config", "layer"])
def test_a_missing_or_changed_blob(opened, tmp_path, which):
    for change in (None, b"{}"):
        image = Image(layer(member("a", b"1")))
        described = {"manifest": image.descriptor, "config": image.config, "layer": image.manifest["layers"][0]}[which]
        name = described["digest"].removeprefix("sha256:")
        if change is None:
            del image.blobs[name]
            (tmp_path / "layout/blobs/sha256" / name).unlink(missing_ok=True)
        else:
            image.blobs[name] = change
        with pytest.raises(FormatError if change is None else VerificationError):
            tree(opened(image))


def test_another_image_than_the_pinned_one_is_refused_and_both_are_named(opened):
    image = Image(layer())
    with pytest.raises(VerificationError) as refusal:
        opened(image, DIGEST)
    assert DIGEST in refusal.value.message
    assert image.digest in refusal.value.message


def test_an_index_in_place_of_a_manifest_is_refused(opened):
    image = Image(layer())
    image.index["manifests"][0]["mediaType"] = "application/vnd.oci.image.index.v1+json"
    with pytest.raises(FormatError, match="index"):
        opened(image)


def test_zstd_layers_are_refused_with_a_way_out(opened):
    image = opened(Image(layer(), media=TAR + "+zstd"))
    with pytest.raises(FormatError) as refusal:
        next(image.rootfs())
    assert "zstd" in refusal.value.message
    assert "skopeo" in refusal.value.hint


@pytest.mark.parametrize("media", [TAR, GZIP])
@pytest.mark.parametrize("data", [b"no tar" * 200, layer(member("a", b"x" * 5000))[:1500], b"\x1f\x8b\x08"])
def test_a_layer_that_is_no_archive_is_a_format_error(opened, media, data):
    image = Image()
    image.manifest["layers"] = [{**image.add(data), "mediaType": media}]
    image.descriptor |= image.add(image.manifest)
    with pytest.raises(FormatError):
        b"".join(opened(image).rootfs())


@pytest.mark.parametrize(
    "layers", [None, [], {}, "x", ["x"], [None], [{}], [{"digest": DIGEST, "size": "1", "mediaType": TAR}]]
)
def test_layers_out_of_shape_are_a_format_error(opened, layers):
    with pytest.raises(FormatError):
        next(opened(Image(manifest={"layers": layers})).rootfs())


@pytest.mark.parametrize(
    "index",
    [b"", b"{", b"[]", {"manifests": None}, {"manifests": {}}, {"manifests": ["x"]}, {}, b'{"manifests": [1.5]}'],
)
def test_an_index_out_of_shape_is_a_format_error(opened, index):
    image = Image(layer())
    image.index = index
    with pytest.raises(FormatError):
        opened(image)


@pytest.mark.parametrize(
    "config", [None, [], {"digest": "md5:00", "size": 1}, {"digest": DIGEST}, {"digest": DIGEST, "size": True}]
)
def test_a_config_descriptor_out_of_shape_is_a_format_error(opened, config):
    with pytest.raises(FormatError):
        opened(Image(manifest={"config": config}))


@pytest.mark.parametrize(
    "run",
    [
        {"Entrypoint": "python3"},
        {"Cmd": [1]},
        {"Cmd": {"a": 1}},
        {"Env": ["A=1", None]},
        {"Env": "A=1"},
        {"WorkingDir": 5},
        {"WorkingDir": "app"},
        "x",
        ["x"],
    ],
)
def test_a_config_out_of_shape_is_a_format_error(opened, run):
    with pytest.raises(FormatError):
        opened(Image(config={**CONFIG, "config": run}))


@pytest.mark.parametrize("platform", [{"os": "windows"}, {"architecture": "arm64"}, {"architecture": None}])
def test_another_platform_cannot_run_here(opened, platform):
    with pytest.raises(ConfigError, match="linux/amd64"):
        opened(Image(config={**CONFIG, **platform}))


@given(st.sampled_from(["config", "index", "manifest"]), st.sampled_from(["config", "layers", "manifests", "os"]), JSON)
def test_any_document_is_an_image_or_an_error_of_ours(tmp_path_factory, which, key, value):
    config = {**CONFIG, key: value} if which == "config" else CONFIG
    image = Image(layer(), config=config, manifest={key: value} if which == "manifest" else None)
    if which == "index":
        image.index[key] = value
    folder = tmp_path_factory.mktemp("image")
    with contextlib.suppress(CvmError):
        tree(OciImage(f"oci:{image.write(folder)}", image.digest, base=folder))


@pytest.mark.parametrize("prefix", ["", "./"])
def test_an_archive_is_read_as_a_directory_is(tmp_path, prefix):
    image = Image(layer(member("a", b"1")), media=GZIP)
    image.archive(tmp_path / "image.tar", prefix=prefix)
    for reference in ("oci-archive:image.tar", "oci-archive:image.tar:latest", f"oci-archive:{tmp_path}/image.tar"):
        assert tree(OciImage(reference, image.digest, base=tmp_path)) == {"a": b"1"}


def test_a_directory_may_have_a_tag_or_a_colon_in_its_name(tmp_path):
    image = Image(layer(member("a", b"1")))
    image.write(tmp_path / "plain")
    image.write(tmp_path / "with:colon")
    for reference in ("oci:plain", "oci:plain:v1", "oci:with:colon"):
        assert tree(OciImage(reference, image.digest, base=tmp_path)) == {"a": b"1"}


@pytest.mark.parametrize(
    "reference", ["docker://debian", "debian:12", "oci", "oci:", "", "dir:x", "docker-archive:x.tar"]
)
def test_another_transport_is_refused_with_the_command_that_fetches(tmp_path, reference):
    with pytest.raises(ConfigError) as refusal:
        OciImage(reference, DIGEST, base=tmp_path)
    assert f"skopeo copy {reference} oci-archive:" in refusal.value.hint


def test_what_is_not_there_or_no_archive(tmp_path):
    (tmp_path / "file").write_bytes(b"no tar")
    (tmp_path / "folder").mkdir()
    for reference in ("oci:missing", "oci-archive:missing"):
        with pytest.raises(ConfigError):
            OciImage(reference, DIGEST, base=tmp_path)
    for reference in ("oci:file", "oci:folder", "oci-archive:file", "oci-archive:folder"):
        with pytest.raises(FormatError):
            OciImage(reference, DIGEST, base=tmp_path)


def test_an_archive_that_was_cut_is_a_format_error(tmp_path):
    image = Image(layer(member("a", b"1" * 5000)))
    whole = image.archive(tmp_path / "whole.tar").read_bytes()
    for end in range(1, len(whole.rstrip(b"\0")), 700):
        (tmp_path / "cut.tar").write_bytes(whole[:end])
        with pytest.raises((FormatError, VerificationError)):
            tree(OciImage("oci-archive:cut.tar", image.digest, base=tmp_path))


def test_json_with_a_key_twice_is_refused(opened):
    image = Image(layer())
    image.index = (
        json.dumps(image.index).replace('"schemaVersion": 2', '"schemaVersion": 2, "schemaVersion": 2').encode()
    )
    with pytest.raises(FormatError):
        opened(image)


@pytest.mark.parametrize(
    "digest",
    ["sha512:" + "ab" * 32, "sha256:ab", "sha256:" + "AB" * 32, "sha256:" + "../" * 21 + "x", "ab" * 32, 5, None],
)
def test_a_digest_that_is_no_sha256_names_no_blob(opened, digest):
    with pytest.raises(FormatError, match="digest"):
        opened(Image(manifest={"config": {"digest": digest, "size": 1}}))
