"""Tar shards in WebDataset layout, local or at a URL: `root/train/*.tar` or `root/train*.tar`, same for val and test.

A sample is an image and its label: members with the same path up to the last dot of the file name, such as 0001.jpg and
0001.cls (a whole number), or 0001.json with a whole number as "label". A member that shares only the part up to the
first dot with a sample (0001.seg.png) is a further field of the sample, as in WebDataset, and is not used. Nothing is
extracted to disk.
"""

import functools
import io
import itertools
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from toolkit.config.data_roots import is_url
from toolkit.data.sources.base import Source, SourceOptions
from toolkit.data.sources.containers import Container, Contents, Part, file_version, index_containers, read_size
from toolkit.data.sources.index import Found
from toolkit.data.sources.labels import CLASS_NAMES, check_known, count_classes, named, parse_label
from toolkit.data.sources.layouts import NAMES, check_single, find_layout, spellings, split_of
from toolkit.data.sources.listing import EXTENSIONS, is_image
from toolkit.data.sources.remote import BlockCache, RemoteFile, listed
from toolkit.system import storage
from toolkit.system.errors import InputError
from toolkit.system.places import expanded
from toolkit.system.stored import FileVersion
from toolkit.system.stores import query
from toolkit.system.system_files import is_system

SUFFIX = ".tar"
BLOCK = tarfile.BLOCKSIZE
BUFFER = 2**16  # bytes read at a time from a remote shard's blocks


class UrlSource(Source):
    """Shards in a bucket."""

    def recognizes(self, data_root: str) -> bool:
        return is_url(data_root)

    def read(self, data_root: str, options: SourceOptions) -> Found:
        return read_shards(data_root, options.cache, options.cache_bytes)


class ShardSource(Source):
    """A folder with `train/*.tar` or `train*.tar`; tars beside or among class folders are what they were made from."""

    def recognizes(self, data_root: str) -> bool:
        layout = find_layout(expanded(data_root))
        return layout is not None and layout.kind == "shards"

    def read(self, data_root: str, options: SourceOptions) -> Found:
        return read_shards(str(expanded(data_root)), options.cache, options.cache_bytes)


def find_shards(root: str) -> list[list[Container]]:
    """The shards of train, validation and test: in a folder of that name, else in `root` with that prefix.

    Where none begins with train, one that has the word anywhere: imagenet1k-train-0000.tar.
    """
    top = _listing(root)
    beside = _tars(root, "", top)
    plain = any(shard.name.startswith(NAMES["train"]) for shard in beside)
    found = []
    for split, names in NAMES.items():
        folders = spellings(split, [name for name, version in top.items() if version is None])
        check_single(root, folders)
        inside = _tars(root, f"{folders[0]}/", _listing(f"{root}/{folders[0]}")) if folders else []
        own = [shard for shard in beside if shard.name.startswith(names)]
        if not inside:  # both `val` and `valid` are prefixes of `valid-0.tar`
            check_single(root, sorted({max(filter(shard.name.startswith, names), key=len) for shard in own}))
        if not (own or plain):
            own = [shard for shard in beside if (split_of(shard.name) or ("",))[0] == split]
        found.append(inside or own)
    return found


def _tars(root: str, prefix: str, listing: dict[str, FileVersion | None]) -> list[Container]:
    return [
        Container(prefix + name, f"{root}/{prefix}{name}", version)
        for name, version in sorted(listing.items())
        if version is not None and name.endswith(SUFFIX) and not is_system(name)
    ]


def _listing(folder: str) -> dict[str, FileVersion | None]:
    """Entries of a folder, by name; None marks a sub-folder."""
    if is_url(folder):
        return listed(folder)
    with os.scandir(folder) as entries:
        return {entry.name: None if entry.is_dir() else file_version(entry.path) for entry in entries}


def read_shards(root: str, cache: Path, cache_bytes: int) -> Found:
    """The index of each split; raises InputError naming the shard and member at fault."""
    root = root.rstrip("/")
    found = find_shards(root)
    if not found[0]:
        raise InputError(f"--data-root {root}: no such folder or bucket, or neither train*.tar nor train/*.tar in it")
    blocks = None
    if is_url(root):
        blocks = BlockCache(cache, cache_bytes, {shard.path: shard.version for shard in itertools.chain(*found)})
        _check_fits(blocks)
    read = functools.partial(_read_shard, blocks)
    train, val, test = (
        index_containers(root, shards, read, cache, blocks, split=split) if shards else None
        for split, shards in zip(NAMES, found, strict=True)
    )
    assert train is not None
    count = count_classes(train, f"{root}: train shards")
    for split in (val, test):
        if split is not None:
            check_known(split, count, root)
    return Found(train, val, test, _class_names(root, count))


