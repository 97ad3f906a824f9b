"""Runs that start from the weights of another: what stays as it was loaded, and what learns how much."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import recipe
from toolkit.runs.checkpoint import Store

DATA = ("--synthetic-count", "96", "--synthetic-size", "32", "--batch-size", "24", "--num-workers", "1")
QUICK = (*DATA, "--log-with", "none", "--epochs", "3")
ALONE, BOTH = ("--img-size", "16"), ("--scales", "16,24", "--norm-per-scale", "full")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.fixture(scope="module")
def base(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at two sizes, whose normalization has moved at both."""
    folder = tmp_path_factory.mktemp("base") / "run"
    assert recipe("multiscale")([*QUICK, *BOTH, "--output-dir", str(folder)]) == 0
    return folder


def last(run: Path, name: str = "model") -> dict[str, Tensor]:
    """The tensors at the end of training."""
    return load_file(Store(run / "checkpoints").committed()[-1] / f"{name}.safetensors")


def tuned(base: Path, output: Path, *words: str, name: str = "multiscale") -> dict[str, Tensor]:
    sizes = BOTH if name == "multiscale" else ALONE
    assert recipe(name)([*QUICK, *sizes, "--weights", str(base), "--output-dir", str(output), *words]) == 0
    return last(output)


def moved(base: Path, after: dict[str, Tensor]) -> set[str]:
    """Names of the tensors that are not those of the base's best model."""
    before = load_file(base / "best" / "model.safetensors")
    assert before.keys() == after.keys()
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


def is_statistic(name: str) -> bool:
    return name.endswith(STATISTICS)


def is_norm(name: str) -> bool:
    return ".norms." in name


def test_only_the_classifier_moves_when_the_rest_is_frozen(base: Path, tmp_path: Path):
    found = moved(base, tuned(base, tmp_path / "run", "--freeze"))
    assert {name for name in found if not is_statistic(name)} == {"model.fc.weight", "model.fc.bias"}
    assert any(map(is_statistic, found))  # they follow the images still
    kept = last(tmp_path / "run", "optimizer")
    assert {name.split(".")[1] for name in kept if name.startswith("state")} == {"0", "1"}  # of two parameters


def test_all_but_the_classifier_is_bit_for_bit_as_loaded_when_batch_norm_is_frozen_too(base: Path, tmp_path: Path):
    found = moved(base, tuned(base, tmp_path / "run", "--freeze", "--freeze-bn", "--ema-decay", "0.9"))
    assert found == {"model.fc.weight", "model.fc.bias"}


def test_normalization_of_each_scale_stays_as_loaded_when_the_rest_learns(base: Path, tmp_path: Path):
    """Of a strategy whose second size starts from the first one's normalization, where that is not frozen."""
    words = ("--progressive", "--dropout-rate", "0.1")
    found = moved(base, tuned(base, tmp_path / "frozen", *words, "--freeze-bn"))
    assert not any(map(is_norm, found))
    assert {name for name in found if not is_norm(name)} >= {"model.conv1.0.weight", "model.fc.weight"}
    free = moved(base, tuned(base, tmp_path / "free", *words))  # control
    assert any(".norms.16.running_mean" in name for name in free)
    assert any(".norms.24.weight" in name for name in free)


def test_what_is_behind_a_stage_moves_and_the_rest_does_not(base: Path, tmp_path: Path):
    found = moved(base, tuned(base, tmp_path / "run", "--unfreeze-from", "layer4"))
    assert {name.split(".")[1] for name in found if not is_statistic(name)} == {"layer4", "fc"}


def distances(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    return {name: float((after[name] - before[name]).norm()) for name in before if not is_statistic(name)}


def test_early_layers_move_less_with_layer_decay(base: Path, tmp_path: Path):
    before = load_file(base / "best" / "model.safetensors")
    plain, decayed = (
        distances(before, tuned(base, tmp_path / f"{decay}", "--layer-decay", decay, "--learning-rate", "1e-3"))
        for decay in ("1", "0.3")
    )
    first, last = "model.conv1.0.weight", "model.fc.weight"
    assert decayed[first] < 0.02 * plain[first]  # 0.3 to the power of 5 is 0.0024
    assert decayed[last] > 0.5 * plain[last]
    copies = [name for name in before if name.startswith("model.layer1.0.bn1.norms.") and name.endswith(".weight")]
    assert len(copies) == 2
    assert all(0 < decayed[name] < 0.05 * plain[name] for name in copies)  # to the power of 4: 0.0081


def test_the_head_learns_alone_first_at_twice_the_rate_and_then_all(base: Path, tmp_path: Path):
    words = ("--head-epochs", "1", "--record-samples", "--save-every-steps", "2", "--keep", "9")
    after = tuned(base, tmp_path / "run", *words, "--warmup-epochs", "0.5", "--learning-rate", "1e-3")
    alone = load_file(Store(tmp_path / "run" / "checkpoints").path(4) / "model.safetensors")
    assert {name for name in moved(base, alone) if not is_statistic(name)} == {"model.fc.weight", "model.fc.bias"}
    assert {name.split(".")[1] for name in moved(base, after) if not is_statistic(name)} >= {"conv1", "layer3", "fc"}
    lines = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in lines]
    assert rates[:4] == [2e-3] * 4
    assert rates[4:6] == pytest.approx([2.5e-4, 7.5e-4])  # half an epoch of warm-up
    assert rates[6:] == sorted(rates[6:], reverse=True)
    assert rates[6] < 1e-3


