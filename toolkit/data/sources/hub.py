"""Hugging Face datasets, from a local folder or by name on the hub; images stay in the files that `datasets` keeps.

`datasets` stores encoded images uncompressed in Arrow files, so each image is a part of such a file, read by offset. A
data set of image files is indexed as single files.
"""

import io
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.config.data_roots import HUB
from toolkit.data.sources.base import Source, SourceOptions
from toolkit.data.sources.containers import Container, Contents, Part, file_version, index_containers, read_size
from toolkit.data.sources.files import index_files
from toolkit.data.sources.hub_columns import Columns, classes_of, find_columns, is_secret, label_rows
from toolkit.data.sources.index import Found, Index
from toolkit.data.sources.labels import MOST_CLASSES, check_range, count_classes
from toolkit.data.sources.layouts import NAMES, check_single
from toolkit.data.sources.read import read_bytes
from toolkit.system import files
from toolkit.system.errors import InputError, first_line
from toolkit.system.locks import locked
from toolkit.system.places import expanded

log = logging.getLogger(__name__)

PROBES = (0, 0.5, 1)  # rows of each split, as fractions of its length, that are compared with those of `datasets`


class HubSource(Source):
    """`hf:NAME`."""

    def recognizes(self, data_root: str) -> bool:
        return data_root.startswith(HUB)

    def read(self, data_root: str, options: SourceOptions) -> Found:
        name = data_root.removeprefix(HUB)
        return read_hub(name, options.cache, options.label_column, options.hf_config, options.several_labels)


def read_hub(
    name: str, cache: Path, label_column: str | None = None, config: str | None = None, several: bool = False
) -> Found:
    """The index of each split; raises InputError naming the data set and its fault.

    `several`: an image has any number of classes.
    """
    loaded = _load(name, cache, config)
    present = [[key for key in names if key in loaded] for names in NAMES.values()]
    for keys in present:
        check_single(f"hf:{name}", keys)
    splits = [loaded[keys[0]] if keys else None for keys in present]
    if splits[0] is None:
        raise InputError(f"hf:{name}: has no split train; it has {', '.join(map(str, loaded))}")
    columns = find_columns(f"hf:{name}", splits[0].features, label_column, several)
    train, val, test = (_read_split(name, split, columns, cache) if split is not None else None for split in splits)
    assert train is not None
    if columns.label is None:
        return _with_several(name, splits, columns, Found(train, val, test, ()))
    if test is not None and (test.labels == -1).all():  # the hub's convention for secret test labels
        log.info("data      hf:%s: the labels of its split test are secret: it is left out", name)
        test = None
    _check_rows(train, None, f"hf:{name}: train")
    count = count_classes(train, f"hf:{name}: train")
    for keys, split in zip(present[1:], (val, test), strict=True):
        if split is not None:
            _check_rows(split, count, f"hf:{name}: {keys[0]}")
    classes = columns.classes or tuple(map(str, range(count)))
    if count > len(classes):
        raise InputError(f"hf:{name}: labels of train are 0 to {count - 1}, but only {len(classes)} classes have names")
    if count < len(classes):
        raise InputError(f"hf:{name}: no image of class {classes[count]!r} in train")
    return Found(train, val, test, tuple(classes))


def _with_several(name: str, splits: list[Any], columns: Columns, found: Found) -> Found:
    """The index of each split with rows of C zeros and ones for labels."""
    where = [f"hf:{name}: {split.split}" if split is not None else "" for split in splits]
    classes = classes_of(splits[0], columns, where[0])
    if splits[2] is not None and is_secret(splits[2], columns, where[2]):
        log.info("data      hf:%s: no image of its split test has a label: it is left out", name)
        splits, found = [*splits[:2], None], found._replace(test=None)
    train, val, test = (
        index and replace(index, labels=label_rows(split, columns, classes, place), table=None)
        for index, split, place in zip(found[:3], splits, where, strict=True)
    )
    assert train is not None
    return Found(train, val, test, classes)


def _check_rows(split: Index, classes: int | None, where: str) -> None:
    """Raise InputError naming the first row whose label is out of range; `classes` as in `check_range`."""
    strange = np.flatnonzero((split.labels < 0) | (split.labels >= (MOST_CLASSES if classes is None else classes)))
    if len(strange):
        check_range(int(split.labels[strange[0]]), classes, f"{where}, row {strange[0]}")


def _load(name: str, cache: Path, config: str | None) -> Any:
    """The splits as `datasets` loads them, from disk."""
    try:
        import datasets
    except ImportError:
        raise InputError(f"hf:{name}: needs a package that is not installed: pip install datasets") from None
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    folder = expanded(name)
    place = str(folder) if folder.is_dir() else name
    try:
        return datasets.load_dataset(place, config, cache_dir=str(cache / "hub"))
    except Exception as error:  # a loader, its files and the network raise errors of any kind
        reason = first_line(error)
        if (choices := _configs(place)) and config not in choices:
            raise InputError(
                f"hf:{name}: has several configurations: --hf-config takes one of {', '.join(choices)}"
            ) from None
        raise InputError(f"hf:{name}: cannot be loaded: {reason}") from None


