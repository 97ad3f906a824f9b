"""The promises of `toolkit.strategies.base`, for every strategy there is, on one process."""

import copy
import dataclasses
import json
import pickle
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from examples import EPOCHS, EXAMPLES, TASK, without_example
from phased import Phased
from safetensors.torch import load_file
from torch import Tensor, nn

from toolkit import InputError, Settings, Strategy, train
from toolkit.commands import train_multi, train_single
from toolkit.config.cli import parse
from toolkit.config.tables import TABLES
from toolkit.config.yaml_values import to_yaml
from toolkit.runs.dashboards import Tracking
from toolkit.runs.run_config import config_of
from toolkit.strategies import Finish, Sandwich, Simultaneous, SingleScale, innermost
from toolkit.strategies.base import Budget, Loss, NormPolicy, Phase, Step
from toolkit.tools.loaded_run import read_config
from toolkit.training import loop

CLASSES, BATCH = 10, 6
BUDGETS = [
    Budget(EPOCHS, 120, 24),
    Budget(12, 5952, 64),
    Budget(30, 100, 100),
]
every_strategy = pytest.mark.parametrize("strategy", EXAMPLES.values(), ids=EXAMPLES.keys())
FIRST = {type(strategy): name for name, strategy in reversed(EXAMPLES.items())}
each_kind_and_slowly_its_variants = pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(strategy, id=name, marks=() if name in FIRST.values() else pytest.mark.slow)
        for name, strategy in EXAMPLES.items()
    ],
)


def every_step(strategy: Strategy, budget: Budget) -> list[tuple[Phase, Step]]:
    return [(phase, strategy.step(phase, i)) for phase in strategy.phases(budget) for i in range(phase.steps)]


def spendable(strategy: Strategy) -> list[Budget]:
    """The budgets that the strategy's own numbers of epochs allow."""
    fixed = getattr(strategy, "scale_epochs", None) or ()
    return [budget for budget in BUDGETS if len(fixed) < 2 or sum(fixed) == budget.epochs]


def test_every_strategy_has_an_example():
    assert without_example() == set()


def test_a_strategy_without_an_example_is_noticed(monkeypatch: pytest.MonkeyPatch):
    class Newcomer(SingleScale):
        name = "newcomer"

    monkeypatch.setitem(TABLES["strategy"], "newcomer", Newcomer)
    assert without_example() == {"newcomer"}


@every_strategy
def test_phases_add_up_to_the_budget(strategy: Strategy):
    for budget in spendable(strategy):
        phases = strategy.phases(budget)
        assert [phase.index for phase in phases] == list(range(len(phases)))
        assert sum(phase.epochs for phase in phases) == budget.epochs
        assert all(phase.steps * phase.batch_size <= phase.epochs * budget.images for phase in phases)
        assert all(phase.epochs >= 1 and phase.steps % phase.epochs == 0 for phase in phases)
        assert all(phase.lr_scale > 0 and phase.lr_weight >= 0 and phase.regularization >= 0 for phase in phases)


@every_strategy
def test_steps_spend_exactly_the_images_of_the_budget(strategy: Strategy):
    """Larger batches leave out the images that do not fill one more."""
    for budget in spendable(strategy):
        phases = strategy.phases(budget)
        wanted = sum(phase.epochs * (budget.images - budget.images % phase.batch_size) for phase in phases)
        assert sum(step.batch_size for _, step in every_step(strategy, budget)) == wanted


@every_strategy
def test_sizes_of_a_step_ascend_and_belong_to_its_phase(strategy: Strategy):
    for budget in spendable(strategy):
        for phase, step in every_step(strategy, budget):
            assert step.sizes
            assert all(small < large for small, large in pairwise(step.sizes))
            assert set(step.sizes) <= set(phase.sizes)


@every_strategy
def test_the_same_step_is_the_same_whoever_asks_and_in_whatever_order(strategy: Strategy):
    another = copy.deepcopy(strategy)
    budget = BUDGETS[0]
    forwards = every_step(strategy, budget)
    phases = another.phases(budget)
    backwards = [another.step(phase, i) for phase in reversed(phases) for i in reversed(range(phase.steps))]
    assert [step for _, step in forwards] == backwards[::-1]
    assert strategy.phases(budget) == phases


@every_strategy
def test_selection_is_on_the_panel_and_at_the_largest_trained_size(strategy: Strategy):
    sizes = {size for _, step in every_step(strategy, BUDGETS[0]) for size in step.sizes}
    eval_specs = strategy.eval_specs()
    assert strategy.selection() in eval_specs
    assert strategy.selection().sizes == (max(sizes),)
    assert len({spec.name for spec in eval_specs}) == len(eval_specs)


