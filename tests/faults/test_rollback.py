"""A loss that is not finite: back to the last checkpoint, the images in another order, three times at most."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from victim import ROOT

from tests.conftest import PATIENCE_S, SLOW, TORCHRUN
from toolkit import NonFiniteError, Settings, train
from toolkit.data.loading.sampler import Sampler
from toolkit.runs import best_model
from toolkit.system import files
from toolkit.training import epoch_end, loop

sys.path.insert(0, str(ROOT / "tests" / "distributed"))
import poisoned
from poisoned import Poisoned, write_manifest

IMAGES, BATCH, EPOCHS = 100, 40, 3


def together(sampler: Sampler, pair: tuple[int, int], epoch: int, rollbacks: int) -> bool:
    """Whether two images are in the same step of an epoch."""
    steps = sampler.permutation(epoch, rollbacks)[: 2 * BATCH].reshape(2, BATCH)
    return any(np.isin(pair, step).all() for step in steps)


@pytest.fixture(scope="module")
def pairs() -> list[tuple[int, int]]:
    """Images that meet in the second epoch: as the run starts, but not once it went back; and at every attempt."""
    sampler = Sampler(IMAGES, 0, Poisoned(32))
    candidates = list(itertools.combinations(range(IMAGES), 2))

    def meets(pair: tuple[int, int]) -> list[bool]:
        first = [together(sampler, pair, 0, 0), together(sampler, pair, 1, 0)]
        return [*first, together(sampler, pair, 1, 1), together(sampler, pair, 2, 1)]

    once = next(pair for pair in candidates if meets(pair) == [False, True, False, False])
    always = next(
        pair
        for pair in candidates
        if not together(sampler, pair, 0, 0) and all(together(sampler, pair, 1, n) for n in range(4))
    )
    return [once, always]


def settings(folder: Path, on_divergence: str = "rollback") -> Settings:
    return Settings(
        data_root=str(folder),
        arch="test_resnet",
        epochs=EPOCHS,
        batch_size=BATCH,
        log_with="none",
        record_samples=True,
        on_divergence=on_divergence,
        output_dir=folder / "run",
    )


def delivered(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / "samples.jsonl").read_text().splitlines()]


def weights(folder: Path) -> bytes:
    return (folder / "run" / "checkpoints" / f"step-{2 * EPOCHS:09d}" / "model.safetensors").read_bytes()


STRATEGY = Poisoned(32, least=2)


def test_a_run_goes_back_and_ends_well_when_another_order_avoids_the_cause(
    tmp_path: Path, pairs: list[tuple[int, int]], capsys: pytest.CaptureFixture[str]
):
    write_manifest(tmp_path, IMAGES, pairs[0])
    summary = train(settings(tmp_path), STRATEGY)
    assert (summary["exit_reason"], summary["rollbacks"], summary["steps"]) == ("done", 1, 6)
    text = capsys.readouterr().err
    assert "the loss or its gradient is not finite at step" in text
    assert "rollback 1 of 3: continuing from" in text
    sampler = Sampler(IMAGES, 0, STRATEGY)
    orders = [sampler.permutation(epoch, rollbacks)[: 2 * BATCH] for epoch, rollbacks in ((0, 0), (1, 1), (2, 1))]
    assert [i for line in delivered(tmp_path) for i in line["ids"]] == np.concatenate(orders).tolist()
    assert [line["step"] for line in delivered(tmp_path)] == list(range(6))
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 1 + EPOCHS


def test_a_run_stops_when_it_was_not_told_to_go_back(tmp_path: Path, pairs: list[tuple[int, int]]):
    write_manifest(tmp_path, IMAGES, pairs[0])
    with pytest.raises(NonFiniteError, match=r"--gradient-clip$"):
        train(settings(tmp_path, "stop"), STRATEGY)
    summary = train(settings(tmp_path, "rollback"), STRATEGY)  # which may be said later
    assert (summary["exit_reason"], summary["rollbacks"]) == ("done", 1)


def test_a_run_stops_when_there_is_nothing_to_go_back_to(tmp_path: Path):
    write_manifest(tmp_path, IMAGES, range(90))  # two in any 40 of the 100
    with pytest.raises(NonFiniteError, match=r"\(no checkpoint to go back to: --save-every-steps saves"):
        train(settings(tmp_path), STRATEGY)


def test_a_run_stops_when_it_diverges_after_the_third_rollback(tmp_path: Path, pairs: list[tuple[int, int]]):
    write_manifest(tmp_path, IMAGES, pairs[1])
    with pytest.raises(NonFiniteError, match=r"\(after 3 rollbacks\)"):
        train(settings(tmp_path), STRATEGY)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "after 3 rollbacks" in summary["exit_reason"]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000000002"]


def damaging(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have the newest checkpoint damaged before each rollback; returns the names of those that were."""
    roll_back, damaged = loop.roll_back, []

    def after_damage(run: Any, error: NonFiniteError) -> None:
        run.records.saver.join(run.state.progress.step)
        newest = run.records.directory.store.newest()
        content = bytearray((newest / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (newest / "model.safetensors").write_bytes(content)
        damaged.append(newest.name)
        roll_back(run, error)

    monkeypatch.setattr(loop, "roll_back", after_damage)
    return damaged


def test_a_run_goes_back_further_when_the_last_checkpoint_is_damaged(
    tmp_path: Path, pairs: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    write_manifest(tmp_path, IMAGES, pairs[0])
    damaged = damaging(monkeypatch)
    chosen = settings(tmp_path).model_copy(update={"save_every_steps": 1})
    assert train(chosen, STRATEGY)["exit_reason"] == "done"
    text = capsys.readouterr().err
    assert "model.safetensors was changed since it was saved; set aside as" in text
    before = f"step-{int(damaged[0][5:]) - 1:09d}"
    assert f"continuing from {tmp_path / 'run' / 'checkpoints' / before}, images in another order" in text


def test_the_best_model_is_one_that_counts_when_a_run_went_back_past_a_better_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sampler = Sampler(IMAGES, 0, STRATEGY)
    orders = [(0, 0), (1, 0), (2, 0), (1, 1), (2, 1)]
    pair = next(
        pair
        for pair in itertools.combinations(range(IMAGES), 2)
        if [together(sampler, pair, *order) for order in orders] == [False, False, True, False, False]
    )
    write_manifest(tmp_path, IMAGES, pair)
    select, top1 = epoch_end.select, iter([30.0, 50.0, 5.0, 6.0])  # of epochs 0, 1, 1 once more, 2
    monkeypatch.setattr(
        epoch_end,
        "select",
        lambda settings, progress, metric, _, last: select(settings, progress, metric, next(top1), last),
    )
    assert damaging(monkeypatch) == []
    summary = train(settings(tmp_path), STRATEGY)
    assert (summary["rollbacks"], summary["best_epoch"], summary["best_top1"]) == (1, 0, 30.0)
    tensors, metadata = best_model.load(tmp_path / "run" / "best")
    assert (metadata["epoch"], metadata["step"]) == (0, 2)
    saved = load_file(tmp_path / "run" / "checkpoints" / "step-000000002" / "model.safetensors")
    assert all(torch.equal(tensors[name], saved[name]) for name in tensors)


@pytest.fixture(scope="module")
def met_once() -> tuple[int, int]:
    """A seed, and an image that the second of two processes meets in the second epoch, but never after a rollback."""
    for seed in range(100):
        sampler = Sampler(IMAGES, seed, Poisoned(32))
        orders = [(0, 0), (1, 1), (2, 1)]
        avoided = set(range(IMAGES)).difference(*(sampler.permutation(*order)[: 2 * BATCH] for order in orders))
        met = avoided & {*sampler.permutation(1)[: 2 * BATCH].reshape(2, 2, BATCH // 2)[:, 1].ravel().tolist()}
        if met:
            return seed, min(met)
    raise AssertionError("none of the seeds does")


def by_step(output: Path) -> list[list[int]]:
    """The images of each step, of all processes together."""
    lines = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    lines.sort(key=lambda line: (line["step"], line["rank"]))
    return [[i for line in lines if line["step"] == step for i in line["ids"]] for step in range(2 * EPOCHS)]


@SLOW
def test_two_processes_go_back_to_the_same_checkpoint_and_see_what_one_sees(
    tmp_path: Path, met_once: tuple[int, int], capsys: pytest.CaptureFixture[str]
):
    seed, image = met_once
    write_manifest(tmp_path, IMAGES, [image])
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(poisoned.settings(tmp_path, one, seed=seed), Poisoned(32))["rollbacks"] == 1
    back = f"rollback 1 of 3: continuing from {one}/checkpoints/step-000000002, images in another order"
    assert back in capsys.readouterr().err
    launch = [*TORCHRUN, poisoned.__file__, str(tmp_path), str(two), "both", str(seed)]
    done = subprocess.run(launch, env={**os.environ}, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(back.replace(str(one), str(two))) == 2  # each process says so
    summary = json.loads((two / "summary.json").read_text())
    assert (summary["exit_reason"], summary["rollbacks"], summary["steps"]) == ("done", 1, 2 * EPOCHS)
    assert summary["processes"] == 2
    assert by_step(two) == by_step(one)
    assert image not in {i for step in by_step(two) for i in step}


def test_a_run_goes_back_to_the_checkpoint_that_is_still_being_written(
    tmp_path: Path, pairs: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The disk is slow: the step that diverges comes before the checkpoint of the step before is committed."""
    write_manifest(tmp_path, IMAGES, pairs[0])
    chosen = settings(tmp_path).model_copy(update={"save_every_steps": 1})
    train(chosen, STRATEGY)
    at_once = delivered(tmp_path), weights(tmp_path)
    step = re.search(r"not finite at step (\d+)", capsys.readouterr().err)[1]
    shutil.rmtree(tmp_path / "run")

    sync, roll_back, asked = files.sync, loop.roll_back, threading.Event()

    def slow(path: Path) -> None:
        if path.match(f".tmp-step-{int(step):09d}/model.safetensors"):
            assert asked.wait(PATIENCE_S)
            time.sleep(1)
        sync(path)

    def noting(run: Any, error: NonFiniteError) -> None:
        asked.set()
        roll_back(run, error)

    monkeypatch.setattr(files, "sync", slow)
    monkeypatch.setattr(loop, "roll_back", noting)
    assert train(chosen, STRATEGY)["rollbacks"] == 1
    start = tmp_path / "run" / "checkpoints" / f"step-{int(step):09d}"
    assert f"continuing from {start}, images in another order" in capsys.readouterr().err
    assert (delivered(tmp_path), weights(tmp_path)) == at_once