def _configs(place: str) -> list[str]:
    """The configurations of a data set; empty if it has only one, or if that cannot be told."""
    import datasets

    try:
        configs = list(datasets.get_dataset_config_names(place))
    except Exception:  # as above
        return []
    return configs if len(configs) > 1 else []


def _read_split(name: str, split: Any, columns: Columns, cache: Path) -> Index:
    """The index of a split: rows with paths become single files, rows with bytes become parts of the Arrow files."""
    import datasets

    where = f"hf:{name}: {split.split}"
    split = split.cast_column(columns.image, datasets.Image(decode=False))
    if not len(split) or not split.cache_files:
        raise InputError(f"{where}: has no rows, or `datasets` keeps them in memory, not in files")
    first = next((row[columns.image] for row in split if row[columns.image] is not None), None)
    if first is not None and first["bytes"] is None:
        index = _index_files(split, columns, cache, where)
    else:
        arrows = [_uncompressed(file["filename"], columns.image, cache) for file in split.cache_files]
        containers = [Container(os.path.basename(path), path, file_version(path)) for path in arrows]
        index = index_containers(
            name,
            containers,
            lambda container: Contents(_read_arrow(container, columns, where)),
            cache,
            fields=f"{columns.image}, {columns.label}" if columns.label else columns.image,
        )
    _verify(index, split, columns, where)
    return index


def _index_files(split: Any, columns: Columns, cache: Path, where: str) -> Index:
    paths = [row and row["path"] for row in split.data.column(columns.image).to_pylist()]
    labels = split.data.column(columns.label).to_pylist() if columns.label else [0] * len(paths)
    for what, values in (("path", paths), ("label", labels)):
        if None in values:
            raise InputError(f"{where}: row {values.index(None)} has no {what}")
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    return index_files(Path(root), [os.path.relpath(path, root) for path in paths], labels, cache)


def _mapped(path: str) -> tuple[Any, Iterator[Any]]:
    """The bytes of an Arrow file, mapped into memory, and its batches of rows, which point into these bytes."""
    import pyarrow as pa

    content = pa.memory_map(path).read_buffer()
    return content, (batch for batch in pa.ipc.open_stream(content) if len(batch))


def _spans(batch: Any, image: str, content: Any) -> np.ndarray:
    """Offsets of the N images of a batch in the file, N + 1 values: each image ends where the next one begins.

    The offsets are outside of the file if the batch was compressed.
    """
    encoded = batch.column(image).field("bytes")
    _, ends, data = encoded.buffers()
    kind = np.int64 if str(encoded.type).startswith("large") else np.int32
    offsets = np.frombuffer(ends, dtype=kind)[encoded.offset : encoded.offset + len(encoded) + 1]
    return offsets.astype(np.int64) + (data.address - content.address)


def _uncompressed(path: str, image: str, cache: Path) -> str:
    """The path of the file itself, or of an uncompressed copy, written once, if its images are compressed."""
    import pyarrow as pa

    content, batches = _mapped(path)
    spans = next((_spans(batch, image, content) for batch in batches), None)
    if spans is None or (spans[0] >= 0 and spans[-1] <= content.size):
        return path
    copy = cache / "hub" / f"{files.key(repr((path, file_version(path))))}-{os.path.basename(path)}"
    with locked(f"{copy}.lock"):
        if not copy.exists():
            staging = copy.with_name(f".tmp-{copy.name}")
            packed = pa.ipc.open_stream(content)
            with pa.OSFile(str(staging), "wb") as sink, pa.ipc.new_stream(sink, packed.schema) as writer:
                for batch in packed:
                    writer.write_batch(batch)
            os.replace(staging, copy)
    return str(copy)


def _read_arrow(container: Container, columns: Columns, where: str) -> Iterator[Part]:
    content, batches = _mapped(container.path)
    row = 0
    for batch in batches:
        labels = batch.column(columns.label) if columns.label else None
        missing = batch.column(columns.image).field("bytes").null_count or (
            labels.null_count if labels is not None else 0
        )
        if missing:
            raise InputError(f"{where}: of rows {row} to {row + len(batch) - 1} {missing} have no bytes or no label")
        spans = _spans(batch, columns.image, content)
        told = labels.to_pylist() if labels is not None else [0] * len(batch)
        for offset, end, label in zip(spans[:-1], spans[1:], told, strict=True):
            size = read_size(io.BytesIO(content[offset:end].to_pybytes()))
            yield Part(f"{container.name}/{row}", int(offset), int(end - offset), label, *size)
            row += 1


def _verify(index: Index, split: Any, columns: Columns, where: str) -> None:
    """Compare a few rows with those of `datasets`, because its file layout is not guaranteed."""
    if len(index) != len(split):
        raise InputError(f"{where}: {len(split)} rows, but {len(index)} in its files")
    for i in {round(share * (len(index) - 1)) for share in PROBES}:
        row = split[i]
        encoded, path = row[columns.image]["bytes"], row[columns.image]["path"]
        same = index.place(i).path == path if encoded is None else read_bytes(index, i) == encoded
        if not same or (columns.label and int(index.labels[i]) != row[columns.label]):
            raise InputError(f"{where}: row {i} is not where it should be in {index.place(i).path}")