FULL = (
    *("--head-epochs", "1", "--finish-size", "32", "--layer-decay", "0.7", "--backbone-lr-scale", "0.5"),
    *(
        "--warmup-epochs",
        "0.5",
        "--unfreeze-from",
        "layer3",
        "--freeze-bn",
        "--ema-decay",
        "0.9",
        "--dropout-rate",
        "0.2",
    ),
)


def test_a_run_with_all_of_it_resumes_at_any_epoch_to_the_same_end(base: Path, tmp_path: Path):
    whole = tmp_path / "whole"
    tuned(base, whole, *FULL)
    steps = [path.name for path in Store(whole / "checkpoints").committed()]
    assert len(steps) == 3
    for kept in (1, 2):
        part = tmp_path / f"after-{kept}"
        shutil.copytree(whole, part)
        (part / "summary.json").unlink()
        for name in steps[kept:]:
            shutil.rmtree(part / "checkpoints" / name)
        tuned(base, part, *FULL)
        for name in ("model", "optimizer"):
            mine, theirs = last(part, name), last(whole, name)
            assert mine.keys() == theirs.keys()
            assert [key for key in mine if not torch.equal(mine[key], theirs[key])] == []


def test_another_freeze_or_rate_is_another_run(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tuned(base, tmp_path / "run", "--freeze")
    capsys.readouterr()
    words = (*QUICK, *BOTH, "--weights", str(base), "--output-dir", str(tmp_path / "run"))
    assert recipe("multiscale")([*words, "--layer-decay", "0.5"]) == 2
    err = capsys.readouterr().err
    assert "--freeze, now --no-freeze" in err
    assert "no --layer-decay, now --layer-decay 0.5" in err


REFUSED = [
    (("--unfreeze-from", "layr4"), "--unfreeze-from layr4: test_resnet has no such stage; did you mean layer4?"),
    (("--freeze", "--unfreeze-from", "layer4"), "--unfreeze-from layer4 contradicts --freeze: drop one of them"),
    (("--freeze", "--layer-decay", "0.5"), "--layer-decay 0.5 would be ignored: with --freeze only"),
    (("--freeze", "--backbone-lr-scale", "0.5"), "--backbone-lr-scale 0.5 would be ignored: with --freeze only"),
    (("--freeze", "--head-epochs", "1"), "--head-epochs 1 would be ignored: with --freeze only the classifier"),
    (("--freeze-bn", "--sync-bn"), "--sync-bn would be ignored: --freeze-bn keeps the statistics"),
    (("--freeze-bn", "--arch", "test_vit"), "--freeze-bn would be ignored: test_vit has no BatchNorm; drop the flag"),
    (("--layer-decay", "0"), "--layer-decay 0: must be above 0"),
    (("--layer-decay", "1.1"), "--layer-decay 1.1: must be 1 or less"),
    (("--backbone-lr-scale", "0"), "--backbone-lr-scale 0: must be above 0"),
    (("--head-epochs", "3"), "--head-epochs 3: at most 2 of 3 epochs"),
    (("--head-epochs", "2"), "--warmup-epochs 1 must be smaller than the 1 epoch(s) behind the 2 of --head-epochs"),
    (("--head-epochs", "-1"), "--head-epochs -1: must be 0 or more"),
]


@pytest.mark.parametrize("extra", [(), ("--dry-run",)])
@pytest.mark.parametrize(("words", "told"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_what_makes_no_sense_is_refused_in_one_line(
    words: tuple[str, ...], told: str, extra: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert recipe("single_scale")([*QUICK, *ALONE, "--output-dir", str(tmp_path / "run"), *words, *extra]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
