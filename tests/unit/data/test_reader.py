"""Pixels from memory are those from the file."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import index_of, paths_of, write_image
from toolkit.data.images.decode import Box
from toolkit.data.loading.reader import ImageReader
from toolkit.data.sources import files
from toolkit.data.sources.index import Index
from toolkit.system.errors import BadSampleError, LoaderError


@pytest.fixture
def index(tmp_path: Path) -> Index:
    names = [f"{i}.png" for i in range(6)]
    for i, name in enumerate(names):
        write_image(tmp_path / name, (20 + i, 30), seed=i)
    return index_of(tmp_path, names, [0, 1] * 3)


def test_an_image_comes_from_memory_when_it_was_met_before(index: Index):
    remembering, plain = ImageReader(index, remember=True), ImageReader(index)
    for source in (remembering, plain):
        first = source.whole(2).copy()
        assert np.array_equal(first, ImageReader(index).whole(2))
    paths_of(index)[2].unlink()
    assert np.array_equal(remembering.whole(2), first)
    assert np.array_equal(remembering.crop(2, Box(3, 4, 15, 10), 8), remembering.crop(2, Box(3, 4, 15, 10), 8))
    with pytest.raises(BadSampleError, match=r"2\.png: cannot be read as an image: No such file"):
        plain.whole(2)


def test_memory_takes_what_was_promised_when_it_is_full(index: Index):
    assert index.decoded_bytes == 3 * 30 * sum(20 + i for i in range(6))


def test_a_file_is_refused_when_it_changed_since_it_was_indexed(index: Index):
    write_image(paths_of(index)[1], (10, 10))
    for remember in (False, True):
        source = ImageReader(index, remember)
        with pytest.raises(BadSampleError, match=r"1\.png.*is now 10 x 10 px"):
            source.whole(1)
        with pytest.raises(BadSampleError, match=r"1\.png.*is now 10 x 10 px"):
            source.crop(1, Box(0, 0, 20, 20), 8)


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EIO, LoaderError), (errno.EMFILE, LoaderError), (errno.EACCES, BadSampleError)]
)
def test_an_image_is_not_to_blame_when_its_storage_fails(index: Index, monkeypatch, number: int, kind):
    def fails(*words: object) -> int:
        raise OSError(number, os.strerror(number))

    pixels = ImageReader(index)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fails)
        with pytest.raises(kind, match=os.strerror(number)):
            pixels.whole(1)
    assert pixels.whole(1).shape == (30, 21, 3)  # control


def test_a_header_is_read_again_when_storage_failed_at_the_first_time(tmp_path: Path, monkeypatch):
    def fails(*words: object) -> None:
        raise OSError(errno.EIO, "storage fails")

    write_image(tmp_path / "a.png", (20, 30))
    (tmp_path / "b.png").write_bytes(b"no image")
    with monkeypatch.context() as patch:
        patch.setattr(files, "open", fails, raising=False)
        assert index_of(tmp_path, ["a.png", "b.png"], [0, 1]).unreadable().tolist() == [0, 1]
    assert index_of(tmp_path, ["a.png", "b.png"], [0, 1]).unreadable().tolist() == [1]
    with monkeypatch.context() as patch:
        patch.setattr(files, "open", fails, raising=False)  # what is known is not read again
        assert index_of(tmp_path, ["a.png", "b.png"], [0, 1]).unreadable().tolist() == [1]
