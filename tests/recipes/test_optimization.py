"""Clipping, early stopping, plateau schedule, moving average and clock, seen in what a run leaves behind."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from toolkit import Settings, Simultaneous, SingleScale, train
from toolkit.models.create import create
from toolkit.models.inspection import plan_model
from toolkit.models.multiview import state_tensors
from toolkit.strategies.base import NormPolicy

TINY = {"synthetic_count": 120, "synthetic_size": 32, "batch_size": 24, "log_with": "none", "num_workers": 1}


def _step_length(folder: Path, **settings: object) -> float:
    """How far plain SGD (learning rate 1) moves the parameters in the only step of a run."""
    chosen = Settings(
        **{**TINY, "synthetic_count": 24, "epochs": 1, "warmup_epochs": 0, "optimizer": "momentum"},
        **{"learning_rate": 1.0, "weight_decay": 0.0, "output_dir": folder, **settings},
    )
    train(chosen, SingleScale(32))
    fresh = create(chosen, plan_model(chosen, 10, [32]).arguments, NormPolicy("off", (32,)))
    after = load_file(folder / "checkpoints" / "step-000000001" / "model.safetensors")
    parameters = {name for name, _ in fresh.named_parameters()}
    moved = [(after[name] - tensor).flatten() for name, tensor in state_tensors(fresh).items() if name in parameters]
    return torch.cat(moved).norm().item()


def test_the_gradient_is_clipped_once_per_step_when_micro_batches_are_accumulated(tmp_path: Path):
    # The rate in the middle of a cosine over one step is half its peak, so a clipped step is half the bound long.
    assert _step_length(tmp_path / "free", device_batch_size=6) > 0.1
    clipped = _step_length(tmp_path / "clipped", device_batch_size=6, gradient_clip=0.01)
    assert clipped == pytest.approx(0.005, rel=1e-3)


def test_training_stops_early_when_patience_runs_out(tmp_path: Path):
    settings = Settings(**TINY, epochs=6, patience=2, min_delta=100, output_dir=tmp_path / "run")  # nothing is enough
    summary = train(settings, SingleScale(32))
    assert summary["exit_reason"] == "early stop"
    assert summary["steps"] == 3 * 5  # the first epoch and two without improvement
    assert train(settings, SingleScale(32))["steps"] == 15  # a stopped run is finished


def test_the_rate_is_halved_when_the_plateau_schedule_sees_no_improvement(tmp_path: Path):
    settings = Settings(
        **TINY, epochs=4, scheduler="plateau", min_delta=100, warmup_epochs=0, output_dir=tmp_path / "run"
    )
    summary = train(settings, SingleScale(32))
    assert float(summary["final"]["lr"]) == pytest.approx(settings.learning_rate / 2)


def test_the_moving_average_is_evaluated_and_exported_when_it_is_on(tmp_path: Path):
    settings = Settings(**TINY, epochs=3, ema_decay=0.9, keep=5, output_dir=tmp_path / "run")
    strategy = Simultaneous((16, 32))
    summary = train(settings, strategy)
    step = summary["steps"] // 3 * (summary["best_epoch"] + 1)
    saved = tmp_path / "run" / "checkpoints" / f"step-{step:09d}"
    average, weights = load_file(saved / "ema.safetensors"), load_file(saved / "model.safetensors")
    best = load_file(tmp_path / "run" / "best" / "model.safetensors")
    assert average.keys() == weights.keys() == best.keys()
    assert all(torch.equal(best[name], average[name]) for name in best)
    apart = [name for name in best if not torch.equal(best[name], weights[name])]
    assert {name for name in apart if "16.running_var" in name}  # statistics of each scale are averaged too
    assert summary["raw"].keys() == summary["val"].keys()
    assert summary["raw"]["32px"]["loss"] != summary["val"]["32px"]["loss"]
    assert "raw" not in train(Settings(**TINY, epochs=1, output_dir=tmp_path / "plain"), strategy)


def test_checkpoints_are_written_within_an_epoch_when_the_clock_says_so(tmp_path: Path):
    settings = Settings(**TINY, epochs=2, save_every_minutes=1e-6, keep=100, output_dir=tmp_path / "often")
    train(settings, SingleScale(32))
    steps = [int(path.name[5:]) for path in sorted((tmp_path / "often" / "checkpoints").iterdir())]
    assert steps == list(range(1, 11))
    train(settings.model_copy(update={"save_every_minutes": 10.0, "output_dir": tmp_path / "usual"}), SingleScale(32))
    assert sorted(path.name for path in (tmp_path / "usual" / "checkpoints").iterdir()) == [
        "step-000000005",
        "step-000000010",
    ]
