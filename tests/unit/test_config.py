# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import os
import stat
from pathlib import Path

import pytest

from cvmtool.config import (
    HostSettings,
    forget_foreign_runtime_dir,
    load_settings,
    private_dir,
    resources,
    session_dirs,
    write_atomic,
    write_once,
)
from cvmtool.errors import ConfigError


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def levels(tmp_path):
    """An environment, a project and a function that writes a level's file."""
    project = tmp_path / "project"
    project.mkdir()
    config = tmp_path / "config" / "cvmtool"
    config.mkdir(parents=True)
    environ = {"HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": str(tmp_path / "config")}

    def load(**variables):
        return load_settings({**environ, **variables}, project=project)

    return load, project / "cvmtool.toml", config / "cvmtool.toml"


def test_every_place_has_a_default_below_home(levels, tmp_path):
    load, _, _ = levels
    settings = load()
    home = tmp_path / "home"
    assert settings.host is None
    assert settings.state_dir == home / ".local/state/cvmtool"
    assert settings.data_dir == home / ".local/share/cvmtool"
    assert settings.cache_dir == home / ".cache/cvmtool"
    assert settings.keystore == settings.state_dir / "owner.key"
    assert settings.jobs_dir == settings.state_dir / "jobs"
    assert settings.bundles_dir == settings.data_dir / "bundles"
    assert settings.packages_dir == settings.cache_dir / "packages"


def test_the_hosts_store_stands_where_another_user_can_reach_it(levels, monkeypatch):
    load, _, _ = levels
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert load().machines_dir == Path("/var/lib/cvmtool/machines")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert load().machines_dir == load().state_dir / "host"


def test_rules_of_every_level_apply_and_none_takes_another_away(levels):
    load, project, user = levels
    assert load().rules == ()
    user.write_text('rules = "organisation.yaml"\n')
    project.write_text('rules = "/project.yaml"\n')
    assert load().rules == (user.parent / "organisation.yaml", Path("/project.yaml"))
    assert load(CVMTOOL_RULES="/mine.yaml").rules == (*load().rules, Path("/mine.yaml"))
    assert load(CVMTOOL_RULES="/project.yaml").rules == load().rules


def test_xdg_moves_the_places(levels):
    load, _, _ = levels
    settings = load(XDG_STATE_HOME="/s", XDG_DATA_HOME="/d", XDG_CACHE_HOME="/c")
    assert (settings.state_dir, settings.data_dir, settings.cache_dir) == (
        Path("/s/cvmtool"),
        Path("/d/cvmtool"),
        Path("/c/cvmtool"),
    )


def test_the_environment_goes_before_the_project_and_that_before_the_user(levels):
    load, project, user = levels
    user.write_text('host = "user"\ndata_dir = "/user"\nstate_dir = "/user"\n')
    assert load().host == "user"
    project.write_text('host = "project"\ndata_dir = "/project"\n')
    assert (load().host, load().data_dir, load().state_dir) == ("project", Path("/project"), Path("/user"))
    settings = load(CVMTOOL_HOST="environment")
    assert (settings.host, settings.data_dir) == ("environment", Path("/project"))
    assert load(CVMTOOL_HOST="").host == "project"


@pytest.mark.parametrize("name", ["host", "state_dir", "data_dir", "cache_dir", "machines_dir"])
def test_every_field_can_be_set_at_every_level(levels, name):
    load, project, user = levels
    for place, value in ((user, "/u"), (project, "/p")):
        place.write_text(f'{name} = "{value}"\n')
        assert str(getattr(load(), name)) == value
    assert str(getattr(load(**{f"CVMTOOL_{name.upper()}": "/e"}), name)) == "/e"


def test_an_unknown_key_is_named_with_the_nearest_known_one(levels):
    load, project, _ = levels
    project.write_text('state_dirr = "/x"\n')
    with pytest.raises(ConfigError) as refusal:
        load()
    assert "'state_dirr'" in refusal.value.message
    assert refusal.value.hint == "did you mean 'state_dir'?"
    project.write_text("zzz = 1\n")
    with pytest.raises(ConfigError) as refusal:
        load()
    assert "known keys: host" in refusal.value.hint


@pytest.mark.parametrize(
    "content",
    [
        b"host = 1\n",
        b"[host]\n",
        b"host = ",
        b"\xff",
        b'host = "a"\nhost = "b"\n',
        b"host = " + b"9" * 5000,
        b"host = " + b"[" * 5000,
    ],
)
def test_a_file_that_cannot_be_used_is_named(levels, content):
    load, project, _ = levels
    project.write_bytes(content)
    with pytest.raises(ConfigError) as refusal:
        load()
    assert str(project) in refusal.value.message


def test_a_directory_in_a_files_place_is_a_config_error(levels):
    load, project, _ = levels
    project.mkdir()
    with pytest.raises(ConfigError):
        load()


def test_resources_are_found_or_named():
    assert (resources("templates") / "domain-dryrun.xml.j2").is_file()
    with pytest.raises(ConfigError):
        resources("nothing")


def test_a_private_directory_and_every_one_made_for_it_is_the_owners_alone(tmp_path):
    path = tmp_path / "a/b/c"
    assert private_dir(path) == path
    assert [mode(tmp_path / part) for part in ("a", "a/b", "a/b/c")] == [0o700] * 3
    private_dir(path)


