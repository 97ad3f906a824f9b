"""Pixels from memory are those from the file."""

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import index_of, paths_of, write_image
from toolkit.data.decode import Box
from toolkit.data.index import Index
from toolkit.data.pixels import Pixels
from toolkit.errors import BadSampleError


@pytest.fixture
def index(tmp_path: Path) -> Index:
    names = [f"{i}.png" for i in range(6)]
    for i, name in enumerate(names):
        write_image(tmp_path / name, (20 + i, 30), seed=i)
    return index_of(tmp_path, names, [0, 1] * 3)


def test_an_image_comes_from_memory_when_it_was_met_before(index: Index):
    remembering, plain = Pixels(index, remember=True), Pixels(index)
    for source in (remembering, plain):
        first = source.whole(2).copy()
        assert np.array_equal(first, Pixels(index).whole(2))
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
        source = Pixels(index, remember)
        with pytest.raises(BadSampleError, match=r"1\.png.*is now 10 x 10 px"):
            source.whole(1)
        with pytest.raises(BadSampleError, match=r"1\.png.*is now 10 x 10 px"):
            source.crop(1, Box(0, 0, 20, 20), 8)