def _check_fits(blocks: BlockCache) -> None:
    url, largest = max(((url, version.size) for url, version in blocks.files.items()), key=lambda item: item[1])
    if largest > blocks.bound:
        raise InputError(
            f"--cache-gb {blocks.bound / 1e9:g}: {url} has {largest / 1e9:.3g} GB and would be fetched over and over: "
            "give at least twice the size of the largest shard, or make smaller shards"
        )


def _class_names(root: str, count: int) -> Sequence[str]:
    path = f"{root}/{CLASS_NAMES}"
    try:
        content = query(path, lambda files, name: files.cat_file(name)) if is_url(root) else Path(path).read_bytes()
    except FileNotFoundError:
        content = None
    return named(content, count, path)


def _read_shard(blocks: BlockCache | None, shard: Container) -> Contents:
    """The samples of one shard, in order."""
    if blocks is None:
        with open(shard.path, "rb") as stream:
            return _read_tar(stream, shard)
    return _read_tar(io.BufferedReader(RemoteFile(blocks, shard.path), BUFFER), shard)


def _read_tar(stream: IO[bytes], shard: Container) -> Contents:
    system: list[str] = []
    images: dict[str, tuple[str, int, int, int, int, int]] = {}
    labels: dict[str, dict[str, int]] = {}
    for member, content in _members(stream, shard):
        folder, _, base = member.name.rpartition("/")
        key, _, ending = base.rpartition(".")
        where, ending, sample = f"{shard.path}: {member.name}", ending.lower(), f"{folder}/{key}"
        if any(is_system(part) for part in member.name.split("/") if part != "."):
            system.append(member.name)
            continue
        if is_image(base):
            if sample in images:
                raise InputError(f"{where}: a second image of the same sample, beside {images[sample][0]}")
            name = f"{shard.name}/{member.name}"
            # Read remote content first, so that a storage failure is not taken for an unreadable image.
            image = io.BytesIO(content.read()) if is_url(shard.path) else content
            images[sample] = (name, member.offset_data, member.size, *read_size(image))
        elif ending in ("cls", "json"):
            label = _label(content.read(), ending, where)
            if ending in labels.setdefault(sample, {}):
                raise InputError(f"{where}: a second label of the same sample")
            if label is not None:
                labels[sample][ending] = label
    parts = list(_paired(images, labels, shard))
    if not parts:
        raise InputError(f"{shard.path}: no image in it ({', '.join(sorted(EXTENSIONS))})")
    return Contents(parts, system)


def _paired(
    images: dict[str, tuple[str, int, int, int, int, int]], labels: dict[str, dict[str, int]], shard: Container
) -> Iterator[Part]:
    """Samples in the order of their images; of two labels, .cls takes precedence."""

    def is_further(sample: str) -> bool:
        folder, _, key = sample.rpartition("/")
        return "." in key and f"{folder}/{key.partition('.')[0]}" in images

    for sample, (name, offset, length, *size) in images.items():
        known = labels.pop(sample, {})
        label = known.get("cls", known.get("json"))
        if label is not None:
            yield Part(name, offset, length, label, *size)
        elif not is_further(sample):
            raise InputError(
                f'{shard.path}: {name.removeprefix(shard.name + "/")} has no label: no .cls, and no .json with "label"'
            )
    alone = next((sample for sample, known in labels.items() if known and not is_further(sample)), None)
    if alone is not None:
        raise InputError(
            f"{shard.path}: {alone.lstrip('/')} has a label, but no image ({', '.join(sorted(EXTENSIONS))})"
        )


def _label(content: bytes, ending: str, where: str) -> int | None:
    """The label in a .cls or .json member; None for JSON without "label"."""
    if ending == "cls":
        return parse_label(content.decode("utf-8", "replace").strip(), where)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON: {error}") from None
    if not isinstance(value, dict) or "label" not in value:
        return None
    return parse_label(str(value["label"]) if type(value["label"]) is int else repr(value["label"]), where)


def _pieces(stream: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: stream.read(BUFFER), b"")


def _members(stream: IO[bytes], shard: Container) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """The files in a tar; raises InputError if the tar is damaged, or a name is absolute or contains `..`."""
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                if member.name.startswith("/") or ".." in member.name.split("/"):
                    raise InputError(f"{shard.path}: {member.name}: an absolute name, or one with '..', is refused")
                if member.isreg() and not member.issparse():
                    content = tar.extractfile(member)  # a part of the stream: nothing is written
                    assert content is not None
                    yield member, content
            end = tar.offset
        stream.seek(end)
        marked = stream.read(BLOCK) == bytes(BLOCK) and not any(piece.strip(b"\0") for piece in _pieces(stream))
    except tarfile.TarError as error:
        raise InputError(f"{shard.path}: not a whole uncompressed tar: {error}") from None
    except OSError as error:
        raise InputError(f"{shard.path}: {storage.explain(error, shard.path)}") from None
    if not marked:  # tarfile itself treats damage after the first member as the end
        raise InputError(f"{shard.path}: truncated or damaged at byte {end}, where a member or the end should be")
