"""Where files of the user's own are: the home folder, also where there is none, and the cache. Imports no torch."""

import functools
import logging
import os
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)


def expanded(path: Path | str) -> Path:
    """A path with `~` expanded; as it is where no home is known, as under a container's unknown user id."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (Path.expanduser raises there)


def cache_dir() -> Path:
    """The folder of the cache: $TOOLKIT_CACHE, else $XDG_CACHE_HOME/toolkit, else ~/.cache/toolkit.

    Where neither of the last two can be written: a folder of the user's own in the temporary one, named in a log line.
    """
    if chosen := os.environ.get("TOOLKIT_CACHE"):
        return expanded(chosen)
    base = _base("XDG_CACHE_HOME", ".cache")
    provided = _stand_in_path().name in str(base)
    return base / "toolkit" if _writable(base) and not provided else _stand_in_cache()


def provide_home() -> None:
    """Set $HOME where there is no such folder: libraries would fail, or write into a folder that is called `~`.

    Where there is one whose cache can only be read, set $XDG_CACHE_HOME; weights in that cache stay in use. An empty
    $HOME, and a relative $XDG_CACHE_HOME or $XDG_CONFIG_HOME, are as if they were not set.
    """
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        value = os.environ.get(name, "")
        if not value or (name != "HOME" and not Path(value).is_absolute()):
            os.environ.pop(name, None)
    home, cache = expanded("~"), _base("XDG_CACHE_HOME", ".cache")
    if not (home.is_absolute() and home.is_dir()) or (home == Path("/") and not _writable(cache)):
        os.environ["HOME"] = str(_stand_in())
    elif not _writable(cache):
        for name, folder in (("HF_HOME", "huggingface"), ("TORCH_HOME", "torch")):
            if (cache / folder).is_dir():
                os.environ.setdefault(name, str(cache / folder))
        os.environ["XDG_CACHE_HOME"] = str(_stand_in() / ".cache")


def matplotlib_dir() -> str | None:
    """A folder for what Matplotlib keeps, where its usual ones cannot be written: it would warn at each start."""
    usual = _base("XDG_CONFIG_HOME", ".config"), _base("XDG_CACHE_HOME", ".cache")
    return None if all(map(_writable, usual)) else str(_stand_in() / "matplotlib")


def _base(variable: str, folder: str) -> Path:
    """A base folder of the XDG specification, by which one that is not absolute is ignored."""
    chosen = os.environ.get(variable, "")
    return Path(chosen) if Path(chosen).is_absolute() else expanded("~") / folder


def _writable(folder: Path) -> bool:
    """Whether a folder can be written, or made."""
    there = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), folder)
    return folder.is_absolute() and there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _stand_in_path() -> Path:
    return Path(tempfile.gettempdir(), f"toolkit-home-{os.getuid()}")


@functools.cache
def _stand_in() -> Path:
    """A folder of this user's own, for those without a home."""
    folder = _stand_in_path()
    folder.mkdir(mode=0o700, exist_ok=True)
    own = folder.stat().st_uid == os.getuid() and not folder.is_symlink()
    return folder if own else Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))


@functools.cache
def _stand_in_cache() -> Path:
    folder = _stand_in() / ".cache" / "toolkit"
    log.info("cache     %s, for no home folder can be written; --cache-dir or $TOOLKIT_CACHE sets another", folder)
    return folder
