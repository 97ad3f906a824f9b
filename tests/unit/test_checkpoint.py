"""Checkpoints are whole, verified and bit-exact."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from toolkit import InputError, checkpoint
from toolkit.checkpoint import KEEP, Progress
from toolkit.models import copy_state, state_tensors

OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "plain": lambda parameters: torch.optim.SGD(parameters, lr=0.01),
}


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Steps on random images, so that the global generator counts."""
    for _ in range(steps):
        model(torch.randn(2, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def saved(root: Path, step: int = 3, optimizer: str = "adamw") -> Path:
    """A committed checkpoint of a small network after two steps."""
    model = network(0)
    moving = OPTIMIZERS[optimizer](model.parameters())
    learn(model, moving, 2)
    staging = checkpoint.stage(root, step)
    checkpoint.save(
        staging, state_tensors(model), moving.state_dict(), Progress(step=step, best_top1=51.25), None, "data"
    )
    checkpoint.save_generators(staging, 0)
    return checkpoint.commit(staging, step)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_bit_for_bit_when_everything_is_restored(tmp_path: Path, name: str):
    model = network(0)
    optimizer = OPTIMIZERS[name](model.parameters())
    learn(model, optimizer, 2)
    staging = checkpoint.stage(tmp_path, 2)
    checkpoint.save(staging, state_tensors(model), optimizer.state_dict(), Progress(step=2), None, "data")
    checkpoint.save_generators(staging, 0)
    path = checkpoint.commit(staging, 2)
    learn(model, optimizer, 3)

    other = network(1)
    moving = OPTIMIZERS[name](other.parameters())
    snapshot = checkpoint.load(path, 0)
    copy_state(snapshot.model, other)
    moving.load_state_dict(snapshot.optimizer)
    assert snapshot.generators is not None
    checkpoint.restore_generators(snapshot.generators)
    learn(other, moving, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_training_goes_elsewhere_when_the_optimizer_is_not_restored(tmp_path: Path):
    """The control of the test before."""
    model, other = network(0), network(1)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    learn(model, optimizer, 2)
    copy_state(state_tensors(model), other)
    states = checkpoint.generator_state()
    learn(model, optimizer, 3)
    checkpoint.restore_generators(states)
    learn(other, OPTIMIZERS["adamw"](other.parameters()), 3)
    assert not torch.equal(model[0].weight, other[0].weight)


def draws() -> tuple:
    return (
        torch.randn(3).tolist(),
        random.random(),
        random.gauss(0, 1),
        np.random.random(3).tolist(),
        np.random.standard_normal(1).tolist(),
    )


@pytest.mark.parametrize("half_used", [False, True])
def test_all_generators_draw_the_same_when_restored(tmp_path: Path, half_used: bool):
    torch.manual_seed(3)
    random.seed(4)
    np.random.seed(5)
    if half_used:  # one of a pair of normal draws is kept for the next call
        random.gauss(0, 1)
        np.random.standard_normal()
    path = saved_generators(tmp_path)
    expected = draws()
    assert draws() != expected  # control
    snapshot = checkpoint.load(path, 0)
    assert snapshot.generators is not None
    checkpoint.restore_generators(snapshot.generators)
    assert draws() == expected


def saved_generators(root: Path) -> Path:
    staging = checkpoint.stage(root, 1)
    checkpoint.save(staging, {"x": torch.zeros(1)}, {"param_groups": [], "state": {}}, Progress(), None, "data")
    checkpoint.save_generators(staging, 0)
    return checkpoint.commit(staging, 1)


def test_progress_and_scaler_are_the_same_when_read_back(tmp_path: Path):
    progress = Progress(7, 168, 93.75, 2, 1, 2, 0.5, False, 1.5, 2.25)
    scaler = {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 7}
    staging = checkpoint.stage(tmp_path, 7)
    checkpoint.save(staging, {"x": torch.zeros(1)}, {"param_groups": [], "state": {}}, progress, scaler, "data")
    snapshot = checkpoint.load(checkpoint.commit(staging, 7), 0)
    assert (snapshot.progress, snapshot.scaler, snapshot.data) == (progress, scaler, "data")


def test_generators_are_absent_when_fewer_processes_saved_them(tmp_path: Path):
    path = saved(tmp_path)
    assert checkpoint.load(path, 0).generators is not None
    assert checkpoint.load(path, 1).generators is None


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "optimizer.safetensors", "optimizer.json", "trainer.json", "rng/rank-00000.safetensors"],
)
@pytest.mark.parametrize("where", [0, 0.5, 1])
def test_a_file_is_named_when_one_of_its_bits_flipped(tmp_path: Path, name: str, where: float):
    path = saved(tmp_path)
    checkpoint.load(path, 0)  # control
    content = bytearray((path / name).read_bytes())
    content[round(where * (len(content) - 1))] ^= 1
    (path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{path / name}: the file changed"):
        checkpoint.load(path, 0)


@pytest.mark.parametrize("name", ["MANIFEST.json", "COMMITTED"])
def test_a_checkpoint_does_not_count_when_its_manifest_or_mark_changed(tmp_path: Path, name: str):
    path = saved(tmp_path)
    content = bytearray((path / name).read_bytes())
    content[20] ^= 1
    (path / name).write_bytes(content)
    assert not checkpoint.is_committed(path)
    with pytest.raises(InputError, match=rf"{path}: not a committed checkpoint"):
        checkpoint.load(path, 0)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.json", "MANIFEST.json", "COMMITTED"])
@pytest.mark.parametrize("spoil", [lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes()[:-1])])
def test_a_checkpoint_does_not_count_when_a_file_is_missing_or_short(tmp_path: Path, name: str, spoil):
    older, newer = saved(tmp_path, 3), saved(tmp_path, 6)
    spoil(newer / name)
    if name != "COMMITTED" or not (newer / name).exists():
        assert checkpoint.committed(tmp_path) == [older]
    else:  # a mark that lacks only its line break is whole
        assert checkpoint.committed(tmp_path) == [older, newer]


def test_a_folder_does_not_count_when_it_was_never_committed(tmp_path: Path):
    whole = saved(tmp_path, 3)
    shutil.copytree(whole, tmp_path / "step-000000009")
    (tmp_path / "step-000000009" / "COMMITTED").unlink()
    checkpoint.stage(tmp_path, 12)  # killed while it was written
    (tmp_path / "step-000000015").mkdir()
    assert checkpoint.committed(tmp_path) == [whole]
    assert checkpoint.committed(tmp_path / "nowhere") == []


def test_the_last_two_are_kept_when_more_are_committed(tmp_path: Path):
    assert KEEP >= 2
    for step in range(1, 6):
        saved(tmp_path, step)
    assert [path.name for path in checkpoint.committed(tmp_path)] == ["step-000000004", "step-000000005"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000004", "step-000000005"]


def test_steps_are_ordered_by_number_when_they_have_more_digits(tmp_path: Path):
    for step in (999, 1000):
        saved(tmp_path, step)
    assert checkpoint.committed(tmp_path)[-1] == checkpoint.checkpoint_path(tmp_path, 1000)


def test_a_step_is_replaced_when_it_is_committed_again(tmp_path: Path):
    first = checkpoint.load(saved(tmp_path, 3, "momentum"), 0)
    again = checkpoint.load(saved(tmp_path, 3, "adamw"), 0)
    assert len(checkpoint.committed(tmp_path)) == 1
    assert set(first.optimizer["state"][0]) == {"momentum_buffer"}
    assert set(again.optimizer["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}


def test_leftovers_are_cleared_when_a_step_is_staged_again(tmp_path: Path):
    (checkpoint.stage(tmp_path, 3) / "half.safetensors").write_bytes(b"half")
    assert [path.name for path in checkpoint.stage(tmp_path, 3).iterdir()] == ["rng"]


def test_the_best_model_is_the_same_when_read_back_and_replaced(tmp_path: Path):
    for seed in range(2):
        state = state_tensors(network(seed))
        checkpoint.save_best(tmp_path / "best", state, {"epoch": seed})
        found, facts = checkpoint.load_best(tmp_path / "best")
        assert facts == {"epoch": seed}
        assert set(found) == set(state)
        assert all(torch.equal(found[name], state[name]) for name in state)
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("content", [None, b"", b"not safetensors at all"])
def test_the_best_model_is_refused_with_its_file_when_it_cannot_be_read(tmp_path: Path, content: bytes | None):
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors: the best model cannot be read"):
        checkpoint.load_best(tmp_path)