def test_a_directory_that_cannot_be_made_is_a_config_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(ConfigError):
            private_dir(path)


def test_a_file_is_written_whole_with_its_mode(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"one")
    assert (path.read_bytes(), mode(path)) == (b"one", 0o600)
    write_atomic(path, b"two", mode=0o644)
    assert (path.read_bytes(), mode(path)) == (b"two", 0o644)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "fchmod", "rename"])
def test_a_crash_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def crash(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if step == "rename":
            patch.setattr(Path, "replace", crash)
        else:
            patch.setattr(os, step, crash)
        with pytest.raises(KeyboardInterrupt):
            write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_bytes_are_on_disk_before_the_name_is(tmp_path, monkeypatch):
    path = tmp_path / "file"
    order = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append(os.fstat(handle).st_size), fsync(handle)))
    monkeypatch.setattr(Path, "replace", lambda self, target: (order.append("rename"), replace(self, target))[1])
    write_atomic(path, b"12345")
    assert order == [5, "rename"]


def test_what_is_written_once_is_not_written_over(tmp_path):
    path = tmp_path / "file"
    assert write_once(path, b"one")
    assert not write_once(path, b"two")
    assert (path.read_bytes(), mode(path)) == (b"one", 0o600)
    assert list(tmp_path.iterdir()) == [path]


def test_libvirts_session_directories(tmp_path):
    home = {"HOME": "/h"}
    assert session_dirs(home) == (Path("/h/.cache"), Path("/h/.config"))
    own = {**home, "XDG_RUNTIME_DIR": str(tmp_path), "XDG_CONFIG_HOME": "/c"}
    assert session_dirs(own) == (tmp_path, Path("/c"))


@pytest.mark.parametrize("foreign", ["/nonexistent/run", "/dev/null/run"])
def test_a_runtime_directory_of_another_user_is_forgotten(monkeypatch, foreign):
    assert session_dirs({"HOME": "/h", "XDG_RUNTIME_DIR": foreign})[0] == Path("/h/.cache")
    monkeypatch.setenv("XDG_RUNTIME_DIR", foreign)
    forget_foreign_runtime_dir()
    assert "XDG_RUNTIME_DIR" not in os.environ


def test_ones_own_runtime_directory_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    forget_foreign_runtime_dir()
    assert os.environ["XDG_RUNTIME_DIR"] == str(tmp_path)


HOST = '[hosts.lab]\nuri = "qemu+ssh://h/system"\n'


def test_a_host_has_a_name(levels):
    load, project, user = levels
    user.write_text('[hosts.lab]\nuri = "qemu:///system"\n[hosts.far]\nuri = "qemu+ssh://far/system"\n')
    project.write_text(HOST + 'identity = "keys/id"\naccelerator = "kvm"\nmachines = "/srv/m"\n')
    hosts = load(CVMTOOL_HOST="lab").hosts
    assert set(hosts) == {"lab", "far"}
    assert hosts["lab"] == HostSettings(
        name="lab",
        uri="qemu+ssh://h/system",
        identity=project.parent / "keys/id",
        accelerator="kvm",
        machines="/srv/m",
    )
    assert load(CVMTOOL_HOST="lab").target() == hosts["lab"]
    assert load(CVMTOOL_HOST="qemu:///session").target().uri == "qemu:///session"
    assert load().target() is None


def test_a_host_nobody_named_is_a_config_error(levels):
    load, project, _ = levels
    project.write_text(HOST)
    with pytest.raises(ConfigError) as refusal:
        load(CVMTOOL_HOST="lap").target()
    assert "'lab'" in refusal.value.hint


@pytest.mark.parametrize(
    "content",
    [
        'hosts = "lab"\n',
        "[hosts]\nlab = 1\n",
        "[hosts.lab]\n",
        '[hosts.lab]\nurl = "qemu+ssh://h/system"\n',
        "[hosts.lab]\nuri = 1\n",
        HOST + 'accelerator = "xen"\n',
        HOST + 'machines = "relative"\n',
        HOST + "known_hosts = []\n",
        '[hosts."../x"]\nuri = "qemu+ssh://h/system"\n',
        '[hosts."A"]\nuri = "qemu+ssh://h/system"\n',
    ],
)
def test_a_host_that_cannot_be_used_is_named(levels, content):
    load, project, _ = levels
    project.write_text(content)
    with pytest.raises(ConfigError) as refusal:
        load()
    assert str(project) in refusal.value.message


def test_hosts_that_were_added_are_hosts(levels, tmp_path):
    load, project, _ = levels
    folder = load().hosts_dir / "lab"
    folder.mkdir(parents=True)
    (folder / "host.toml").write_text('uri = "qemu+ssh://h/system"\nknown_hosts = "known_hosts"\n')
    assert load().hosts["lab"].known_hosts == folder / "known_hosts"
    project.write_text('[hosts.lab]\nuri = "qemu:///system"\n')
    assert load().hosts["lab"].uri == "qemu:///system"
    (folder / "host.toml").write_text("uri = 1\n")
    with pytest.raises(ConfigError) as refusal:
        load()
    assert str(folder) in refusal.value.message
