"""Which source reads `--data-root`: those of the user's own are asked first, then ours in the order of the table."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from toolkit.config.tables import TABLES, look_up
from toolkit.data.sources.base import Source, SourceOptions
from toolkit.data.sources.files import index_files
from toolkit.data.sources.index import ALONE, Found, Index
from toolkit.data.sources.labels import check_splits
from toolkit.system.errors import InputError, first_line
from toolkit.system.places import expanded

FLAG = "--data-root"


@dataclass(frozen=True)
class OwnSource(Source):
    """A source of the user's own, called `name`: whatever it raises becomes one line, and what it reads is checked."""

    name: str
    source: Any

    @property
    def module(self) -> str:
        """The module that defines it."""
        return self.source.__name__ if isinstance(self.source, ModuleType) else type(self.source).__module__

    def recognizes(self, data_root: str) -> bool:
        return bool(self._asked(data_root, "recognizes", lambda: self.source.recognizes(data_root)))

    def read(self, data_root: str, options: SourceOptions) -> Found | Mapping[str, Any]:
        found = self._asked(data_root, "read", lambda: self.source.read(data_root, options))
        if isinstance(found, Mapping):
            return found
        splits = (found.train, found.val, found.test) if isinstance(found, Found) else (None,)
        if splits[0] is None or not all(isinstance(index, Index | None) for index in splits):
            raise InputError(f"{FLAG} {data_root}: source {self.name!r} must read a toolkit.Found, not {found!r:.80}")
        train, val, test = (index and _with_sizes(index, options) for index in splits)
        assert train is not None
        return check_splits(Found(train, val, test, found.classes, found.name), f"{FLAG} {data_root}")

    def _asked(self, data_root: str, what: str, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except InputError:
            raise
        except Exception as error:  # a user's code raises any type of exception
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise InputError(f"{FLAG} {data_root}: {what} of source {self.name!r} failed: {reason}") from error


def own_sources() -> Iterator[OwnSource]:
    """Those that were registered from outside the package, in that order."""
    for name, entry in TABLES["source"].items():
        if not _is_ours(entry):
            made = look_up("source", FLAG, name)
            made = made() if isinstance(made, type) else made
            if not (callable(getattr(made, "recognizes", None)) and callable(getattr(made, "read", None))):
                raise InputError(f"{FLAG}: source {name!r} needs recognizes(data_root) and read(data_root, options)")
            yield OwnSource(name, made)


def own_source(data_root: str) -> OwnSource | None:
    """The first source of the user's own that recognizes the data root; None if there is none."""
    return next((source for source in own_sources() if source.recognizes(data_root)), None)


def find_source(data_root: str | Path) -> Source | None:
    """The source that reads a data root; of a `Path`, which is never a URL or a reserved name, that of the folder.

    None if there is no such folder, or it is not complete. Raises OSError where a folder cannot be entered.
    """
    root = str(expanded(data_root).absolute()) if isinstance(data_root, Path) else data_root
    if own := own_source(root):
        return own
    ours = (look_up("source", FLAG, name)() for name, entry in TABLES["source"].items() if _is_ours(entry))
    return next((source for source in ours if source.recognizes(root)), None)


def _is_ours(entry: Any) -> bool:
    return isinstance(entry, str) and entry.startswith("toolkit.")


def _with_sizes(index: Index, options: SourceOptions) -> Index:
    """The index with the sizes of its images, which `Index.of_files` leaves open."""
    if index.items is not None or index.width.any() or (index.container != ALONE).any():
        return index
    read = index_files(Path(index.root), [*index.names], index.labels.tolist(), options.cache)
    return replace(read, labels=index.labels)
