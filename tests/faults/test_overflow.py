"""A step whose scaled gradient overflows: the data was consumed, the weights were not moved.

A gradient scaler works on the CPU too, where a scale near the end of float32 makes real overflows.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from toolkit import NonFiniteError, Settings, SingleScale, train
from toolkit.models.ema import Ema
from toolkit.runs.directory import RunDirectory
from toolkit.strategies.base import BoundTask, Loss, Phase, Step, Strategy
from toolkit.training import device, loop, train_state
from toolkit.training.monitor import NonFiniteMonitor

STEPS, BATCH = 8, 10
USUAL, TOO_LARGE = 2.0**16, 2.0**125
FALL = 2.0**-45  # a few overflows, then none


def scaled(monkeypatch: pytest.MonkeyPatch, scale: float, fused: bool, fall: float = FALL) -> None:
    """Let runs have a gradient scaler that begins at `scale`, and an optimizer that handles it itself if `fused`."""
    start = device.start

    def with_scaler(settings: Settings) -> Accelerator:
        accelerator = start(settings)
        kind = accelerator.device.type
        accelerator.scaler = torch.amp.GradScaler(kind, init_scale=scale, backoff_factor=fall, growth_interval=1000)
        return accelerator

    monkeypatch.setattr(device, "start", with_scaler)
    if fused:

        def create(settings: Settings, model: torch.nn.Module, scales: dict[str, float]) -> torch.optim.Optimizer:
            return torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, fused=True)

        monkeypatch.setattr(train_state, "create_optimizer", create)


def run(output: Path, strategy: Strategy = SingleScale(24)) -> dict[str, Any]:  # noqa: B008
    settings = Settings(
        synthetic_size=32,
        synthetic_count=40,
        batch_size=BATCH,
        epochs=2,
        ema_decay=0.9,
        log_with="none",
        record_samples=True,
        output_dir=output,
    )
    return train(settings, strategy)


@dataclass(frozen=True)
class Steep(SingleScale):
    """A finite loss whose gradient is none, however small the scale: the root of 0."""

    def loss(self, logits: Sequence[Tensor], targets: Tensor, task: BoundTask, phase: Phase, step: Step) -> Loss:
        loss = super().loss(logits, targets, task, phase, step)
        return replace(loss, total=loss.total + (0 * logits[0].sum()).sqrt())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scale", [USUAL, TOO_LARGE])
def test_data_rate_and_step_advance_but_weights_and_average_do_not_when_a_step_overflows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fused: bool, scale: float
):
    scaled(monkeypatch, scale, fused)
    followed: list[int] = []
    moved: list[bool] = []
    train_step, follow = loop.train_step, Ema.follow

    def watching(learning: Any, *words: Any) -> Any:
        parameter = next(learning.model.parameters())
        before = parameter.detach().clone()
        loss = train_step(learning, *words)
        moved.append(not torch.equal(before, parameter))
        return loss

    monkeypatch.setattr(loop, "train_step", watching)
    monkeypatch.setattr(Ema, "follow", lambda ema: (followed.append(ema.updates), follow(ema)))
    summary = run(tmp_path / "run")
    assert len(moved) == STEPS
    assert moved[-1]
    assert all(moved) == (scale == USUAL)
    assert (summary["steps"], summary["images_seen"]) == (STEPS, STEPS * BATCH)
    assert summary["optimizer_updates"] == sum(moved) == len(followed)
    lines = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(STEPS))
    assert len({line["lr"] for line in lines}) == STEPS  # it goes on at each step
    trainer = json.loads((tmp_path / "run/checkpoints/step-000000008/trainer.json").read_text())
    assert trainer["progress"]["optimizer_updates"] == sum(moved)
    assert trainer["scaler"]["scale"] == scale * FALL ** moved.count(False)
    last = RunDirectory(tmp_path / "run").metrics()[-1].metrics
    assert int(last["skipped_steps"]) == moved.count(False)
    assert float(last["gradient_scale"]) == trainer["scaler"]["scale"]
    assert 0 < float(last["gradient_norm"]) < float("inf")  # of the steps that were taken


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("control", [False, True])
def test_a_run_stops_in_the_step_that_brings_the_scale_below_one_when_every_step_overflows(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fused: bool,
    control: bool,
):
    scaled(monkeypatch, 16.0, fused, fall=0.5)
    if control:
        monkeypatch.setattr(NonFiniteMonitor, "see_scale", lambda *words: None)
        assert run(tmp_path / "run", Steep(24))["optimizer_updates"] == 0
        assert "none of the 8 steps moved the weights: all overflowed in float16; " in capsys.readouterr().err
        return
    with pytest.raises(NonFiniteError, match=r"not finite at step 4 \(epoch 2\), samples \d+"):
        run(tmp_path / "run", Steep(24))
    assert "at step 4" in json.loads((tmp_path / "run" / "summary.json").read_text())["exit_reason"]
