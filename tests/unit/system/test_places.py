"""The home folder and the cache, also where there is no home."""

import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolkit.config.tool_settings import Scan
from toolkit.system import places

SAID = "for no home folder can be written; --cache-dir or $TOOLKIT_CACHE sets another"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A home that exists, a temporary folder of the test's own, and none of the variables."""
    for name in ("TOOLKIT_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, "")  # so that it is what it was when the test ends
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    yield
    places._stand_in.cache_clear()
    places._stand_in_cache.cache_clear()


def stand_in(tmp_path: Path) -> Path:
    return tmp_path / "tmp" / f"toolkit-home-{os.getuid()}"


def test_the_cache_is_where_the_environment_says_when_it_says_so(monkeypatch, tmp_path: Path):
    assert places.cache_dir() == tmp_path / "home" / ".cache" / "toolkit"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert places.cache_dir() == tmp_path / "xdg" / "toolkit"
    for ignored in ("", "relative/one"):  # as the XDG specification has it
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert places.cache_dir() == tmp_path / "home" / ".cache" / "toolkit"
    monkeypatch.setenv("TOOLKIT_CACHE", "")
    assert places.cache_dir() == tmp_path / "home" / ".cache" / "toolkit"
    monkeypatch.setenv("TOOLKIT_CACHE", "~/here")
    assert places.cache_dir() == tmp_path / "home" / "here"


@pytest.mark.parametrize(("name", "value"), [("HOME", "file/none"), ("XDG_CACHE_HOME", "file/cache")])
def test_a_cache_that_cannot_be_written_is_elsewhere_and_said_once(
    monkeypatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, value: str
):
    caplog.set_level(logging.INFO, "toolkit")
    monkeypatch.setenv(name, str(tmp_path / value))
    cache = stand_in(tmp_path) / ".cache" / "toolkit"
    for _ in range(2):
        assert places.cache_dir() == cache
    assert caplog.messages == [f"cache     {cache}, {SAID}"]
    assert stand_in(tmp_path).stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "chosen"))
    assert places.cache_dir() == tmp_path / "chosen"


def test_libraries_find_a_home_where_there_is_none(monkeypatch, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "toolkit")
    places.provide_home()
    assert os.environ["HOME"] == str(tmp_path / "home")  # control: one that exists stays
    assert places.matplotlib_dir() is None
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert places.matplotlib_dir() == str(stand_in(tmp_path) / "matplotlib")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    places.provide_home()
    assert os.environ["HOME"] == str(stand_in(tmp_path))
    assert "XDG_CACHE_HOME" not in os.environ
    assert places.cache_dir() == stand_in(tmp_path) / ".cache" / "toolkit"
    assert [message.partition(", ")[2] for message in caplog.messages] == [SAID]
    assert places.matplotlib_dir() is None


def test_weights_are_still_found_where_a_home_can_only_be_read(monkeypatch, tmp_path: Path):
    """Whoever runs the tests may be allowed to write everywhere: what is not writable is said."""
    home, writable = tmp_path / "home", places._writable
    (home / ".cache" / "huggingface").mkdir(parents=True)
    monkeypatch.setattr(places, "_writable", lambda folder: not folder.is_relative_to(home) and writable(folder))
    places.provide_home()
    assert os.environ["HOME"] == str(home)
    assert os.environ["HF_HOME"] == str(home / ".cache" / "huggingface")
    assert "TORCH_HOME" not in os.environ
    assert os.environ["XDG_CACHE_HOME"] == str(stand_in(tmp_path) / ".cache")
    assert places.cache_dir() == stand_in(tmp_path) / ".cache" / "toolkit"


def test_a_folder_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Anybody may make a folder of that name in /tmp: a link to it is not followed."""
    (tmp_path / "theirs").mkdir()
    stand_in(tmp_path).symlink_to(tmp_path / "theirs")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert places.cache_dir().parent.parent.name.startswith(f"{stand_in(tmp_path).name}-")


def test_a_home_that_is_not_known_is_no_reason_to_stop(tmp_path: Path):
    assert places.expanded("~/photos") == tmp_path / "home" / "photos"
    assert places.expanded("~nobody-of-that-name/photos") == Path("~nobody-of-that-name/photos")
    assert Scan(data="x", output_dir="~/found").output_dir == tmp_path / "home" / "found"  # type: ignore[arg-type]