@every_strategy
def test_every_trained_size_has_its_own_normalization_when_scales_own_any(strategy: Strategy):
    policy = strategy.norm()
    sizes = {size for _, step in every_step(strategy, BUDGETS[0]) for size in step.sizes}
    assert policy.mode == "off" or sizes <= set(policy.scales)


@every_strategy
def test_shared_statistics_are_of_the_sizes_trained_last_when_scales_own_none(strategy: Strategy):
    if strategy.norm().mode == "off":
        assert set(strategy.norm().scales) == set(strategy.phases(BUDGETS[0])[-1].sizes)


@every_strategy
def test_a_strategy_cannot_be_changed(strategy: Strategy):
    for field in dataclasses.fields(strategy):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(strategy, field.name, getattr(strategy, field.name))
    assert hash(strategy) == hash(copy.deepcopy(strategy))


@every_strategy
def test_a_strategy_comes_back_equal_from_a_configuration_file(strategy: Strategy):
    assert read_config(yaml.safe_load(to_yaml(config_of(Settings(), strategy))))[1] == strategy


@every_strategy
def test_the_commands_make_the_same_strategy_from_the_config_of_its_run(strategy: Strategy, tmp_path: Path):
    (tmp_path / "config.yaml").write_text(to_yaml(config_of(Settings(), strategy)))
    training = train_single if strategy.to_dict()["strategy"] == "single" else train_multi
    command = parse(["--config", str(tmp_path / "config.yaml")], "toolkit train", None, training.SCALE_FLAGS)
    assert training.strategy_of(command) == strategy


@every_strategy
def test_a_strategy_comes_back_equal_from_copying_and_pickling(strategy: Strategy):
    assert copy.deepcopy(strategy) == strategy
    assert pickle.loads(pickle.dumps(strategy)) == strategy


@every_strategy
def test_a_strategy_reads_as_one_line_that_names_its_sizes(strategy: Strategy):
    line = str(strategy)
    sizes = {size for _, step in every_step(strategy, BUDGETS[0]) for size in step.sizes}
    assert str(min(sizes)) in line
    assert str(max(sizes)) in line
    assert "\n" not in line
    assert "<" not in line
    assert " at 0x" not in line


def gradients(strategy: Strategy, seed: int = 0, nudged: int | None = None) -> tuple[Tensor, ...]:
    """Of the loss of the strategy's last step, with respect to the logits at each size.

    The logits are random; `nudged` is the place of a size whose logits are other ones.
    """
    phase, step = every_step(strategy, BUDGETS[0])[-1]
    rng = torch.Generator().manual_seed(seed)
    logits = [torch.randn(BATCH, CLASSES, generator=rng) for _ in step.sizes]
    targets = torch.randint(CLASSES, (BATCH,), generator=rng)
    if nudged is not None:
        logits[nudged] = logits[nudged].flip(1)
    leaves = [values.requires_grad_() for values in logits]
    loss = strategy.loss(leaves, targets, TASK, phase, step)
    return torch.autograd.grad(loss.total, leaves)


def smaller_teach_larger(strategy: Strategy) -> bool:
    """Whether the gradient at some size changes with the predictions at a smaller one."""
    plain = gradients(strategy)
    return any(
        not torch.equal(gradients(strategy, nudged=smaller)[larger], plain[larger])
        for larger in range(len(plain))
        for smaller in range(larger)
    )


@every_strategy
def test_no_size_learns_from_a_smaller_one_unless_the_strategy_says_so(strategy: Strategy):
    assert smaller_teach_larger(strategy) == strategy.smaller_teach


class Ensemble(Simultaneous):
    """Every size learns the mean prediction of all."""

    smaller_teach = True  # type: ignore[assignment]

    def loss(self, logits, targets, task, phase, step):
        mean = torch.stack([scale_logits.detach() for scale_logits in logits]).mean(0).softmax(1)
        return Loss(torch.stack([task.loss(scale_logits, mean) for scale_logits in logits]).mean(), {})


def test_a_smaller_teacher_is_noticed():
    """The control of the promise above."""
    assert smaller_teach_larger(Ensemble((16, 24, 32)))


def weighted(form: str, weight: float) -> Strategy:
    return Simultaneous((16, 24, 32), consistency=form, consistency_weight=weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["kl", "mse", "js"])
def test_consistency_adds_no_gradient_at_the_largest_size_but_at_every_other(form: str):
    off, on = gradients(weighted(form, 0)), gradients(weighted(form, 1))
    assert torch.equal(on[-1], off[-1])
    for with_term, without in zip(on[:-1], off[:-1], strict=True):
        assert (with_term - without).abs().max() > 1e-4


