"""Finds the files that a manifest names: as they are written, or as people and spreadsheets write them."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from toolkit.data.sources.files import each
from toolkit.data.sources.layouts import split_of
from toolkit.data.sources.listing import composed, search_folder
from toolkit.system.errors import InputError


class ManifestFiles:
    """The files of one manifest: `root`, its folder; `split`, the one that it is of."""

    def __init__(self, root: Path, split: str) -> None:
        self.root = root
        self.split = split

    def find(self, names: Sequence[str], what: str) -> list[str | InputError]:
        """The path below `root` of each name, or why there is none; `what`: of the progress bar.

        Where no name is a path below `root`, an image is looked for at any depth, also by its name without an ending.
        """
        there = each(os.path.isfile, [f"{self.root}/{name}" for name in names], what)
        found = [
            name if is_there and _stays(name) else self._tidied(name)
            for name, is_there in zip(names, there, strict=True)
        ]
        anywhere = not any(isinstance(name, str) for name in found)
        return [
            name if isinstance(name, str) else self._looked_up(written, name, anywhere)
            for written, name in zip(names, found, strict=True)
        ]

    def _tidied(self, name: str) -> str | InputError:
        """The path without blanks around it, with slashes, relative to the manifest: if such a file is there."""
        for path in dict.fromkeys((name.strip(), name.strip().replace("\\", "/"))):
            for folder in (self.root.absolute(), self.root.resolve()):
                path = path.removeprefix(f"{folder}/")
            if path and _stays(path) and os.path.isfile(self.root / path):
                return path
        if not _stays(path):
            return InputError(f"{name} leads out of {self.root}: paths are relative to the manifest")
        return InputError(f"there is no file {self.root / path}")

    def _looked_up(self, written: str, error: InputError, anywhere: bool) -> str | InputError:
        name = composed(written.strip().replace("\\", "/")).removeprefix("./")
        if not name or not _stays(name):
            return error
        if name in self._paths:
            return self._paths[name]
        if not anywhere:
            return error
        by_name, by_stem = self._ends
        last = name.rpartition("/")[2]
        fitting = [
            path
            for path in by_name.get(last) or by_stem.get(last) or []
            if f"/{os.path.splitext(path)[0]}".endswith(f"/{name}") or f"/{path}".endswith(f"/{name}")
        ]
        own = [path for path in fitting if (split_of(path.partition("/")[0]) or (self.split,))[0] == self.split]
        if len(own) > 1:
            return InputError(f"{written} can be {own[0]} or {own[1]}, {len(own)} files in all: give their paths")
        return self._paths[own[0]] if own else error

    @functools.cached_property
    def _paths(self) -> dict[str, str]:
        """All images below the root, by their composed form."""
        return {composed(path): path for path in search_folder(self.root).images}

    @functools.cached_property
    def _ends(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """The same by file name, and by file name without its ending."""
        by_name: dict[str, list[str]] = {}
        by_stem: dict[str, list[str]] = {}
        for path in self._paths:
            name = path.rpartition("/")[2]
            by_name.setdefault(name, []).append(path)
            by_stem.setdefault(os.path.splitext(name)[0], []).append(path)
        return by_name, by_stem


def _stays(path: str) -> bool:
    """Whether a path cannot lead out of the folder that it is relative to."""
    return not os.path.isabs(path) and ".." not in Path(path).parts
