"""Padded crops are the same on one process and two, and after a resume, on images that are not square."""

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import PATIENCE_S, ROOT, write_folders
from tests.forkserver import run_ranks

pytestmark = pytest.mark.slow
RECIPE = ROOT / "recipes" / "multiscale.py"
LAST = "step-000000008"  # 4 epochs of 2 steps


def command(data: Path, output: Path, *more: str) -> list[str]:
    return [
        *("--data-root", str(data), "--output-dir", str(output), "--log-with", "none", "--record-samples"),
        *("--arch", "test_vit", "--scales", "16,32", "--epochs", "4", "--batch-size", "12", "--crop-scale", "0.4"),
        *("--optimizer", "sgd", "--learning-rate", "0.05", "--no-amp", "--cache", "off"),
        *more,
    ]


def start(data: Path, output: Path, *more: str) -> Path:
    assert runpy.run_path(str(RECIPE))["main"](command(data, output, *more)) == 0
    return output


def digests(run: Path) -> dict[tuple[int, int], int]:
    """(step, image) -> digest of the augmented pixels that were delivered."""
    entries = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    return {
        (entry["step"], sample): digest
        for entry in entries
        for sample, digest in zip(entry["ids"], entry["digests"], strict=True)
    }


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / LAST / "model.safetensors")


def scores(run: Path) -> dict[str, Any]:
    summary = json.loads((run / "summary.json").read_text())
    return {size: score["top1"] for size, score in summary["val"].items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs with `--fit pad` on one process and two, and one that crops."""
    folder = tmp_path_factory.mktemp("runs")
    data = write_folders(folder / "data", {"train": 13, "val": 5}, size=(53, 32))
    start(data, folder / "one", "--fit", "pad")
    start(data, folder / "cropped")
    done = run_ranks([str(RECIPE), *command(data, folder / "two", "--fit", "pad")], timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_two_processes_pad_as_one_does(folder: Path):
    one, two, cropped = (folder / name for name in ("one", "two", "cropped"))
    assert json.loads((two / "summary.json").read_text())["processes"] == 2
    assert len(digests(one)) == 8 * 12
    assert digests(two) == digests(one)
    assert max((tensor - weights(one)[name]).abs().max() for name, tensor in weights(two).items()) < 1e-5
    assert scores(two) == scores(one)
    apart = [digests(cropped)[key] != digest for key, digest in digests(one).items()]  # control
    assert sum(apart) > 90


def test_a_padded_run_ends_the_same_bit_for_bit_when_it_is_continued(folder: Path):
    resumed = Path(shutil.copytree(folder / "one", folder / "resumed"))
    (resumed / "summary.json").unlink()
    *earlier, last = sorted((resumed / "checkpoints").glob("step-*"))
    assert earlier
    shutil.rmtree(last)
    start(folder / "data", resumed, "--fit", "pad")
    again, whole = weights(resumed), weights(folder / "one")
    assert [name for name, tensor in whole.items() if not torch.equal(again[name], tensor)] == []
    assert digests(resumed) == digests(folder / "one")
    assert scores(resumed) == scores(folder / "one")


def test_a_run_is_not_continued_with_another_fit(folder: Path, capsys: pytest.CaptureFixture[str]):
    main = runpy.run_path(str(RECIPE))["main"]
    for run, fit, told in (("one", "squash", "--fit pad, now squash"), ("cropped", "pad", "--fit crop, now pad")):
        (folder / run / "summary.json").rename(folder / f"{run}.json")
        assert main(command(folder / "data", folder / run, "--fit", fit)) == 2
        error = capsys.readouterr().err
        assert told in error
        assert len(error.splitlines()) == 1
        (folder / f"{run}.json").rename(folder / run / "summary.json")
