"""The one training step: what it does with the optimizer's groups, and with parts that do not learn."""

from pathlib import Path

import pytest
import torch

from toolkit import Settings, SingleScale
from toolkit.data.loading.batches import load
from toolkit.data.loading.pipeline import open_pipeline
from toolkit.training import device
from toolkit.training.parts import make_parts
from toolkit.training.run_plan import make_run_plan
from toolkit.training.step import train_step
from toolkit.training.train_state import TrainState, build_train_state

RATE = 0.01


@pytest.fixture
def ready(tmp_path: Path):
    """A state before its first step, and the first batch."""
    settings = Settings(synthetic_count=40, synthetic_size=16, batch_size=8, epochs=1, optimizer="sgd", log_with="none")
    accelerator = device.start(settings)
    try:
        plan = make_run_plan(accelerator, *make_parts(settings, SingleScale(16)))
        state, _ = build_train_state(accelerator, plan)
        pipeline = open_pipeline(plan.resolved, plan.parts.strategy, plan.splits, plan.cache, plan.threads)
        epoch = next(plan.steps.epochs())
        yield state, load(pipeline.builder(epoch.phase), next(pipeline.sampler.batch_specs(epoch))), epoch.phase
    finally:
        device.stop()


def moved(state: TrainState, batch, phase) -> list[float]:
    """How far each group's parameters go in a step."""
    before = [[p.detach().clone() for p in group["params"]] for group in state.optimizer.param_groups]
    train_step(state, batch, phase, RATE)
    return [
        float(sum((p.detach() - old).norm() for p, old in zip(group["params"], olds, strict=True)))
        for group, olds in zip(state.optimizer.param_groups, before, strict=True)
    ]


def test_a_group_learns_at_its_share_of_the_rate(ready):
    state, batch, phase = ready
    state.optimizer.param_groups[0]["lr_scale"] = 0.5
    distance = moved(state, batch, phase)
    assert [group["lr"] for group in state.optimizer.param_groups] == [0.5 * RATE, RATE]
    assert min(distance) > 0


def test_a_group_without_a_share_learns_at_the_rate(ready):
    state, batch, phase = ready
    moved(state, batch, phase)
    assert [group["lr"] for group in state.optimizer.param_groups] == [RATE, RATE]


def test_only_what_is_trainable_moves_and_all_of_it_again_in_the_next_phase(ready):
    state, batch, phase = ready

    def changed() -> set[str]:
        before = {name: p.detach().clone() for name, p in state.weights.model.named_parameters()}
        train_step(state, batch, phase, RATE)
        return {n.split(".")[1] for n, p in state.weights.model.named_parameters() if not torch.equal(p, before[n])}

    state.begin(type(phase)(**{**vars(phase), "trainable": ("head",)}), 1)
    assert changed() == {"fc"}
    state.begin(phase, 1)
    assert len(changed()) > 3
