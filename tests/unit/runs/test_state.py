"""What a checkpoint holds is all that training needs, bit for bit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm.optim
import torch
from torch import nn

from toolkit.models import optimizer_state
from toolkit.models.multiview import copy_state, state_tensors
from toolkit.runs import checkpoint
from toolkit.runs.checkpoint import Store
from toolkit.runs.progress import Progress
from toolkit.training.generators import seed_generators

# All of timm's but those that need CUDA and a package beside torch, and the one that needs gradients of gradients.
OPTIMIZERS = [name for name in timm.optim.list_optimizers() if not name.startswith(("bnb", "fused", "adahessian"))]


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))


def optimizer_of(name: str, model: nn.Module) -> torch.optim.Optimizer:
    return timm.optim.create_optimizer_v2(model, opt=name, lr=0.01, weight_decay=0.05)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Steps on random images, so that the global generator counts."""
    for _ in range(steps):
        model(torch.randn(2, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def through_the_disk(root: Path, contents: dict[str, Any]) -> dict[str, Any]:
    return checkpoint.load(Store(root).commit(2, contents, {}))


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """One optimizer compiles its kernels, which takes longer than all tests here."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_bit_for_bit_when_everything_is_restored(tmp_path: Path, uncompiled: None, name: str):
    model = network(0)
    optimizer = optimizer_of(name, model)
    train_step(model, optimizer, 2)
    tensors, rest = optimizer_state.split_optimizer(optimizer.state_dict())
    contents = {
        "model.safetensors": optimizer_state.on_cpu(state_tensors(model)),
        "o.safetensors": tensors,
        "o.json": rest,
    }
    seed_generators(0, 2)
    train_step(model, optimizer, 3)  # what was captured is not touched by it
    held = through_the_disk(tmp_path, contents)

    other = network(1)
    moving = optimizer_of(name, other)
    copy_state(held["model.safetensors"], other)
    moving.load_state_dict(optimizer_state.join_optimizer(held["o.safetensors"], held["o.json"]))
    seed_generators(0, 2)
    train_step(other, moving, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    assert not torch.equal(model[0].weight, held["model.safetensors"]["0.weight"])


def test_any_nesting_is_the_same_when_read_back(tmp_path: Path):
    whole = {
        "state": {0: {"Q": [torch.tensor([1.5]), [torch.tensor(2), None]]}, 1: {}},
        "param_groups": [{"betas": (0.9, 0.1 + 0.2), "step": torch.tensor(3.0), "dtype": torch.bfloat16, "1": ()}],
        "rng_state": (3, (2**64 - 1, True), None),
        "tensor": {"tensor": "x"},  # one of the words that stand for what JSON lacks
    }
    tensors, rest = optimizer_state.split_optimizer(whole)
    assert tensors.keys() == {"state.0.Q.0", "state.0.Q.1.0", "param_groups.0.step"}
    held = through_the_disk(tmp_path, {"o.safetensors": tensors, "o.json": rest})
    assert repr(optimizer_state.join_optimizer(held["o.safetensors"], held["o.json"])) == repr(whole)


@pytest.mark.parametrize("value", [{1, 2}, 1j, {1.5: 0}, torch.Generator(), lambda: 0])
def test_a_state_is_refused_with_its_place_when_it_is_not_plain_data(value: Any):
    with pytest.raises(TypeError, match=rf"^state\.0\.x is a {type(value).__name__}$"):
        optimizer_state.split_optimizer({"state": {0: {"x": value}}, "param_groups": []})


def test_training_goes_elsewhere_when_the_optimizer_is_not_restored():
    """The control of the test before."""
    model, other = network(0), network(1)
    optimizer = optimizer_of("adamw", model)
    train_step(model, optimizer, 2)
    copy_state(state_tensors(model), other)
    seed_generators(0, 2)
    train_step(model, optimizer, 3)
    seed_generators(0, 2)
    train_step(other, optimizer_of("adamw", other), 3)
    assert not torch.equal(model[0].weight, other[0].weight)


def test_progress_is_the_same_when_read_back(tmp_path: Path):
    progress = Progress(step=7, best_score=93.75, best={"epoch": 2, "step": 6}, inexact=["x"])
    held = through_the_disk(tmp_path, {"trainer.json": {"progress": vars(progress)}})
    other = Progress()
    other.become(Progress(**held["trainer.json"]["progress"]))
    assert other == progress
    assert other.best_step == 6
