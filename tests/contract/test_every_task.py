"""The promises of `toolkit.strategies.base.Task`, for every task there is, and for one from outside the package."""

import numpy as np
import pytest
import torch
from tags import Tags
from torch import Tensor

from toolkit import Simultaneous, Task
from toolkit.config.tables import TABLES, look_up
from toolkit.models.classification import Classification
from toolkit.models.multilabel import MultiLabel
from toolkit.strategies.base import BoundTask, Budget
from toolkit.strategies.measures import ImageValues, Weighing

N, CLASSES = 24, 5
NAMES = tuple("abcde")
CPU = torch.device("cpu")
EXAMPLES: dict[str, Task] = {
    "cross-entropy": Classification(label_smoothing=0.1),
    "binary": Classification(loss="bce"),
    "weighted": Classification(class_weights="inverse"),
    "asymmetric": Classification(loss="asl", label_smoothing=0.1, class_weights="inverse"),
    "poly": Classification(loss="poly", label_smoothing=0.1, class_weights="inverse"),
    "tags": Tags(),
    "multi-label": MultiLabel(),
    "multi-label-asymmetric": MultiLabel(loss="asl", label_smoothing=0.1, thresholds=(0.3,)),
    "multi-label-weighted": MultiLabel(
        class_weights="effective", class_weights_power=0.5, thresholds=(0.5, 0.4, 0.3, 0.6, 0.7)
    ),
}
every_task = pytest.mark.parametrize("task", EXAMPLES.values(), ids=EXAMPLES.keys())


def labels(task: Task) -> np.ndarray:
    rng = np.random.default_rng(0)
    several = isinstance(task, Tags | MultiLabel)
    return (rng.random((N, CLASSES)) < 0.3).astype(np.int64) if several else np.arange(N) % CLASSES


def bound(task: Task) -> BoundTask:
    return task.bind(task.class_counts(labels(task), CLASSES), CPU)


def logits(seed: int = 0) -> Tensor:
    return torch.randn(N, CLASSES, generator=torch.Generator().manual_seed(seed))


def test_every_task_has_an_example():
    assert {look_up("task", "--task", name) for name in TABLES["task"]} <= {type(task) for task in EXAMPLES.values()}


@every_task
def test_labels_of_its_kind_are_accepted_and_counted(task: Task):
    task.check_labels(labels(task), CLASSES)
    counts = task.class_counts(labels(task), CLASSES)
    assert counts.shape == (CLASSES,)
    assert counts.sum() == (labels(task).sum() if labels(task).ndim == 2 else N)


@every_task
def test_the_loss_is_one_finite_number_with_a_gradient_for_plain_and_mixed_targets(task: Task):
    who, given = bound(task), torch.from_numpy(labels(task))
    for targets in (
        who.targets(given),
        who.mixable(given),
        0.3 * who.mixable(given) + 0.7 * who.mixable(given).flip(0),
    ):
        leaf = logits().requires_grad_()
        loss = who.loss(leaf, targets)
        assert loss.shape == ()
        assert torch.isfinite(loss)
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert gradient.abs().sum() > 0


