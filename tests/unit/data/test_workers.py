"""Batches come in order, whole and alike for any number of threads or processes."""

import os
import signal
import threading
import time
from dataclasses import dataclass, replace
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from tests.conftest import index_of, paths_of, write_folders, write_image
from toolkit import InputError, Settings
from toolkit.data.images.augment import Augmenter
from toolkit.data.images.mixing import Mixer
from toolkit.data.loading.batches import EvalBatchBuilder, TrainBatchBuilder, load
from toolkit.data.loading.reader import ImageReader
from toolkit.data.loading.sampler import BatchSpec
from toolkit.data.loading.workers import AHEAD, PIECE, by_processes, by_threads
from toolkit.data.sources.index import Index
from toolkit.data.sources.splits import open_splits
from toolkit.strategies.base import Step
from toolkit.system.errors import BadSampleError, LoaderError

PATIENCE_S = 60
PLAIN, NO_MIX = Augmenter(0.35, True, 0), Mixer(0, 0, 0)


def request_of(ids: list[int], sizes: tuple[int, ...] = (16, 20), epoch: int = 0) -> BatchSpec:
    return BatchSpec(np.array(ids), Step(sizes, len(ids)), 7, epoch, 1.0)


def job_of(index: Index, augmenter: Augmenter = PLAIN, **options: Any) -> TrainBatchBuilder:
    return TrainBatchBuilder(ImageReader(index), augmenter, NO_MIX, **options)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return open_splits(Settings(data_root=str(write_folders(tmp_path, {"train": 8, "val": 1}))), 32).train


@dataclass
class Squares:
    """A job of numbers, three slots each, that takes its time at every fourth."""

    fails_at: int = -1
    hangs_at: int = -1

    def open(self, spec: int) -> tuple[int, list[int]]:
        return 3 * PIECE, []

    def fill(self, spec: int, memory: list[int], slots: range) -> None:
        if spec == self.fails_at:
            raise InputError(f"photo {spec} is broken")
        time.sleep(1000 if spec == self.hangs_at else 0.01 if spec % 4 == 0 else 0)
        memory += [spec * spec] * len(slots)

    def close(self, spec: int, memory: list[int]) -> list[int]:
        return memory


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_keep_their_order_when_later_ones_are_ready_first(threads: int):
    found = list(by_threads(range(20), Squares(), threads, PATIENCE_S))
    assert found == [[i * i] * 3 * PIECE for i in range(20)]


def test_results_keep_their_order_when_processes_make_them():
    found = list(by_processes(range(20), Squares(), 2, PATIENCE_S))
    assert found == [[i * i] * 3 * PIECE for i in range(20)]


@pytest.mark.parametrize("load_by", [by_threads, by_processes])
def test_an_error_comes_out_in_its_place_when_one_load_fails(load_by):
    results = load_by(range(20), Squares(fails_at=5), 2, PATIENCE_S)
    assert [next(results)[0] for _ in range(5)] == [0, 1, 4, 9, 16]
    with pytest.raises(InputError, match="photo 5 is broken"):
        next(results)


@pytest.mark.parametrize(
    ("load_by", "who"), [pytest.param(by_threads, "thread", marks=pytest.mark.slow), (by_processes, "process")]
)
def test_a_run_ends_in_time_with_one_line_when_a_worker_hangs(load_by, who: str):
    started = time.monotonic()
    with pytest.raises(LoaderError, match=f"a loader {who} gave nothing for 1 s.*--loader-timeout-s"):
        list(load_by(range(20), Squares(hangs_at=3), 2, 1.0))
    assert time.monotonic() - started < 30


@dataclass
class Killed(Squares):
    def fill(self, spec: int, memory: list[int], slots: range) -> None:
        if spec == 3:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_ends_in_time_with_one_line_when_a_worker_is_killed():
    with pytest.raises(LoaderError, match="a loader process died"):
        list(by_processes(range(20), Killed(), 2, PATIENCE_S))


@dataclass
class KilledAtItsEnd(Squares):
    def open(self, spec: int) -> tuple[int, list[int]]:
        Finalize(None, os.kill, (os.getpid(), signal.SIGKILL), exitpriority=0)  # runs as the worker exits
        return super().open(spec)


def test_nothing_is_raised_when_a_worker_is_killed_while_all_are_stopped():
    results = by_processes(range(20), KilledAtItsEnd(), 2, PATIENCE_S)
    assert len(next(results)) == 3 * PIECE
    results.close()  # what torch raises here becomes a warning, and warnings fail tests


