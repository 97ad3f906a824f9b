"""Indexes as files that are mapped into memory, so that the processes of a machine share one copy.

Layout: START; the header's length and CRC-32, 8 bytes each, little-endian; the header, JSON; then each array at a
multiple of ALIGN bytes.
"""

import functools
import json
import logging
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.config.data_roots import is_url
from toolkit.data.sources.index import COLUMNS, Index, Names
from toolkit.system import files
from toolkit.system.errors import InputError, first_line
from toolkit.system.locks import locked
from toolkit.system.stores import query

log = logging.getLogger(__name__)

START, ALIGN = b"toolkit index 2\n", 64
INDEX_NAME = "toolkit-{}.index"  # beside the data; of a split
UNFIT = ".unfit"  # marks in the cache that the index beside the data does not fit


@dataclass(frozen=True)
class Table:
    """What a file holds; `about`: what it was made from, and what is to be told of it."""

    about: Mapping[str, Any]
    columns: Mapping[str, Any]

    @property
    def names(self) -> Names:
        return Names(self.columns["blob"], self.columns["ends"])


def columns_of(index: Index) -> dict[str, np.ndarray]:
    return {"blob": index.names.blob, "ends": index.names.ends, **{name: getattr(index, name) for name in COLUMNS}}


def write(path: Path, columns: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Write a file atomically; the caller holds its lock."""
    described, end, crc = {}, 0, 0
    for name, array in columns.items():
        end = _aligned(end)
        described[name] = (array.dtype.str, array.shape, end)
        crc, end = zlib.crc32(np.ascontiguousarray(array).data, crc), end + array.nbytes
    for unfinished in path.parent.glob(f".tmp-*-{path.name}"):  # by a process that was killed
        unfinished.unlink(missing_ok=True)
    header = json.dumps({"about": about, "columns": described, "bytes": end, "crc32": crc}).encode()
    with files.replacing(path) as staging, staging.open("wb") as stream:
        stream.write(START + b"".join(number.to_bytes(8, "little") for number in (len(header), zlib.crc32(header))))
        stream.write(header)
        begin = _aligned(stream.tell())
        for name, array in columns.items():
            stream.seek(begin + described[name][2])
            stream.write(np.ascontiguousarray(array).data)
        stream.truncate(begin + end)


def _aligned(place: int) -> int:
    return -(-place // ALIGN) * ALIGN


def read(path: Path, whole: bool = False) -> Table:
    """Map a file into memory; raises ValueError if it is damaged, with `whole` also if the arrays are (CRC-32)."""
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    if raw[: len(START)].tobytes() != START:
        raise ValueError("not an index of this version")
    first = len(START) + 16
    length, header_crc = (int.from_bytes(raw[i : i + 8].tobytes(), "little") for i in (len(START), len(START) + 8))
    text = raw[first : first + length].tobytes()
    if zlib.crc32(text) != header_crc:
        raise ValueError("the CRC-32 of its header is another")
    header = json.loads(text)
    begin, crc = _aligned(first + length), 0
    if len(raw) != begin + header["bytes"]:
        raise ValueError(f"{len(raw)} bytes, not {begin + header['bytes']}")
    columns: dict[str, np.ndarray] = {}
    for name, (kind, shape, place) in header["columns"].items():
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        part = raw[begin + place : begin + place + size]
        crc = zlib.crc32(part.data, crc) if whole else crc
        columns[name] = part.view(np.ndarray).view(kind).reshape(shape)
    if whole and crc != header["crc32"]:
        raise ValueError("its CRC-32 is another")
    return Table(header["about"], columns)


def read_if_valid(path: Path) -> Table | None:
    """The file; None if it is not there, cut short, or of another version."""
    try:
        return read(path)
    except (OSError, ValueError):
        return None


def subset(index: Index, key: str, ids: Callable[[], np.ndarray]) -> Index:
    """The images `ids()` of an index; of one that is a mapped file, in another such file, made once.

    `key`: what `ids` depends on besides the index.
    """
    if index.table is None:
        return index.take(ids())
    path = index.table.with_name(f"{index.table.stem}-{files.key(key, str(index.labels.shape))}.index")
    with locked(f"{path}.lock"):
        if (table := read_if_valid(path)) is None:
            write(path, columns_of(index.take(ids())), {})
            table = read(path)
    return replace(index, names=table.names, table=path, **{name: table.columns[name] for name in COLUMNS})


def fetch_index(root: str, split: str, made_from: Sequence[Any], path: Path) -> bool:
    """Bring the index beside the data, if there is one that was made from these files, to `path`.

    One that does not fit leaves a mark, so that the other processes of this machine do not fetch it too.
    """
    place, mark = f"{root}/{INDEX_NAME.format(split)}", path.with_suffix(UNFIT)
    if mark.exists():
        return False
    try:
        content = query(place, lambda store, name: store.cat_file(name)) if is_url(root) else Path(place).read_bytes()
        with files.replacing(path) as staging:
            staging.write_bytes(content)
            if read(staging, whole=True).about.get("made_from") != json.loads(json.dumps(made_from)):
                raise ValueError("the data has changed since, or other image formats can be read here")
    except FileNotFoundError:
        return False
    except (PermissionError, InputError, ValueError) as error:
        fault = first_line(error).removeprefix(f"{place}: ")
        log.warning("%s: %s, so the data is read instead: toolkit scan --write-index renews it", place, fault)
        mark.touch()
        return False
    return True


def _put(path: Path, store: Any, name: str) -> None:
    store.put_file(str(path), name)


def write_beside(data_root: str, splits: Mapping[str, Index]) -> list[str]:
    """Write the index of each split beside the data; returns their places. Raises InputError if it is no shards."""
    if not all(index.table and all(place.endswith(".tar") for place in index.containers) for index in splits.values()):
        raise InputError(f"--write-index needs tar shards, which {data_root} does not hold")
    places = []
    for split, index in splits.items():
        assert index.table is not None
        try:
            read(index.table, whole=True)
        except ValueError as error:
            raise InputError(f"{index.table}: damaged ({error}): delete it, and scan again") from None
        place = f"{index.root}/{INDEX_NAME.format(split)}"
        if is_url(place):
            query(place, functools.partial(_put, index.table))
        else:
            with files.replacing(Path(place)) as staging:
                shutil.copyfile(index.table, staging)
        places.append(place)
    return places
