"""How often an image comes in an epoch where classes are balanced."""

from collections import Counter

import numpy as np
import pytest

from toolkit import InputError, Settings, Simultaneous
from toolkit.data.loading.balance import describe_balance, make_balance, repeats
from toolkit.data.loading.sampler import RankShare, Sampler, Shards, micro_batches
from toolkit.data.sources.index import Splits
from toolkit.training.step_plan import make_step_plan

SIZES = (100, 41, 15, 6, 1)  # images of each class
LABELS = np.random.default_rng(1).permutation(np.repeat(np.arange(5), SIZES))
EPOCHS = 24
SEVERAL = np.array([[1, 0, 0]] * 12 + [[1, 1, 0]] * 3 + [[0, 1, 1]] * 2 + [[0, 0, 0]] * 4)  # 15, 5, 2 images, 4 of none
STRATEGY = Simultaneous((16, 32))


def of_class(counts: np.ndarray) -> list[int]:
    return [int(counts[label == LABELS].sum()) for label in range(len(SIZES))]


@pytest.mark.parametrize("power", [1.0, 0.5, 0.1])
def test_an_epoch_has_as_many_images_as_ever_and_of_each_class_its_share(power: float):
    balance = make_balance(LABELS, power, 0)
    total = np.zeros(len(LABELS), dtype=np.int64)
    shares = np.array(SIZES) ** (1 - power)
    wanted = len(LABELS) * shares / shares.sum()
    for epoch in range(EPOCHS):
        counts = balance.counts(epoch)
        assert counts.sum() == len(LABELS)
        assert np.abs(of_class(counts) - wanted).max() < 1
        total += counts
    assert np.abs(of_class(total) / np.float64(EPOCHS) - wanted).max() < 0.1


@pytest.mark.parametrize("power", [1.0, 0.3])
def test_images_of_a_class_come_equally_often_in_an_epoch_and_over_epochs(power: float):
    balance = make_balance(LABELS, power, 0)
    total = np.zeros(len(LABELS), dtype=np.int64)
    for epoch in range(EPOCHS):
        counts = balance.counts(epoch)
        total += counts
        for label in range(len(SIZES)):
            for summed in (counts, total):
                assert np.ptp(summed[label == LABELS]) <= 1
    assert total.min() > 0


def test_counts_follow_from_seed_and_epoch_alone():
    one, other = make_balance(LABELS, 1.0, 3), make_balance(LABELS, 1.0, 4)
    again = make_balance(LABELS, 1.0, 3)
    for epoch in range(5):
        one.counts(epoch)
    assert one.counts(7).tolist() == again.counts(7).tolist()
    assert one.counts(7).tolist() != other.counts(7).tolist()
    assert one.counts(7).tolist() != one.counts(8).tolist()


