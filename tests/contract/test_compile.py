"""What `--compile` promises: one graph for each tuple of sizes, before the first step, and the same training."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import EXAMPLES
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._dynamo.utils import counters

from tests.conftest import SLOW
from toolkit import Settings, Strategy, train
from toolkit.models.multiview import state_tensors
from toolkit.runs.directory import RunDirectory
from toolkit.strategies import Progressive, Simultaneous
from toolkit.strategies.base import Step
from toolkit.training import device
from toolkit.training.parts import make_parts
from toolkit.training.run_plan import make_run_plan
from toolkit.training.train_state import TrainState, build_train_state

SIZES = (16, 24)


@dataclass(frozen=True)
class Alternating(Simultaneous):
    """One size a step."""

    def step(self, phase, i):
        return Step((phase.sizes[i % len(phase.sizes)],), phase.batch_size)


@pytest.fixture(autouse=True)
def traced() -> Iterator[None]:
    """torch traces and specializes graphs as for its default backend, but generates no code, which takes a minute."""
    torch._dynamo.reset()
    counters.clear()
    with torch.compiler.set_stance(force_backend="eager"):
        yield
    torch._dynamo.reset()


class Network(nn.Module):
    """With BatchNorm and dropout, and traced in less time than those of timm."""

    def __init__(self, num_classes: int = 10, dropout: float = 0.3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.body(x).mean((2, 3))))


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def settings(output: Path, **values) -> Settings:
    usual = {"epochs": 4, "batch_size": 24, "num_workers": 1, "log_with": "none", "amp": False, "compile": True}
    return Settings(**{**usual, **values}, synthetic_size=32, synthetic_count=48, output_dir=output)


def losses(output: Path) -> list[Any]:
    return [row.metrics["train_loss"] for row in RunDirectory(output).metrics()]


def seen_in_steps(monkeypatch: pytest.MonkeyPatch, strategy: Strategy) -> list[int]:
    """The number of graphs at each call of the strategy's loss, as they occur."""
    found: list[int] = []
    loss = type(strategy).loss

    def recorded(*values: Any) -> Any:
        found.append(graphs())
        return loss(*values)

    monkeypatch.setattr(type(strategy), "loss", recorded)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (Simultaneous(SIZES, consistency_weight=1.0), [1] * 8),
        (Progressive((16, 24, 32)), [1] * 2 + [2] * 2 + [3] * 4),
        (Alternating(SIZES), [2] * 8),
        (
            EXAMPLES["phased"],
            [1] * 4 + [2] * 4 + [3] * 2,
        ),  # in half batches at first, in which only the head learns
    ],
    ids=["simultaneous", "progressive", "alternating", "phased"],
)
def test_each_tuple_of_sizes_has_one_graph_before_its_first_step_and_trains_as_without(
    strategy: Strategy, expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    found = seen_in_steps(monkeypatch, strategy)
    network = Network()
    train(settings(tmp_path / "compiled"), strategy, model=network)
    assert found == expected
    assert graphs() == expected[-1]  # evaluation compiles nothing
    train(settings(tmp_path / "eager", compile=False), strategy, model=network)
    assert graphs() == expected[-1]
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-5)


def trained(output: Path) -> dict[str, Tensor]:
    return load_file(RunDirectory(output).store.committed()[-1] / "model.safetensors")


@pytest.mark.slow
def test_frozen_normalization_stays_as_it_is_when_it_is_compiled(tmp_path: Path):
    network = Network()

    def tensors(name: str, **values) -> dict[str, Tensor]:
        train(settings(tmp_path / name, **values), Simultaneous(SIZES), model=network)
        return trained(tmp_path / name)

    compiled = tensors("compiled", freeze_bn=True)
    assert graphs() == 1
    eager = tensors("eager", freeze_bn=True, compile=False)
    norms = {name for name in compiled if "body.1." in name}
    assert len(norms) == 2 * 5  # of two sizes: three statistics and two parameters
    fresh = {"weight": 1.0, "running_var": 1.0}
    assert all(bool((compiled[name] == fresh.get(name.rpartition(".")[2], 0)).all()) for name in norms)
    assert max(float((compiled[name] - eager[name]).abs().max()) for name in compiled) < 1e-5
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-5)
    free = tensors("free")  # control
    assert all(not torch.equal(free[name], compiled[name]) for name in norms if "running" in name)


@pytest.mark.slow
def test_graphs_are_those_of_micro_batches_and_not_limited_in_number(tmp_path: Path):
    with torch._dynamo.config.patch(recompile_limit=1):
        train(settings(tmp_path / "run", epochs=2, device_batch_size=12), Alternating(SIZES), model=Network())
        assert torch._dynamo.config.recompile_limit == 1
    assert graphs() == 2


@pytest.fixture
def state(tmp_path: Path) -> Iterator[TrainState]:
    """Before its first step."""
    values = settings(tmp_path / "run")
    accelerator = device.start(values)
    try:
        parts = make_parts(values, Alternating(SIZES), model=Network())
        yield build_train_state(accelerator, make_run_plan(accelerator, *parts))[0]
    finally:
        device.stop()


def views(state: TrainState, *sizes: int) -> tuple[Tensor, ...]:
    return state.views(torch.zeros(24, sizes[-1], sizes[-1], 3, dtype=torch.uint8).permute(0, 3, 1, 2), sizes)


def everything(state: TrainState) -> dict[str, Tensor]:
    """All that a step changes."""
    model, accelerator = state.weights.model, state.accelerator
    counts = (accelerator.step, accelerator.sync_gradients, state.weights.updates, len(state.optimizer.state))
    gradients = {f"gradient {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    tensors = {name: tensor.clone() for name, tensor in (state_tensors(model) | gradients).items()}
    return {**tensors, "counts": torch.tensor(counts), "first bad": state.non_finite.first_bad.clone()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before.keys() | after.keys() if not _same(before.get(name), after.get(name))}


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)


def test_building_a_graph_changes_no_state(state: TrainState):
    before = everything(state)
    state.compile(SIZES, 24)
    assert graphs() == 1
    assert changed(before, everything(state)) == set()
    torch.stack(state.model(*views(state, *SIZES))).sum().backward()  # control: the same step with its traces
    assert {"model.body.1.norms.16.running_mean", "gradient model.head.weight"} <= changed(before, everything(state))
    assert graphs() == 1


def test_another_graph_is_counted_when_a_step_has_a_size_that_was_not_built(state: TrainState):
    """The control of the counts above."""
    for size in (*SIZES, *SIZES):
        state.compile((size,), 24)
    assert graphs() == 2
    state.model(*views(state, 24))
    assert graphs() == 2
    state.model(*views(state, 20))
    assert graphs() == 3


@SLOW
def test_compiled_code_trains_like_the_model(tmp_path: Path):
    network = Network(dropout=0)  # compiled code draws its own random numbers
    with torch.compiler.set_stance("default"):
        train(settings(tmp_path / "compiled"), Alternating(SIZES), model=network)
    assert graphs() == 2
    train(settings(tmp_path / "eager", compile=False), Alternating(SIZES), model=network)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-3)
