"""Which images a step sees: for any seed, epoch, number of processes and micro-batches."""

import os
import resource
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from toolkit import Progressive, Settings, Simultaneous
from toolkit.data.loading.orders import Orders
from toolkit.data.loading.prefetch import lanes_of as lanes_drawn
from toolkit.data.loading.sampler import BatchSpec, Consecutive, RankShare, Sampler, Shards, Window, micro_batches
from toolkit.training.step_plan import make_step_plan

IMAGES, BATCH = 50, 16  # 3 steps an epoch, 2 images left out of each
SETTINGS = Settings(epochs=4, batch_size=BATCH)
STRATEGIES = {"simultaneous": Simultaneous((16, 32)), "progressive": Progressive((16, 32))}
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES.keys())


def global_batches(strategy, seed: int = 0, from_step: int = 0) -> list[BatchSpec]:
    sampler = Sampler(IMAGES, seed, strategy)
    plan = make_step_plan(SETTINGS, strategy, IMAGES, 1)
    return [spec for epoch in plan.epochs() for spec in sampler.batch_specs(epoch, from_step)]


def ids(batch_specs: list[BatchSpec]) -> list[list[int]]:
    return [spec.ids.tolist() for spec in batch_specs]


def test_a_permutation_is_the_same_when_seed_and_epoch_are():
    one, again = Sampler(IMAGES, 3, STRATEGIES["simultaneous"]), Sampler(IMAGES, 3, STRATEGIES["progressive"])
    assert one.permutation(5).tolist() == again.permutation(5).tolist()
    assert sorted(one.permutation(5)) == list(range(IMAGES))


def test_a_permutation_does_not_depend_on_what_was_drawn_before_when_an_epoch_is_asked_for():
    fresh, used = (Sampler(IMAGES, 3, STRATEGIES["simultaneous"]) for _ in range(2))
    used.permutation(0)
    np.random.random(7)  # a stray draw from the global generator
    assert fresh.permutation(1).tolist() == used.permutation(1).tolist()