@every_task
def test_halves_of_a_batch_have_the_loss_of_the_whole(task: Task):
    """So that accumulation and processes do not change what is trained."""
    who, given = bound(task), torch.from_numpy(labels(task))
    parts = [who.loss(logits()[part], who.targets(given[part])) for part in (slice(0, N // 2), slice(N // 2, N))]
    torch.testing.assert_close(torch.stack(parts).mean(), who.loss(logits(), who.targets(given)))


@every_task
def test_log_probabilities_add_up_and_need_no_mixed_precision(task: Task):
    found = bound(task).log_probabilities(logits().bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(found.shape[:-1]))


@every_task
def test_an_average_of_several_sizes_has_their_mean_probabilities(task: Task):
    who = bound(task)
    alone = [who.probabilities(who.average([logits(seed)])) for seed in range(3)]
    torch.testing.assert_close(
        who.probabilities(who.average([logits(seed) for seed in range(3)])), torch.stack(alone).mean(0)
    )
    sure = who.confidence(alone[0])
    assert sure.shape == (N,)
    assert ((sure >= 0) & (sure <= 1)).all()


@every_task
def test_every_metric_is_measured_from_sums_and_records(task: Task):
    who, given = bound(task), torch.from_numpy(labels(task))
    averaged = who.average([logits()])
    sums, record = who.sums(averaged, given, torch.float64), who.record(averaged, given)
    assert sums.shape == (len(task.summed),)
    assert record.shape == (len(task.columns(NAMES)), N)
    assert (record[0] >= 0).all()
    named = dict(zip(task.summed, sums.tolist(), strict=True))
    found = task.measure(named, labels(task), record.numpy(), CLASSES)
    assert [*found] == [metric.name for metric in task.metrics]
    assert all(np.isfinite(value) for value in found.values())
    assert "loss" in found


@every_task
def test_sums_of_parts_are_the_sum_of_the_whole(task: Task):
    """Each process sums its own images."""
    who, given = bound(task), torch.from_numpy(labels(task))
    averaged = who.average([logits()])
    parts = [who.sums(averaged[i::3], given[i::3], torch.float64) for i in range(3)]
    torch.testing.assert_close(torch.stack(parts).sum(0), who.sums(averaged, given, torch.float64))


@every_task
def test_the_parts_of_each_image_are_the_sums(task: Task):
    who, given = bound(task), torch.from_numpy(labels(task))
    averaged = who.average([logits()])
    each = who.each(averaged, given, torch.float64)
    assert each.shape == (len(task.summed), N)
    torch.testing.assert_close(each.sum(1), who.sums(averaged, given, torch.float64))


def values_of(task: Task, values: Tensor) -> ImageValues:
    """What an evaluation keeps of the images, with a cost matrix."""
    who, given = bound(task), torch.from_numpy(labels(task))
    averaged = who.average([values])
    return ImageValues(
        labels(task),
        who.record(averaged, given).double().numpy(),
        CLASSES,
        who.each(averaged, given, torch.float64).numpy(),
        who.probabilities(averaged).T.contiguous().numpy(),
        1 - np.eye(CLASSES),
    )


@every_task
def test_weighted_metrics_are_those_of_all_images_and_of_images_that_are_there_twice(task: Task):
    images, names = values_of(task, logits()), [metric.name for metric in task.metrics]
    extra = [metric.name for metric in task.extra_metrics]

    def measured(some: ImageValues) -> dict[str, float]:
        sums = dict(zip(task.summed, some.summed.sum(1).tolist(), strict=True))
        plain = task.weighted(extra, some, Weighing.plain(len(some.labels)))
        of_task = task.measure(sums, some.labels, some.record, CLASSES)
        return {**of_task, **{name: float(values[0]) for name, values in plain.items()}}

    found = task.weighted([*names, *extra], images, Weighing.plain(N))
    assert {*found} == {*names, *extra}
    assert {name: pytest.approx(float(values[0]), rel=1e-5) for name, values in found.items()} == measured(images)
    weighing = Weighing.bootstrap(N, range(3))
    found = task.weighted([*names, *extra], images, weighing)
    for number, counts in enumerate(weighing.counts()):
        expected = measured(images.at(np.repeat(np.arange(N), counts)))
        assert {name: pytest.approx(values[number], rel=1e-5) for name, values in found.items()} == expected


@every_task
def test_values_of_each_class_are_shares_and_name_the_worst(task: Task):
    images = values_of(task, logits())
    values = task.of_each_class(images)
    for of in values.values():
        assert of.shape == (CLASSES,)
        assert ((of[np.isfinite(of)] >= 0) & (of[np.isfinite(of)] <= 1)).all()
    worst = [
        name for name in ("worst_class_accuracy", "worst_class_ap") if name in {m.name for m in task.extra_metrics}
    ]
    assert bool(values) == bool(worst)
    for name in worst:
        found = task.weighted([name], images, Weighing.plain(N))[name][0]
        assert found == pytest.approx(100 * np.nanmin(next(iter(values.values()))))


@every_task
def test_better_logits_are_better_by_every_extra_metric(task: Task):
    whole, names = bound(task).mixable(torch.from_numpy(labels(task))), [metric.name for metric in task.extra_metrics]
    good, bad = (
        task.weighted(names, values_of(task, values), Weighing.plain(N))
        for values in (20 * whole - 10, 10 - 20 * whole)
    )
    for metric in task.extra_metrics:
        assert metric.gain(good[metric.name][0], bad[metric.name][0]) > 0, metric


@every_task
def test_better_logits_are_measured_as_better_by_every_metric(task: Task):
    """The control of all the above."""
    who, given = bound(task), torch.from_numpy(labels(task))
    whole = who.mixable(given)

    def measured(values: Tensor) -> dict[str, float]:
        averaged = who.average([values])
        named = dict(zip(task.summed, who.sums(averaged, given, torch.float64).tolist(), strict=True))
        return task.measure(named, labels(task), who.record(averaged, given).numpy(), CLASSES)

    good, bad = measured(20 * whole - 10), measured(10 - 20 * whole)
    for metric in task.metrics:
        assert metric.gain(good[metric.name], bad[metric.name]) >= 0, metric
    assert task.metrics[0].gain(good[task.metrics[0].name], bad[task.metrics[0].name]) > 50


@every_task
def test_an_answer_names_classes(task: Task):
    named = task.answer(np.array([0.1, 0.9, 0.0, 0.0, 0.0]), NAMES)
    assert named == "b"


@every_task
@pytest.mark.parametrize("form", ["kl", "mse", "js"])
def test_consistency_between_scales_goes_with_it(task: Task, form):
    strategy = Simultaneous((16, 32), consistency_weight=1.0, consistency=form)
    phase, who, given = strategy.phases(Budget(1, N, N))[0], bound(task), torch.from_numpy(labels(task))

    def loss(pair: list[Tensor]) -> Tensor:
        return strategy.loss(pair, who.targets(given), who, phase, strategy.step(phase, 0)).parts["consistency"]

    assert loss([logits(0), logits(0)]).item() == pytest.approx(0, abs=1e-6)
    assert loss([logits(0), logits(1)]) > 0.01