class HalfABatch:
    """What is read when the process that sends it is gone: to unpickle it fails."""

    def __reduce__(self) -> Any:
        return fail, (ConnectionResetError("Connection reset by peer"),)


def fail(error: Exception) -> None:
    raise error


@dataclass
class Torn(Squares):
    def close(self, spec: int, memory: list[int]) -> Any:
        return HalfABatch() if spec == 3 else memory


def test_a_run_ends_with_one_line_when_a_worker_is_killed_while_it_hands_over():
    with pytest.raises(LoaderError, match="a loader process died"):
        list(by_processes(range(20), Torn(), 2, PATIENCE_S))


@dataclass
class Offline(Squares):
    def fill(self, spec: int, memory: list[int], slots: range) -> None:
        raise ConnectionResetError("the storage is gone")


def test_a_lost_connection_of_the_job_itself_is_not_taken_for_a_killed_worker():
    with pytest.raises(ConnectionResetError, match="the storage is gone"):
        list(by_processes(range(20), Offline(), 2, PATIENCE_S))


@pytest.mark.parametrize(
    "builder",
    [Squares(fails_at=5), Squares(hangs_at=3), Killed(), Torn(), Offline()],
    ids=["fails", "hangs", "killed", "torn", "offline"],
)
def test_no_process_is_left_while_the_error_is_held_when_a_load_fails(builder: Squares):
    """Else the collector of cycles ends them, in whatever thread it runs, which then waits for 10 s for each."""
    before = {*psutil.Process().children()}
    try:
        list(by_processes(range(20), builder, 2, 1.0 if builder.hangs_at >= 0 else PATIENCE_S))
    except (InputError, LoaderError, ConnectionError):
        left = {*psutil.Process().children()} - before
    assert left == set()


def test_work_stays_a_few_batches_ahead_when_nobody_takes_them():
    started = []

    class Watched(Squares):
        def open(self, spec: int) -> tuple[int, list[int]]:
            started.append(spec)
            return super().open(spec)

    results = by_threads(range(1000), Watched(), 2, PATIENCE_S)
    next(results)
    time.sleep(0.1)
    assert len(started) <= 1 + AHEAD
    results.close()


def test_no_thread_is_left_when_the_reader_stops_early():
    before = {*threading.enumerate()}
    results = by_threads(range(1000), Squares(), 3, PATIENCE_S)
    next(results)
    started = {*threading.enumerate()} - before
    assert len(started) == 3  # control
    results.close()
    assert not any(thread.is_alive() for thread in started)


def test_nothing_is_delivered_when_nothing_is_requested():
    assert list(by_threads([], Squares(), 2, PATIENCE_S)) == []


COLORFUL = replace(PLAIN, rand_augment=5, color_jitter=0.3, random_erasing=0.5)


@pytest.mark.parametrize("augmenter", [PLAIN, COLORFUL], ids=["plain", "colorful"])
def test_batches_are_the_same_when_workers_differ(index: Index, augmenter: Augmenter):
    builder = TrainBatchBuilder(ImageReader(index), augmenter, Mixer(0.4, 1.0, 0))
    batch_specs = [request_of([i, (i + 3) % 16], epoch=i % 3) for i in range(12)]
    alone = [load(builder, spec) for spec in batch_specs]
    others = [by_processes(batch_specs, builder, workers, PATIENCE_S) for workers in (1, 2)]
    if not augmenter.holds_interpreter:
        others += [by_threads(batch_specs, builder, threads, PATIENCE_S) for threads in (0, 3)]
    for other in others:
        for expected, found in zip(alone, other, strict=True):
            assert torch.equal(expected.images, found.images)
            assert torch.equal(expected.targets, found.targets)
            assert torch.equal(expected.mixing, found.mixing)
            assert expected.ids.tolist() == found.ids.tolist()


def test_the_generators_of_training_are_untouched_when_processes_augment(index: Index):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    list(by_processes([request_of([0, 1])], job_of(index, COLORFUL), 1, PATIENCE_S))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


def test_a_training_batch_is_bytes_at_the_largest_size_when_a_step_has_several(index: Index):
    batch = load(job_of(index), request_of([3, 12, 5]))
    assert batch.images.dtype == torch.uint8
    assert tuple(batch.images.shape) == (3, 3, 20, 20)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.targets.tolist() == [0, 1, 0]
    assert (batch.ids.tolist(), batch.step.sizes, batch.number) == ([3, 12, 5], (16, 20), 7)
    assert batch.mixing is None


