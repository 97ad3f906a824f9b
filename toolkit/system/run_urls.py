"""The URL of a run, and the local directory that stands for it. Imports no torch."""

import re
from pathlib import Path

from toolkit.system import files, places


def mirror_folder(url: str, cache: Path | None = None) -> Path:
    """The local directory that stands for a run at a URL; `cache` None: the usual one."""
    return (cache or places.cache_dir()) / "runs" / files.key(url) / name_of(url)


def run_url(output_dir: Path | str | None, resume: str) -> str | None:
    """The URL where the run of --output-dir or --resume lives; None if that is a local directory."""
    if isinstance(output_dir, str):
        return output_dir
    return _of_checkpoint(resume)[0] if "://" in resume else None


def _of_checkpoint(url: str) -> tuple[str, str]:
    """The run and the name of its checkpoint, which is empty for the URL of a run."""
    found = re.fullmatch(r"(.+)/checkpoints/(step-[^/]+)", url.rstrip("/"))
    return (found[1], found[2]) if found else (url.rstrip("/"), "")


def step_in(resume: str) -> int | None:
    """The step of the checkpoint that the URL of --resume names."""
    digits = _of_checkpoint(resume)[1].removeprefix("step-")
    return int(digits) if digits.isdecimal() else None


def local_resume(resume: str, cache: Path | None = None) -> Path:
    """The local path of the run or checkpoint that the URL of --resume names."""
    url, name = _of_checkpoint(resume)
    folder = mirror_folder(url, cache)
    return folder / "checkpoints" / name if name else folder


def name_of(url: str) -> str:
    """The last name of a URL, as a folder on this machine can be called."""
    name = url.rstrip("/").rsplit("/", 1)[-1]
    return name if name and len(name.encode()) < 200 and name.isprintable() else files.key(url)
