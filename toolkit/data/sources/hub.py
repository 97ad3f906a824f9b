"""Hugging Face datasets, from a local folder or by name on the hub; images stay in the files that `datasets` keeps.

`datasets` stores encoded images uncompressed in Arrow files, so each image is a part of such a file, read by offset. A
data set of image files is indexed as single files.
"""

import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from toolkit.config.data_roots import HUB
from toolkit.data.sources.base import Source, SourceOptions
from toolkit.data.sources.containers import Container, Contents, Part, file_version, index_containers, read_size
from toolkit.data.sources.files import index_files
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


class Columns(NamedTuple):
    """Names of the image and label columns; `classes`: names of the classes, None if the data set has none."""

    image: str
    label: str
    classes: Sequence[str] | None


class HubSource(Source):
    """`hf:NAME`."""

    def recognizes(self, data_root: str) -> bool:
        return data_root.startswith(HUB)

    def read(self, data_root: str, options: SourceOptions) -> Found:
        return read_hub(data_root.removeprefix(HUB), options.cache, options.label_column, options.hf_config)


def read_hub(name: str, cache: Path, label_column: str | None = None, config: str | None = None) -> Found:
    """The index of each split; raises InputError naming the data set and its fault."""
    loaded = _load(name, cache, config)
    present = [[key for key in names if key in loaded] for names in NAMES.values()]
    for keys in present:
        check_single(f"hf:{name}", keys)
    splits = [loaded[keys[0]] if keys else None for keys in present]
    if splits[0] is None:
        raise InputError(f"hf:{name}: has no split train; it has {', '.join(map(str, loaded))}")
    columns = _columns(name, splits[0], label_column)
    train, val, test = (_read_split(name, split, columns, cache) if split is not None else None for split in splits)
    assert train is not None
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


def _columns(name: str, split: Any, label_column: str | None) -> Columns:
    features = split.features
    kinds = {column: type(feature).__name__ for column, feature in features.items()}
    has = ", ".join(f"{column}: {kind}" for column, kind in kinds.items())
    images = [column for column in kinds if kinds[column] == "Image"]
    image = "image" if "image" in images else images[0] if len(images) == 1 else None
    if image is None:
        raise InputError(f"hf:{name}: needs one column of kind Image, or one named 'image'; it has {has}")
    whole = [column for column in kinds if str(getattr(features[column], "dtype", "")).startswith(("int", "uint"))]
    named = [column for column in kinds if kinds[column] == "ClassLabel"]  # whole numbers too
    usual = "label" if "label" in whole else None
    label = label_column or ("label" if "label" in named else named[0] if len(named) == 1 else usual)
    if label is None:
        choices = f"--label-column takes one of {', '.join(named or whole)}; " if named or whole else ""
        raise InputError(f"hf:{name}: needs one column of kind ClassLabel, or one named 'label'; {choices}it has {has}")
    if label not in whole:
        raise InputError(f"hf:{name}: --label-column {label}: no column of whole numbers; it has {has}")
    return Columns(image, label, getattr(features[label], "names", None))


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
            fields=f"{columns.image}, {columns.label}",
        )
    _verify(index, split, columns, where)
    return index


def _index_files(split: Any, columns: Columns, cache: Path, where: str) -> Index:
    paths = [row and row["path"] for row in split.data.column(columns.image).to_pylist()]
    labels = split.data.column(columns.label).to_pylist()
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
        missing = batch.column(columns.image).field("bytes").null_count or batch.column(columns.label).null_count
        if missing:
            raise InputError(f"{where}: of rows {row} to {row + len(batch) - 1} {missing} have no bytes or no label")
        spans = _spans(batch, columns.image, content)
        for offset, end, label in zip(spans[:-1], spans[1:], batch.column(columns.label).to_pylist(), strict=True):
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
        if not same or int(index.labels[i]) != row[columns.label]:
            raise InputError(f"{where}: row {i} is not where it should be in {index.place(i).path}")
