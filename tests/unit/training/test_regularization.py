"""What a phase's regularization reaches: dropout, drop path, the loss and MixUp; and when it would reach nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit import Classification, InputError, Progressive, Settings, train
from toolkit.data.images.mixing import Mixer
from toolkit.data.loading.batches import Batch, load
from toolkit.data.loading.pipeline import open_pipeline
from toolkit.data.loading.sampler import Epoch
from toolkit.models.multiview import MultiView
from toolkit.models.regularization import DropRates
from toolkit.runs.directory import RunDirectory
from toolkit.training import device
from toolkit.training.parts import make_parts
from toolkit.training.run_plan import make_run_plan
from toolkit.training.step import train_step
from toolkit.training.train_state import TrainState, build_train_state

QUARTER = Progressive((16, 32), regularization_from=0.25)
SMOOTHED = 0.2


def settings(**values: Any) -> Settings:
    usual = {"synthetic_count": 40, "synthetic_size": 32, "batch_size": 8, "epochs": 2, "optimizer": "sgd"}
    return Settings(**{**usual, "log_with": "none", "num_workers": 0, "arch": "test_resnet", **values})


@contextmanager
def built(**values: Any) -> Iterator[tuple[TrainState, MultiView, list[tuple[Epoch, Batch]]]]:
    """A state, the model that is evaluated, and the first batch of each epoch: one for each phase."""
    chosen = settings(**values)
    accelerator = device.start(chosen)
    try:
        plan = make_run_plan(accelerator, *make_parts(chosen, QUARTER))
        state, evaluated = build_train_state(accelerator, plan)
        pipeline = open_pipeline(plan.resolved, QUARTER, plan.splits, plan.cache, plan.threads)
        first = [
            (epoch, load(pipeline.builder(epoch.phase), next(pipeline.sampler.batch_specs(epoch))))
            for epoch in plan.steps.epochs()
        ]
        yield state, evaluated, first
    finally:
        device.stop()


def rates(model: nn.Module) -> list[float]:
    return [rate for _, _, rate in DropRates.of(model).built]


def test_dropout_and_drop_path_have_the_rates_of_their_phase_in_training_only():
    with built(dropout_rate=0.4, drop_path=0.2) as (state, evaluated, ((small, _), (large, _))):
        model, whole = state.weights.model, rates(evaluated)
        assert max(whole) == 0.4
        assert len(whole) > 2
        quarter = [0.25 * rate for rate in whole]
        assert rates(model) == quarter  # before the first phase begins: a state starts in it
        for epoch, expected in ((large, whole), (small, quarter), (small, quarter), (large, whole)):
            state.begin(epoch.phase, 1)  # also what a resume within a phase does
            assert rates(model) == expected
            assert rates(evaluated) == whole


def test_label_smoothing_of_the_loss_is_that_of_the_phase():
    with built(label_smoothing=SMOOTHED) as (state, _, batches):
        for (epoch, batch), share in zip(batches, (0.25, 1.0), strict=True):
            assert epoch.phase.regularization == share
            state.begin(epoch.phase, 1)
            images, labels = batch.images, batch.targets
            with torch.no_grad():
                (logits,) = state.model(*state.views(images, batch.step.sizes))
            loss = train_step(state, batch, epoch.phase, learning_rate=0.0).total
            torch.testing.assert_close(loss, F.cross_entropy(logits, labels, label_smoothing=share * SMOOTHED))
            other = F.cross_entropy(logits, labels, label_smoothing=(1.25 - share) * SMOOTHED)
            assert not torch.isclose(loss, other, rtol=1e-4)  # control


def test_mixup_of_a_batch_is_that_of_the_phase():
    with built(mixup=0.8) as (_, _, batches):
        for (epoch, batch), share in zip(batches, (0.25, 1.0), strict=True):
            drawn, other = (
                Mixer(0.8 * part, 0.0, seed=0).draw(epoch.number, batch.ids, 1.0) for part in (share, 1.25 - share)
            )
            assert drawn is not None
            assert other is not None
            assert batch.mixing is not None
            assert torch.equal(batch.mixing, drawn)
            assert not torch.allclose(batch.mixing, other)  # control


class Own(nn.Module):
    """A model that records the rate at which it drops."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.dropout, self.head = nn.Dropout(rate), nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(x.mean((2, 3))))


def test_an_own_model_is_regularized_and_the_run_records_by_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    own, dropped = Own(0.5), []
    monkeypatch.setattr(nn.Dropout, "forward", lambda layer, x: dropped.append((layer.training, layer.p)) or x)
    values = {name: value for name, value in settings().model_dump(exclude_unset=True).items() if name != "arch"}
    train(Settings(**values, output_dir=tmp_path / "run"), QUARTER, model=own)
    assert {rate for training, rate in dropped if training} == {0.5, 0.125}  # 0.5: also tried before training
    assert {rate for training, rate in dropped if not training} == {0.5}
    assert own.dropout.p == 0.5  # a copy was trained
    rows = RunDirectory(tmp_path / "run").metrics()
    assert [row.metrics["regularization"] for row in rows] == [0.25, 1.0]


@pytest.mark.parametrize(
    "values",
    [
        {"crop_scale": 0.5},
        {"rand_augment": 5, "num_workers": 1},
        {"color_jitter": 0.2, "num_workers": 1},
        {"random_erasing": 0.2},
        {"mixup": 0.2},
        {"cutmix": 1.0},
        {"drop_path": 0.1},
        {"dropout_rate": 0.1},
        {"label_smoothing": 0.1},
        {"model_kwargs": {"drop_block_rate": 0.1}},
    ],
    ids=str,
)
def test_growing_regularization_is_accepted_when_something_regularizes(accelerator, values: dict[str, Any]):
    assert make_run_plan(accelerator, *make_parts(settings(**values), QUARTER)).steps.phases[0].regularization == 0.25


class OwnTask(Classification):
    """Its loss may regularize in any way."""


def test_growing_regularization_is_accepted_with_a_model_or_task_of_the_users_own(accelerator):
    values = {name: value for name, value in settings().model_dump(exclude_unset=True).items() if name != "arch"}
    make_run_plan(accelerator, *make_parts(Settings(**values), QUARTER, model=Own(0.0)))
    make_run_plan(accelerator, *make_parts(settings(), QUARTER, task=OwnTask()))


def test_growing_regularization_is_refused_when_nothing_regularizes(accelerator):
    make_run_plan(accelerator, *make_parts(settings(), Progressive((16, 32))))  # control
    with pytest.raises(InputError, match=r"--regularization-from 0\.25 would be ignored, because nothing regularizes"):
        make_run_plan(accelerator, *make_parts(settings(), QUARTER))