@pytest.mark.parametrize("form", ["kl", "mse", "js"])
def test_consistency_reaches_the_larger_side_when_it_is_not_detached(form: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Tensor, "detach", lambda tensor: tensor)
    off, on = gradients(weighted(form, 0)), gradients(weighted(form, 1))
    assert (on[-1] - off[-1]).abs().max() > 1e-4
    assert smaller_teach_larger(weighted(form, 1))


@every_strategy
def test_loss_at_hand_computed_logits_is_the_mean_over_sizes_when_all_agree(strategy: Strategy):
    """All logits 0: each size has cross entropy log 10, and equal predictions are perfectly consistent.

    A share of the loss that comes from predictions instead of the labels is 0 then.
    """
    for phase in strategy.phases(BUDGETS[0]):
        step = strategy.step(phase, 0)
        logits = [torch.zeros(BATCH, CLASSES) for _ in step.sizes]
        loss = strategy.loss(logits, torch.arange(BATCH), TASK, phase, step)
        assert loss.total.item() == pytest.approx(2.302585 * labels_share(innermost(strategy), step), abs=1e-5)
        assert {f"loss/{size}px" for size in step.sizes} <= loss.parts.keys()


def labels_share(strategy: Strategy, step: Step) -> float:
    """The share of the labels in the loss, mean over the sizes of a step."""
    if isinstance(strategy, Sandwich):
        return 1 - strategy.consistency_share * (len(step.sizes) - 1) / len(step.sizes)
    if not isinstance(strategy, Simultaneous) or strategy.consistency_share == 0:
        return 1.0
    taught = len(step.sizes) - (strategy.consistency_teacher == "larger")
    return 1 - strategy.teaching.share_at(step.progress) * taught / len(step.sizes)


@every_strategy
def test_loss_takes_mixed_targets(strategy: Strategy):
    phase, step = every_step(strategy, BUDGETS[0])[-1]
    logits = [torch.randn(BATCH, CLASSES) for _ in step.sizes]
    hard = torch.arange(BATCH)
    soft = F.one_hot(hard, CLASSES).float()
    losses = [strategy.loss(logits, targets, TASK, phase, step).total for targets in (hard, soft)]
    torch.testing.assert_close(*losses)


