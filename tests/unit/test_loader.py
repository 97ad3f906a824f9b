"""Batches come in order, whole and alike for any number of threads."""

import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import write_folders, write_image
from toolkit import InputError, Settings
from toolkit.contract import Step
from toolkit.data.augment import Augmenter
from toolkit.data.index import Index, open_splits
from toolkit.data.loader import AHEAD, in_order, load_eval, load_train
from toolkit.data.sampler import Request


def request_of(ids: list[int], sizes: tuple[int, ...] = (16, 20), epoch: int = 0) -> Request:
    return Request(np.array(ids), Step(sizes, len(ids)), 7, epoch, 1.0)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return open_splits(Settings(data_root=str(write_folders(tmp_path, {"train": 8, "val": 1}))), 32).train


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_keep_their_order_when_later_ones_are_ready_first(threads: int):
    def slow_first(i: int) -> int:
        time.sleep(0.02 if i % 4 == 0 else 0)
        return i * i

    assert list(in_order(range(20), slow_first, threads)) == [i * i for i in range(20)]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_an_error_comes_out_in_its_place_when_one_load_fails(threads: int):
    def load(i: int) -> int:
        if i == 5:
            raise InputError("photo 5 is broken")
        return i

    results = in_order(range(20), load, threads)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match="photo 5 is broken"):
        next(results)


def test_work_stays_a_few_batches_ahead_when_nobody_takes_them():
    started = []
    results = in_order(range(1000), lambda i: started.append(i), 2)
    next(results)
    time.sleep(0.1)
    assert len(started) <= 2 + AHEAD + 1
    results.close()


def test_no_thread_is_left_when_the_reader_stops_early():
    before = threading.active_count()
    results = in_order(range(1000), lambda i: i, 3)
    next(results)
    assert threading.active_count() > before  # control
    results.close()
    assert threading.active_count() == before


def test_nothing_is_delivered_when_nothing_is_requested():
    assert list(in_order([], lambda i: i, 2)) == []


def test_batches_are_the_same_when_threads_differ(index: Index):
    load = partial(load_train, index, Augmenter(0.35, True, 0))
    requests = [request_of([i, (i + 3) % 16], epoch=i % 3) for i in range(12)]
    for alone, together in zip(in_order(requests, load, 0), in_order(requests, load, 3), strict=True):
        assert torch.equal(alone.images, together.images)
        assert torch.equal(alone.targets, together.targets)
        assert alone.ids.tolist() == together.ids.tolist()


def test_a_training_batch_is_bytes_at_the_largest_size_when_a_step_has_several(index: Index):
    batch = load_train(index, Augmenter(0.35, True, 0), request_of([3, 12, 5]))
    assert batch.images.dtype == torch.uint8
    assert tuple(batch.images.shape) == (3, 3, 20, 20)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.targets.tolist() == [0, 1, 0]
    assert (batch.ids.tolist(), batch.step.sizes, batch.number) == ([3, 12, 5], (16, 20), 7)


def test_an_image_is_augmented_alike_when_its_neighbours_differ(index: Index):
    load = partial(load_train, index, Augmenter(0.35, True, 0))
    alone, among = load(request_of([5])), load(request_of([1, 5, 9]))
    assert torch.equal(alone.images[0], among.images[1])
    assert not torch.equal(alone.images[0], load(request_of([5], epoch=1)).images[0])  # control


def test_an_image_is_mirrored_when_the_draw_says_so(index: Index):
    plain, mirroring = (Augmenter(1.0, hflip, 0) for hflip in (False, True))
    flags = [mirroring.draw(0, sample, 24, 24, 1.0)[1] for sample in range(8)]
    assert len(set(flags)) == 2
    straight, turned = (load_train(index, who, request_of(list(range(8)))).images for who in (plain, mirroring))
    for image, other, mirror in zip(straight, turned, flags, strict=True):
        assert torch.equal(other, image.flip(-1) if mirror else image)


def test_evaluation_sees_the_middle_of_the_original_when_an_image_is_not_square(tmp_path: Path):
    path = write_image(tmp_path / "wide.png", (60, 40))
    index = Index((path,), np.array([1]))
    batch = load_eval(index, (16, 40), np.array([0]))
    middle = Image.open(path).crop((10, 0, 50, 40))
    assert np.array_equal(batch.images[40][0].permute(1, 2, 0).numpy(), np.array(middle))
    small = np.array(middle.resize((16, 16), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(batch.images[16][0].permute(1, 2, 0).numpy().astype(int) - small).max() <= 1


def test_an_evaluation_size_is_the_same_when_others_are_asked_for_too(index: Index):
    ids = np.arange(4)
    alone, among = load_eval(index, (8,), ids), load_eval(index, (8, 16, 24), ids)
    assert torch.equal(alone.images[8], among.images[8])
    assert among.targets.tolist() == [0, 0, 0, 0]


def test_a_broken_file_is_named_when_a_thread_reads_it(index: Index):
    index.paths[6].write_bytes(b"no image")
    load = partial(load_train, index, Augmenter(0.35, True, 0))
    with pytest.raises(InputError, match=r"cat/6\.png: cannot be read as an image"):
        list(in_order([request_of([i]) for i in range(8)], load, 2))
