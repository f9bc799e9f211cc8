"""A configuration or a state folder that was found upward is used only when it is ours."""

import grp
import os
import pwd
import stat
from pathlib import Path

import pytest
from support.desk import Desk

from pgcoord.configuration.ownership import trusted_owners, why_not_ours
from pgcoord.configuration.reading import find_configuration
from pgcoord.errors import InvalidConfiguration

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")

STRANGER = 12345


@root_only
def test_a_configuration_of_another_user_is_refused_unless_named(desk: Desk) -> None:
    plan = desk.plan("echo ran")
    configuration = desk.folder / "pgcoord.toml"
    os.chown(configuration, STRANGER, STRANGER)
    refused = desk.call("run", plan)
    assert refused.returncode == 5
    assert refused.stderr.startswith(
        f"pgcoord: {configuration} belongs to user {STRANGER}, so it is not used\n"
        f"  To use it all the same, name it: --config {configuration}."
    )
    examined = desk.call("doctor")
    assert f"belongs to user {STRANGER}" in examined.stdout
    assert desk.call("run", plan, "--config", str(configuration)).returncode == 0


@root_only
def test_a_link_of_another_user_to_our_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ours.toml").write_text("")
    (tmp_path / "pgcoord.toml").symlink_to("ours.toml")
    assert find_configuration(tmp_path) == tmp_path / "pgcoord.toml"
    os.chown(tmp_path / "pgcoord.toml", STRANGER, STRANGER, follow_symlinks=False)
    with pytest.raises(InvalidConfiguration, match=f"belongs to user {STRANGER}"):
        find_configuration(tmp_path)


def test_a_world_writable_configuration_is_refused(desk: Desk) -> None:
    (desk.folder / "pgcoord.toml").chmod(0o666)
    result = desk.call("serve")
    assert (result.returncode, "can be changed by every user" in result.stderr) == (5, True)
    assert "chmod go-w" in result.stderr


@root_only
def test_only_the_private_group_of_the_owner_may_write_the_configuration(tmp_path: Path) -> None:
    """As with a umask of 002, where each user has a group of the same name."""
    path = tmp_path / "pgcoord.toml"
    path.write_text("")
    path.chmod(0o664)
    for user in pwd.getpwall():
        os.chown(path, user.pw_uid, user.pw_gid)
        group = grp.getgrgid(user.pw_gid)
        own = user.pw_gid == 0 or (
            group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
        )
        assert (why_not_ours(path, {user.pw_uid}) is None) == own, user.pw_name
    os.chown(path, 0, STRANGER)
    assert "those of group 12345" in str(why_not_ours(path, {0}))


@root_only
def test_the_user_behind_sudo_is_trusted(tmp_path: Path) -> None:
    path = tmp_path / "pgcoord.toml"
    path.write_text("")
    os.chown(path, STRANGER, STRANGER)
    assert find_configuration(tmp_path, {"SUDO_UID": str(STRANGER)}) == path
    assert trusted_owners({"SUDO_UID": "x"}) == {0}


@root_only
def test_a_state_folder_of_another_user_is_refused(desk: Desk) -> None:
    state = desk.folder / ".pgcoord"
    state.mkdir(mode=0o700)
    os.chown(state, STRANGER, STRANGER)
    environment = {"DATABASE_URL": ""}
    for command in (["status"], ["db", "start"], ["run", desk.plan("true")]):
        result = desk.call(*command, **environment)
        assert result.returncode == 6, result
        assert result.stderr.startswith(
            f"pgcoord: {state} belongs to user {STRANGER}, so it is not used\n"
        )
        assert "Give --dsn or DATABASE_URL" in result.stderr
    assert not list(state.iterdir())


def test_a_world_writable_state_folder_is_refused(desk: Desk) -> None:
    state = desk.folder / ".pgcoord"
    state.mkdir()
    state.chmod(0o777)
    result = desk.call("db", "start", DATABASE_URL="")
    assert (result.returncode, "can be changed by every user" in result.stderr) == (6, True)
    assert stat.S_IMODE(state.stat().st_mode) == 0o777