@pytest.mark.parametrize("seed", range(4))
def test_equal_classes_have_the_order_of_plain_sampling(seed: int):
    labels = np.arange(60) % 3
    plain, balanced = Sampler(60, seed, STRATEGY), Sampler(60, seed, STRATEGY, balance=make_balance(labels, 1.0, seed))
    assert [plain.permutation(e).tolist() for e in range(9)] == [balanced.permutation(e).tolist() for e in range(9)]
    uneven = Sampler(60, seed, STRATEGY, balance=make_balance(np.arange(60) // 50, 1.0, seed))  # control
    assert plain.permutation(0).tolist() != uneven.permutation(0).tolist()


def test_the_rarest_label_of_an_image_counts_and_none_as_the_commonest():
    balance = make_balance(SEVERAL, 1.0, 0)
    rates = np.zeros(len(SEVERAL))
    for epoch in range(60):
        rates += balance.counts(epoch) / 60
    weights = np.array([1 / 15] * 12 + [1 / 5] * 3 + [1 / 2] * 2 + [1 / 15] * 4)
    np.testing.assert_allclose(rates, 21 * weights / weights.sum(), atol=0.04)


def test_images_without_any_label_come_once():
    assert make_balance(np.zeros((8, 3), dtype=np.int64), 1.0, 0).counts(2).tolist() == [1] * 8


def test_repeats_are_counted_in_the_order_in_which_images_come():
    order = np.random.default_rng(0).integers(0, 9, 50)
    seen: Counter[int] = Counter()
    expected = []
    for image in order.tolist():
        expected.append(seen[image])
        seen[image] += 1
    assert repeats(order).tolist() == expected


def test_no_two_draws_of_an_epoch_have_the_same_key_and_a_first_one_has_its_id():
    sampler = Sampler(len(LABELS), 0, STRATEGY, balance=make_balance(LABELS, 1.0, 0))
    plan = make_step_plan(Settings(epochs=3, batch_size=16), STRATEGY, len(LABELS), 1)
    for epoch in plan.epochs():
        specs = [*sampler.batch_specs(epoch)]
        ids, keys = (np.concatenate([getattr(spec, name) for spec in specs]) for name in ("ids", "keys"))
        assert len({*keys.tolist()}) == len(keys) == 160
        assert len({*ids.tolist()}) < 120  # control: images do come again
        assert (keys % len(LABELS)).tolist() == ids.tolist()
        first = [ids.tolist().index(image) for image in {*ids.tolist()}]
        assert keys[first].tolist() == ids[first].tolist()
        late = [*sampler.batch_specs(epoch, epoch.start + 4)]
        assert [spec.keys.tolist() for spec in late] == [spec.keys.tolist() for spec in specs[4:]]
        parts = [part for rank in (0, 1) for part in micro_batches(specs[2], RankShare(rank, 2, 4))]
        assert [key for part in parts for key in part.draw_keys.tolist()] == specs[2].keys.tolist()
        assert [image for part in parts for image in part.ids.tolist()] == specs[2].ids.tolist()


def test_windows_of_shards_stay_what_they_are():
    """Repeats are taken within the window in which an image is fetched."""
    ids = tuple(np.arange(20 * shard, 20 * shard + 20) for shard in range(8))
    labels = (np.arange(160) % 10 == 0).astype(np.int64)
    shards = Shards(ids, (30,) * 8, 60)
    plain = Sampler(160, 3, STRATEGY, shards)
    balanced = Sampler(160, 3, STRATEGY, shards, make_balance(labels, 1.0, 3))
    for epoch in make_step_plan(Settings(epochs=3, batch_size=5), STRATEGY, 160, 1).epochs():  # one lane
        ((order,), (windows,), (kept,)) = balanced.order(epoch), plain.windows(epoch), balanced.windows(epoch)
        assert [window.shards for window in kept] == [window.shards for window in windows]
        place = np.empty(8, dtype=np.int64)
        for number, window in enumerate(windows):
            place[[*window.shards]] = number
        assert (np.diff(place[order // 20]) >= 0).all()
        assert len(order) == 160
        assert abs(int(labels[order].sum()) - 80) <= 1


@pytest.mark.parametrize("labels", [np.ones((4, 2), dtype=np.float32), np.arange(8).reshape(4, 2), np.ones(4)])
def test_labels_that_are_no_classes_are_refused(labels: np.ndarray):
    with pytest.raises(InputError, match=r"^--sampling balanced: labels of type .* are neither classes nor"):
        make_balance(labels, 1.0, 0)


class Only:
    """A split of which only the labels are looked at."""

    def __init__(self, labels: np.ndarray) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)


def described(labels: np.ndarray, **values) -> list[str]:
    classes = tuple("abcde"[: labels.shape[1] if labels.ndim > 1 else 5])
    splits = Splits(Only(labels), Only(labels), None, classes, "made up")  # type: ignore[arg-type]
    return describe_balance(Settings(**values), splits)


def test_the_plan_tells_how_often_the_rarest_and_the_commonest_come():
    assert described(LABELS) == []
    (line,) = described(LABELS, sampling="balanced")
    assert line == (
        "sampling  balanced, power 1: on average an image of 'e', the rarest class (1 image(s)), comes 32.6 times an "
        "epoch, one of 'a', the commonest (100), 0.326 times"
    )
    (several,) = described(SEVERAL, sampling="balanced")
    assert "an image of 'c', the rarest class (2 image(s)), comes 3.94 times" in several
    assert "one of 'a', the commonest (15) and no rarer one, 0.525 times" in several
    (even,) = described(np.arange(40) % 5, sampling="balanced")
    assert even == "sampling  balanced, power 1: the same as plain, because all classes have 8 images"
    _, warning = described(LABELS, sampling="balanced", class_weights="inverse")
    assert warning.startswith("warning   --class-weights inverse and --sampling balanced both favor rare classes")