def test_a_permutation_is_another_when_seed_or_epoch_differs():
    orders = [
        tuple(Sampler(IMAGES, seed, STRATEGIES["simultaneous"]).permutation(epoch))
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len(set(orders)) == 9


@every_strategy
def test_every_image_comes_at_most_once_an_epoch_when_batches_are_full(strategy):
    batches = global_batches(strategy)
    assert [len(batch.ids) for batch in batches] == [BATCH] * 12
    left_out = []
    for epoch in range(4):
        seen = np.concatenate([batch.ids for batch in batches if batch.epoch == epoch])
        assert len(set(seen.tolist())) == 48
        left_out.append(frozenset(range(IMAGES)) - frozenset(seen.tolist()))
    assert len(set(left_out)) > 1  # others each time


@every_strategy
def test_steps_are_numbered_through_the_run_when_there_are_several_epochs(strategy):
    batches = global_batches(strategy)
    assert [batch.number for batch in batches] == list(range(12))
    assert [batch.epoch for batch in batches] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_sizes_follow_the_strategy_when_phases_change():
    progressive, simultaneous = (global_batches(strategy) for strategy in reversed(STRATEGIES.values()))
    assert [batch.step.sizes for batch in progressive] == [(16,)] * 6 + [(32,)] * 6
    assert {batch.step.sizes for batch in simultaneous} == {(16, 32)}
    assert ids(progressive) == ids(simultaneous)  # the order of images has nothing to do with sizes


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_ranks_share_the_global_batch_when_it_is_split(processes: int, accumulation: int):
    for spec in global_batches(STRATEGIES["simultaneous"]):
        parts = [list(micro_batches(spec, RankShare(rank, processes, accumulation))) for rank in range(processes)]
        assert {len(own) for own in parts} == {accumulation}
        assert {len(part.ids) for own in parts for part in own} == {BATCH // processes // accumulation}
        own_ids = [{i for part in own for i in part.ids.tolist()} for own in parts]
        assert sum(map(len, own_ids)) == len(set().union(*own_ids)) == BATCH  # disjoint
        together = [i for own in parts for part in own for i in part.ids.tolist()]
        assert together == spec.ids.tolist()
        assert {part._replace(ids=None) for own in parts for part in own} == {spec._replace(ids=None)}


@every_strategy
@pytest.mark.parametrize("from_step", [0, 1, 3, 5, 6, 11, 12])
def test_what_is_left_is_the_tail_of_the_run_when_it_resumes(strategy, from_step: int):
    whole, rest = global_batches(strategy), global_batches(strategy, from_step=from_step)
    assert ids(rest) == ids(whole)[from_step:]
    assert [(b.number, b.epoch, b.step) for b in rest] == [(b.number, b.epoch, b.step) for b in whole][from_step:]


@every_strategy
def test_epochs_follow_each_other_and_close_their_phases_when_a_plan_is_made(strategy):
    epochs = list(make_step_plan(SETTINGS, strategy, IMAGES, 1).epochs())
    assert [(epoch.number, epoch.start, epoch.end) for epoch in epochs] == [(0, 0, 3), (1, 3, 6), (2, 6, 9), (3, 9, 12)]
    closing = [epoch.closes_phase for epoch in epochs]
    assert closing == ([False, True] * 2 if isinstance(strategy, Progressive) else [False] * 3 + [True])
    assert all(before.end == after.start for before, after in pairwise(epochs))


def test_images_are_mixed_within_windows_of_shards_when_these_are_remote():
    sizes = (30, 30, 30, 50, 10, 30)
    ids = tuple(np.arange(5 * shard, 5 * shard + 5) for shard in range(6))
    shards = Shards(ids, sizes, 60)
    orders = [lanes_of(shards, 1, seed)[0].tolist() for seed in range(20)]
    assert orders == [lanes_of(shards, 1, seed)[0].tolist() for seed in range(20)]
    assert len(set(map(tuple, orders))) == 20
    for order in orders:
        assert sorted(order) == list(range(30))
        first = {shard: order.index(min(own, key=order.index)) for shard, own in enumerate(ids)}
        for shard in sorted(first, key=first.__getitem__):  # all that is open when a shard begins fits the window
            position = first[shard]
            still = [
                other for other in range(6) if set(order[position:]) & set(ids[other]) and first[other] <= position
            ]
            assert sum(sizes[other] for other in still) <= 60
    assert any(order[:10] != sorted(order[:10]) and len({i // 5 for i in order[:5]}) > 1 for order in orders)


def lanes_of(shards: Shards, lanes: int, seed: int = 0, counts: np.ndarray | None = None) -> np.ndarray:
    return shards.order(np.random.default_rng(seed), lanes, counts)


def made(images: list[int], window: int) -> Shards:
    """Shards of so many images, of 10 bytes each."""
    parts = np.split(np.arange(sum(images)), np.cumsum(images)[:-1])
    return Shards(tuple(parts), tuple(10 * count for count in images), window)


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("lanes", [1, 2, 8])
def test_lanes_hold_every_image_once_and_what_they_shuffle_fits_their_share(lanes: int, counted: bool):
    shards = made([5, 9, 3, 7, 12, 1, 8, 8, 6, 9, 4, 5], 400)
    shard_of = np.repeat(np.arange(12), [len(ids) for ids in shards.ids])
    counts = np.arange(77) % 3 if counted else np.ones(77, dtype=np.int64)
    for seed in range(10):
        order = lanes_of(shards, lanes, seed, counts)
        assert order.shape == (lanes, counts.sum() // lanes)
        left_out = counts - np.bincount(order.ravel(), minlength=77)
        assert left_out.min() == 0
        assert left_out.sum() < lanes
        for lane, windows in zip(order, shards.windows(np.random.default_rng(seed), lanes, counts), strict=True):
            assert windows[-1].end == len(lane)
            for (_, _, begin), window in pairwise([((), (), 0), *windows]):
                assert {*shard_of[lane[begin : window.end]].tolist()} <= {*window.shards}
                assert len(window.shards) == 1 or sum(shards.sizes[i] for i in window.shards) <= 400 // lanes


@pytest.mark.parametrize(
    ("images", "window", "batch", "lanes"),
    [
        ([10] * 100, 10**5, 64, 64),
        ([10] * 100, 10**5, 256, 64),  # at most
        ([10] * 100, 10**5, 96, 32),
        ([10] * 100, 10**5, 7, 1),
        ([10] * 12, 10**5, 64, 8),  # no more than shards
        ([10] * 12 + [0] * 9, 10**5, 64, 8),  # that have images
        ([10] * 100, 1000, 64, 4),  # each lane needs room for two shards
        ([10] * 99 + [200], 1000, 64, 1),
    ],
)
def test_the_number_of_lanes_follows_from_data_and_batches(images: list[int], window: int, batch: int, lanes: int):
    assert made(images, window).lanes(batch) == lanes


def test_shards_without_images_take_no_room():
    with_empty, without = made([5, 0, 9, 0, 3], 200), made([5, 9, 3], 200)
    for seed in range(5):
        (windows,) = with_empty.windows(np.random.default_rng(seed), 1)
        assert {shard for window in windows for shard in window.shards} == {0, 2, 4}
    assert sorted(lanes_of(with_empty, 1).ravel().tolist()) == sorted(lanes_of(without, 1).ravel().tolist())


@pytest.mark.parametrize("local", [2, 8])
@pytest.mark.parametrize(("lanes", "processes"), [(1, 8), (4, 8), (8, 8), (8, 2), (4, 6), (64, 24), (2, 16)])
def test_the_processes_of_a_machine_share_all_blocks_of_each_lane_they_draw_from(
    lanes: int, processes: int, local: int
):
    windows = [[Window((lane,), (slice(0, 9),), 9)] for lane in range(lanes)]
    for machine in range(-(-processes // local)):
        fetched: dict[int, list[int]] = {}
        for rank in range(machine * local, min((machine + 1) * local, processes)):
            for lane in lanes_drawn(windows, RankShare(rank, processes, 1), local):
                fetched.setdefault(lane.windows[0].shards[0], []).extend([*range(24)][lane.share])
        assert all(sorted(blocks) == [*range(24)] for blocks in fetched.values())


@pytest.mark.parametrize("nodes", [1, 2, 4, 8])
def test_a_node_needs_the_shards_of_its_own_lanes_only(nodes: int):
    shards = made([10] * 40, 10**5)
    sampler = Sampler(400, 0, STRATEGIES["simultaneous"], shards)
    epoch = next(iter(make_step_plan(Settings(epochs=1, batch_size=16), sampler.strategy, 400, 1).epochs()))
    assert sampler.lanes(epoch) == 16
    specs = [*sampler.batch_specs(epoch)]
    needed = [
        {
            i // 10
            for spec in specs
            for part in micro_batches(spec, RankShare(node, nodes, 1))
            for i in part.ids.tolist()
        }
        for node in range(nodes)
    ]
    assert sum(map(len, needed)) <= 40 + nodes - 1
    assert [spec.taken for spec in specs] == [16 * i for i in range(25)]


def test_shards_come_one_by_one_when_none_fits_the_window():
    ids = (np.arange(5), np.arange(5, 10), np.arange(10, 15))
    (order,) = lanes_of(Shards(ids, (70, 80, 90), 60), 1)
    assert [len({i // 5 for i in part.tolist()}) for part in np.split(order, 3)] == [1, 1, 1]


def test_shards_that_follow_each_other_need_no_list_of_ids():
    ends = np.array([3, 3, 8])
    found = Consecutive(ends)
    assert [found[i].tolist() for i in range(3)] == [part.tolist() for part in np.split(np.arange(8), ends[:-1])]
    assert len(found) == 3
    assert (
        lanes_of(Shards(found, (70, 80, 90), 60), 1).tolist()
        == lanes_of(Shards(tuple(np.split(np.arange(8), ends[:-1])), (70, 80, 90), 60), 1).tolist()
    )


@pytest.mark.parametrize("shards", [None, made([5, 9, 3, 7, 12, 1, 8, 8, 6, 9, 4, 5], 400)], ids=["files", "shards"])
def test_processes_share_the_order_that_each_would_draw(tmp_path: Path, shards: Shards | None):
    images = 77 if shards else IMAGES
    alone = Sampler(images, 3, STRATEGIES["simultaneous"], shards)
    ranks = [replace(alone, orders=Orders(tmp_path, "key", 4)) for _ in range(2)]
    epochs = list(make_step_plan(SETTINGS, STRATEGIES["simultaneous"], images, 1).epochs())
    for epoch in epochs:
        wanted = alone.order(epoch)
        found = [rank.order(epoch) for rank in ranks]
        assert all(np.array_equal(order, wanted) for order in found)
        assert not any(order.flags.owndata for order in found)
    again = epochs[-1]._replace(rollbacks=1)
    assert np.array_equal(ranks[0].order(again), alone.order(again))
    assert not np.array_equal(alone.order(again), wanted)
    for thread in [thread for thread in threading.enumerate() if thread.name == "order"]:
        thread.join()
    last = epochs[-1].number
    kept = {path.name.split("-")[1] for path in tmp_path.glob("key-*.npy")}
    assert kept == {f"{number:06d}" for number in (last - 1, last)}


def test_an_order_file_that_is_cut_short_is_drawn_again(tmp_path: Path):
    orders, wanted = Orders(tmp_path, "key", 4), np.arange(50)
    for content in (None, b"", b"\x93NUMPY", b"something else"):
        for path in tmp_path.glob("*.npy"):
            path.write_bytes(path.read_bytes()[:-8] if content is None else content)
        assert np.array_equal(orders.get(0, (0, 1), lambda: wanted), wanted)


def test_each_process_draws_its_own_order_when_the_disk_is_full(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    orders, wanted = Orders(tmp_path, "key", 4), np.arange(5000)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        assert np.array_equal(orders.get(0, (0, 1), lambda: wanted), wanted)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "each process draws its own order of the images: " in caplog.text
    assert [*tmp_path.glob("*.npy"), *tmp_path.glob(".tmp-*")] == []


def test_an_order_that_exists_is_opened_while_the_next_one_is_drawn(tmp_path: Path):
    orders, drawing, end = Orders(tmp_path, "key", 4), threading.Event(), threading.Event()
    orders.get(0, (0, 1), lambda: np.arange(5))

    def slow() -> np.ndarray:
        drawing.set()
        assert end.wait(60)
        return np.arange(5)

    orders.draw_ahead(1, (0, 1), slow)
    assert drawing.wait(60)
    try:
        assert len(orders.get(0, (0, 1), pytest.fail)) == 5
    finally:
        end.set()


def test_orders_of_other_runs_are_deleted_when_they_are_old(tmp_path: Path):
    for key in ("old", "new"):
        Orders(tmp_path, key, 50).get(40, (0, 1), lambda: np.arange(5))
    (old,) = tmp_path.glob("old-*.npy")
    os.utime(old, (0, 0))
    Orders(tmp_path, "key", 4).get(3, (0, 1), lambda: np.arange(5))
    assert {path.name.split("-")[0] for path in tmp_path.glob("*.npy")} == {"new", "key"}