@each_kind_and_slowly_its_variants
def test_a_strategy_trains(strategy: Strategy, tmp_path: Path):
    settings = Settings(
        synthetic_size=32,
        synthetic_count=96,
        batch_size=32,
        epochs=EPOCHS,
        label_smoothing=0.1,
        log_with="none",
        output_dir=tmp_path / "run",
    )
    summary = train(settings, strategy)
    assert summary["exit_reason"] == "done"
    assert summary["steps"] == sum(phase.steps for phase in strategy.phases(Budget(EPOCHS, 96, 32)))
    phases = strategy.phases(Budget(EPOCHS, 96, 32))
    assert summary["images_seen"] == sum(phase.steps * phase.batch_size for phase in phases)
    assert 0 < float(summary["final"]["train_loss"]) < 10
    assert set(summary["val"]) == set(summary["test"]) == {spec.name for spec in strategy.eval_specs()}
    assert summary["best_top1"] == summary["val"][strategy.selection().name]["top1"]
    tensors = load_file(tmp_path / "run" / "best" / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def phased(output: Path, **values) -> Settings:
    """Settings for `Phased(16, 32)`: 8 half steps in its first epoch, 4 steps in all others."""
    usual = {"epochs": 5, "log_with": "none", "num_workers": 1, "arch": "test_vit"}
    return Settings(**{**usual, **values}, synthetic_size=32, synthetic_count=96, batch_size=24, output_dir=output)


def test_a_run_that_stops_early_in_a_phase_that_counts_skips_later_phases(tmp_path: Path):
    whole = train(phased(tmp_path / "whole", epochs=6), Phased(16, 32))  # control
    assert (whole["exit_reason"], whole["steps"]) == ("done", 8 + 4 * 4 + 4)
    stopping = phased(tmp_path / "stopped", epochs=6, patience=1, min_delta=100)  # nothing can improve by 100 points
    stopped = train(stopping, Phased(16, 32))
    assert (stopped["exit_reason"], stopped["steps"]) == ("early stop", 8 + 2 * 4)


def test_dashboards_show_the_epoch_of_a_step_when_epochs_differ_in_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    found: list[tuple[int, float]] = []

    monkeypatch.setattr(Tracking, "log", lambda tracking, values, step, epoch: found.append((step, epoch)))
    monkeypatch.setattr(loop, "LOG_EVERY_STEPS_OF_SHORT", 2)
    train(phased(tmp_path / "run", epochs=3), Phased(16, 32))
    assert found == [(2, 0.25), (4, 0.5), (6, 0.75), (10, 1.5), (14, 2.5)]  # an epoch's last step is in its own row


class FrozenBackbone(nn.Module):
    """A backbone that never learns, and a head."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.backbone, self.head = nn.Conv2d(3, 4, 3).requires_grad_(False), nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x).mean((2, 3)))


@dataclasses.dataclass(frozen=True)
class PartFirst(Phased):
    part: str = "head"

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        first, *others = super().phases(budget)
        return (dataclasses.replace(first, trainable=(self.part,)), *others)


def test_a_phase_is_refused_when_the_model_froze_all_that_it_trains(tmp_path: Path):
    values = Settings(
        synthetic_size=32,
        synthetic_count=96,
        batch_size=24,
        epochs=3,
        log_with="none",
        num_workers=1,
        output_dir=tmp_path / "run",
    )
    with pytest.raises(InputError, match=r"Phase\.trainable backbone: phase 0 trains nothing, because the model froze"):
        train(values, PartFirst(16, 32, "backbone"), model=FrozenBackbone())
    assert not values.output_dir.exists()
    assert train(values, PartFirst(16, 32), model=FrozenBackbone())["exit_reason"] == "done"  # control


def test_micro_batches_that_differ_between_phases_change_nothing_that_is_learned(tmp_path: Path):
    found = []
    for name, size in (("whole", None), ("parts", 6)):
        alike = {"amp": False, "optimizer": "sgd", "record_samples": True, "device_batch_size": size}
        train(phased(tmp_path / name, **alike), Phased(16, 32))
        steps: dict[int, tuple[list[int], set[float]]] = {}
        lines = (tmp_path / name / "samples.jsonl").read_text().splitlines()
        for line in map(json.loads, lines):
            ids, rates = steps.setdefault(line["step"], ([], set()))
            ids.extend(line["ids"])
            rates.add(line["lr"])
        earlier, last = sorted((tmp_path / name / "checkpoints").glob("step-*"))[-2:]
        found.append((len(lines), steps, load_file(last / "model.safetensors")))
    (count, steps, whole), (parts_count, parts_steps, parts) = found
    before = load_file(earlier / "model.safetensors")
    assert count == len(steps) == 8 + 4 * 4
    assert parts_count == 8 * 2 + 4 * 4 * 4  # 12 / 6 and 24 / 6 micro-batches
    assert parts_steps == steps
    assert [len(ids) for ids, _ in steps.values()] == [12] * 8 + [24] * 16
    assert whole.keys() == parts.keys()
    assert all(torch.allclose(whole[key], parts[key], atol=1e-4) for key in whole)
    assert not all(torch.allclose(whole[key], before[key], atol=1e-4) for key in whole)  # control: an epoch earlier


@pytest.mark.parametrize(
    ("size", "scale"),
    [
        (20, 20),
        (32, 32),
        (64, 64),
        (25, 20),  # 25/20 = 1.25 < 32/25 = 1.28
        (26, 32),  # 26/20 = 1.30 > 32/26 = 1.23
        (45, 32),  # 45/32 = 1.41 < 64/45 = 1.42
        (46, 64),  # 46/32 = 1.44 > 64/46 = 1.39
        (8, 20),
        (224, 64),
    ],
)
def test_normalization_is_that_of_the_nearest_scale_in_log_size(size: int, scale: int):
    assert NormPolicy("full", (20, 32, 64)).scale_for(size) == scale


def test_normalization_is_that_of_the_larger_scale_when_two_are_equally_near():
    assert NormPolicy("full", (16, 64)).scale_for(32) == 64


def test_a_size_whose_phase_is_still_to_come_is_evaluated_with_the_nearest_normalization(tmp_path: Path):
    """Otherwise the best model would be chosen among evaluations with untrained normalization."""
    settings = Settings(
        synthetic_size=32, synthetic_count=200, batch_size=20, epochs=4, log_with="none", output_dir=tmp_path / "run"
    )
    train(settings, Finish(Simultaneous((16, 24)), 32))
    saved = sorted((tmp_path / "run" / "checkpoints").iterdir())
    before = load_file(saved[0] / "model.safetensors")  # the finish is still to come
    norms = [name for name in before if ".norms.32." in name]
    assert norms
    assert all(torch.equal(before[name], before[name.replace(".norms.32.", ".norms.24.")]) for name in norms)
    after = load_file(saved[-1] / "model.safetensors")
    assert any(not torch.equal(after[name], after[name.replace(".norms.32.", ".norms.24.")]) for name in norms)