def test_an_image_is_augmented_alike_when_its_neighbors_differ(index: Index):
    builder = job_of(index)
    alone, among = load(builder, request_of([5])), load(builder, request_of([1, 5, 9]))
    assert torch.equal(alone.images[0], among.images[1])
    assert not torch.equal(alone.images[0], load(builder, request_of([5], epoch=1)).images[0])  # control


def test_an_image_is_mirrored_when_the_draw_says_so(index: Index):
    plain, mirroring = (Augmenter(1.0, hflip, 0) for hflip in (False, True))
    sides = np.full(8, 24)
    flags = mirroring.draw(0, np.arange(8), sides, sides, 1.0)[1]
    assert len(set(flags)) == 2
    straight, turned = (load(job_of(index, who), request_of(list(range(8)))).images for who in (plain, mirroring))
    for image, other, mirror in zip(straight, turned, flags, strict=True):
        assert torch.equal(other, image.flip(-1) if mirror else image)


def test_evaluation_sees_the_middle_of_the_original_when_an_image_is_not_square(tmp_path: Path):
    path = write_image(tmp_path / "wide.png", (60, 40))
    batch = load(EvalBatchBuilder(ImageReader(index_of(tmp_path, ["wide.png"], [1])), (16, 40)), np.array([0]))
    middle = Image.open(path).crop((10, 0, 50, 40))
    assert np.array_equal(batch.images[40][0].permute(1, 2, 0).numpy(), np.array(middle))
    small = np.array(middle.resize((16, 16), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(batch.images[16][0].permute(1, 2, 0).numpy().astype(int) - small).max() <= 1


def test_an_evaluation_size_is_the_same_when_others_are_asked_for_too(index: Index):
    ids = np.arange(4)
    alone, among = (load(EvalBatchBuilder(ImageReader(index), sizes), ids) for sizes in ((8,), (8, 16, 24)))
    assert torch.equal(alone.images[8], among.images[8])
    assert among.targets.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("load_by", [by_threads, by_processes])
def test_a_broken_file_is_named_when_a_worker_reads_it(index: Index, load_by):
    paths_of(index)[6].write_bytes(b"no image")
    with pytest.raises(BadSampleError, match=r"train/cat/6\.png: cannot be read as an image"):
        list(load_by([request_of([i]) for i in range(8)], job_of(index), 2, PATIENCE_S))


@pytest.mark.parametrize("load_by", [by_threads, by_processes])
def test_the_next_image_stands_in_with_its_own_label_when_one_is_quarantined(index: Index, load_by):
    for i in (6, 7):  # the last two cats; the next is a dog
        paths_of(index)[i].write_bytes(b"no image")
    batch = next(load_by([request_of([5, 6])], job_of(index, substitute=True), 2, PATIENCE_S))
    whole = load(job_of(index), request_of([5, 8]))
    assert batch.ids.tolist() == [5, 8]
    assert batch.targets.tolist() == [0, 1]
    assert torch.equal(batch.images, whole.images)
    assert [name for name, _ in batch.bad] == ["train/cat/6.png", "train/cat/7.png"]
    assert "no image in a known format" in batch.bad[0][1]


def test_training_gives_up_when_no_image_can_stand_in(index: Index):
    for path in paths_of(index):
        path.unlink()
    with pytest.raises(InputError, match=r"train/cat/3\.png and the 99 images after it cannot be read"):
        load(job_of(index, substitute=True), request_of([3]))


def test_an_unreadable_image_is_left_out_and_named_when_evaluation_may(index: Index):
    paths_of(index)[1].write_bytes(b"")
    builder = EvalBatchBuilder(ImageReader(index), (16,), leave_out=True)
    batch, whole = load(builder, np.arange(4)), load(EvalBatchBuilder(ImageReader(index), (16,)), np.array([0, 2, 3]))
    assert batch.ids.tolist() == [0, 2, 3]
    assert batch.targets.tolist() == [0, 0, 0]
    assert torch.equal(batch.images[16], whole.images[16])
    assert batch.bad == (("train/cat/1.png", "the file is empty"),)
    with pytest.raises(BadSampleError, match="the file is empty"):
        load(EvalBatchBuilder(ImageReader(index), (16,)), np.arange(4))
