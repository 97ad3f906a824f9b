"""`toolkit train finetune`: defaults by images and model, which a flag replaces; `--lr-find`, which leaves no trace."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from tests import storage as servers
from tests.conftest import SLOW, TORCHRUN, Runner, recipe, write_folders, write_image
from toolkit import Settings, Simultaneous, SingleScale, train
from toolkit.runs.checkpoint import Store
from toolkit.strategies import Finish, HeadFirst
from toolkit.tools import rate_sweep
from toolkit.tools.finetuning import finetuning
from toolkit.tools.rate_sweep import RateSweep, Trial, find_rate
from toolkit.training.schedules import Constant

DATA = ("--synthetic-count", "96", "--synthetic-size", "32", "--batch-size", "24", "--num-workers", "1")
QUICK = (*DATA, "--log-with", "none", "--img-size", "16")


@pytest.fixture(scope="module")
def base(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose weights are tuned."""
    folder = tmp_path_factory.mktemp("base") / "run"
    assert recipe("single_scale")([*QUICK, "--epochs", "2", "--output-dir", str(folder)]) == 0
    return folder


def config(run: Path) -> dict[str, object]:
    return yaml.safe_load((run / "config.yaml").read_text())


def line(text: str, word: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(word))


def test_what_no_flag_says_follows_from_the_images(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = [*QUICK[:4], *QUICK[6:], "--weights", str(base), "--output-dir", str(tmp_path / "run"), "--dry-run"]
    assert recipe("finetune")(words) == 0
    plan = capsys.readouterr().out
    said = line(plan, "finetune")
    assert "96 images: --batch-size 8 --epochs 30" in said
    assert "--head-epochs 3" in said
    assert "--freeze-bn" in said  # images are few
    assert "--layer-decay" not in said  # of a model with BatchNorm
    assert "average   of the weights" in plan
    assert "only head learns" in plan
    assert "92 of 92 tensors loaded" in plan


def test_a_flag_wins_and_the_rest_follows_from_it(base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    run = tmp_path / "run"
    words = ["--epochs", "3", "--layer-decay", "0.9", "--head-epochs", "0", "--learning-rate", "2e-3"]
    assert recipe("finetune")([*QUICK, "--weights", str(base), *words, "--output-dir", str(run)]) == 0
    found = config(run)
    assert {name: found[name] for name in ("epochs", "batch_size", "layer_decay", "learning_rate")} == {
        "epochs": 3,
        "batch_size": 24,
        "layer_decay": 0.9,
        "learning_rate": 2e-3,
    }
    assert "head_epochs" not in found
    assert found["warmup_epochs"] == pytest.approx(0.3)
    assert found["ema_decay"] == pytest.approx(0.16)  # a tenth of 12 steps
    assert "too slow" not in capfd.readouterr().out
    again = tmp_path / "again"  # from the file of that run nothing is left to fill in
    assert (
        recipe("finetune")(["--config", str(run / "config.yaml"), "--head-epochs", "0", "--output-dir", str(again)])
        == 0
    )
    assert config(again) == found


def test_several_sizes_a_finish_and_a_frozen_model_have_its_defaults_too(base: Path):
    settings = Settings(synthetic_count=96, synthetic_size=32, weights=base)
    found = finetuning(settings, SingleScale(16))
    assert isinstance(found.strategy, HeadFirst)
    assert found.strategy.head_epochs == 3
    frozen = finetuning(settings.model_copy(update={"freeze": True}), SingleScale(16))
    assert frozen.strategy == SingleScale(16)
    assert (found.settings.layer_decay, frozen.settings.layer_decay) == (None, None)


def test_statistics_of_few_images_stay_where_one_size_is_tuned(base: Path):
    few = Settings(synthetic_count=96, synthetic_size=32, weights=base)
    many = few.model_copy(update={"synthetic_count": 800})
    assert finetuning(few, SingleScale(16)).settings.freeze_bn
    assert not finetuning(many, SingleScale(16)).settings.freeze_bn
    assert not finetuning(few, Simultaneous((16, 24))).settings.freeze_bn
    assert not finetuning(few, Finish(SingleScale(16), 24, 1)).settings.freeze_bn
    for given in ({"freeze": True}, {"unfreeze_from": "layer4"}, {"freeze_bn": False}, {"batch_size": 64}):
        assert not finetuning(few.model_copy(update=given), SingleScale(16)).settings.freeze_bn


@pytest.mark.parametrize(
    ("count", "epochs", "decay"), [(40, 2, None), (96, 5, 0.83), (800, 30, 0.9444), (800, 10_000, 0.9998)]
)
def test_the_average_reaches_back_a_part_of_the_run(base: Path, count: int, epochs: int, decay: float | None):
    settings = Settings(synthetic_count=count, synthetic_size=16, weights=base, epochs=epochs)
    assert finetuning(settings, SingleScale(16)).settings.ema_decay == (decay and pytest.approx(decay))


def test_models_without_batch_norm_have_a_layer_decay_and_a_smaller_rate():
    settings = Settings(synthetic_count=96, synthetic_size=32, arch="test_vit", pretrained=True)
    found = finetuning(settings, SingleScale(32)).settings
    assert found.layer_decay == 0.75
    rates = {
        arch: finetuning(settings.model_copy(update={"arch": arch}), SingleScale(32)).settings.learning_rate
        for arch in ("test_vit", "resnet18", "resnet50")
    }
    assert rates["resnet18"] > rates["resnet50"] > rates["test_vit"] / 5
    assert finetuning(settings.model_copy(update={"freeze": True}), SingleScale(32)).settings.layer_decay is None


def test_sizes_and_a_finish_go_with_it(base: Path, tmp_path: Path):
    words = [*QUICK[:-2], "--weights", str(base), "--epochs", "4", "--finish-size", "32", "--progressive"]
    assert recipe("finetune")([*words, "--scales", "16,24", "--output-dir", str(tmp_path / "run")]) == 0
    found = config(tmp_path / "run")
    assert (found["strategy"], found["head_epochs"], found["finish_size"]) == ("progressive", 1, 32)


def test_the_classifier_learns_first_for_as_long_as_a_flag_says(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = [*QUICK, "--weights", str(base), "--epochs", "4", "--dry-run"]
    assert recipe("finetune")([*words, "--head-epochs", "2"]) == 0
    assert "2 epoch(s) of the classifier, then" in capsys.readouterr().out
    assert recipe("finetune")([*words, "--head-epochs", "1", "--finish-size", "24"]) == 0
    assert "1 epoch(s) of the classifier, then" in capsys.readouterr().out
    assert recipe("finetune")([*words, "--head-epochs", "4"]) == 2
    assert capsys.readouterr().err == "error: --head-epochs 4: at most 3 of 4 epochs\n"


def test_a_run_is_repeated_by_its_own_settings(base: Path, tmp_path: Path):
    words = [*QUICK, "--weights", str(base), "--epochs", "3", "--output-dir", str(tmp_path / "run")]
    assert recipe("finetune")(words) == 0
    again = ["--config", str(tmp_path / "run" / "config.yaml"), "--output-dir", str(tmp_path / "again")]
    assert recipe("finetune")(again) == 0
    assert config(tmp_path / "again") == config(tmp_path / "run")
    assert config(tmp_path / "run")["head_epochs"] == 1


@pytest.mark.parametrize(
    "words",
    [
        ("--img-size", "16", "--epochs", "4", "--finish-size", "32", "--finish-epochs", "3"),
        ("--scales", "16,24", "--progressive", "--epochs", "4", "--scale-epochs", "2,2"),
        ("--scales", "16,20,24", "--progressive", "--epochs", "3"),
    ],
)
def test_no_epoch_is_the_classifiers_where_the_strategy_needs_all(
    words: tuple[str, ...], base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert recipe("finetune")([*DATA, "--log-with", "none", "--weights", str(base), *words, "--dry-run"]) == 0
    assert "--head-epochs" not in capsys.readouterr().out


def test_the_batch_divides_over_the_processes(base: Path, monkeypatch: pytest.MonkeyPatch):
    settings = Settings(synthetic_count=96, synthetic_size=32, weights=base)
    found = {}
    for processes in (1, 2, 3, 7):
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        found[processes] = finetuning(settings, SingleScale(16)).settings.batch_size
    assert found == {1: 8, 2: 8, 3: 6, 7: 7}


def test_random_weights_have_no_start_of_the_classifier_alone(base: Path):
    settings = Settings(synthetic_count=96, synthetic_size=32, pretrained=False, arch="test_resnet")
    found = finetuning(settings, SingleScale(16))
    assert (found.strategy, found.settings.freeze_bn) == (SingleScale(16), False)


def test_what_is_passed_from_python_is_what_the_defaults_follow(base: Path, tmp_path: Path):
    images = [(np.full((20, 20, 3), 40 * (i % 4), np.uint8), i % 4) for i in range(40)]
    seams = {"data": {"train": images, "val": images[:12]}, "schedule": Constant(0.25)}
    settings = Settings(arch="test_resnet", weights=base, epochs=3, num_workers=1, log_with="none")
    found = finetuning(settings.model_copy(update={"output_dir": tmp_path / "run"}), SingleScale(16), **seams)
    assert "40 images: --batch-size 8" in found.line
    assert "--warmup-epochs" not in found.line  # the schedule has its own
    summary = train(found.settings, found.strategy, **seams)
    assert summary["final"]["images_seen"] == 120


def test_one_size_and_several_contradict_each_other(capsys: pytest.CaptureFixture[str]):
    assert recipe("finetune")(["--img-size", "16", "--scales", "16,24"]) == 2
    assert capsys.readouterr().err == "error: --img-size 16 is one size, --scales asks for several: drop one of them\n"
    assert recipe("finetune")(["--strategy", "single", "--progressive"]) == 2
    told = "error: --strategy single is one size, --progressive asks for several: drop one of them\n"
    assert capsys.readouterr().err == told


def test_classes_get_weights_where_they_are_uneven(base: Path, tmp_path: Path):
    even = write_folders(tmp_path / "even", {"train": 8, "val": 4})
    uneven = Path(shutil.copytree(even, tmp_path / "uneven"))
    for i in range(30):
        write_image(uneven / "train" / "cat" / f"more-{i}.png", seed=100 + i)
    usual = Settings(data_root=str(uneven), arch="test_resnet", weights=base)
    balanced = Settings(data_root=str(uneven), arch="test_resnet", weights=base, sampling="balanced")
    made = [
        finetuning(settings, SingleScale(16)).settings
        for settings in (Settings(data_root=str(even), arch="test_resnet", weights=base), usual, balanced)
    ]
    assert [settings.class_weights for settings in made] == ["none", "inverse", "none"]
    assert [settings.class_weights_power for settings in made] == [1.0, 0.5, 1.0]


SWEPT = (*QUICK, "--epochs", "4", "--lr-find")


def test_the_search_leaves_no_trace_but_the_rate(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A run that searched is bit for bit the run that was told the rate."""
    words = [*SWEPT, "--weights", str(base), "--strategy", "sandwich", "--scales", "16,20,24"]
    words = [word for word in words if word not in ("--img-size", "16")]
    searched, told = tmp_path / "searched", tmp_path / "told"
    assert recipe("multiscale")([*words, "--output-dir", str(searched)]) == 0
    chosen = line(capsys.readouterr().out, "lr-find   chosen").split()[2].rstrip(",")
    found = json.loads((searched / "lr_find.json").read_text())
    assert found["learning_rate"] == config(searched)["learning_rate"] == float(chosen)
    assert {4e-4, 1.3e-3, 4e-3, 1.3e-2, 4e-2} <= {trial["learning_rate"] for trial in found["trials"]}
    words.remove("--lr-find")
    assert recipe("multiscale")([*words, "--learning-rate", chosen, "--output-dir", str(told)]) == 0
    one, other = (
        load_file(Store(run / "checkpoints").committed()[-1] / "model.safetensors") for run in (searched, told)
    )
    assert all(one[name].equal(other[name]) for name in one)


def test_a_resumed_run_does_not_search_again(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = [*SWEPT, "--weights", str(base), "--output-dir", str(tmp_path / "run")]
    assert recipe("single_scale")(words) == 0
    assert "epoch(s) of" in capsys.readouterr().out
    shutil.rmtree(tmp_path / ".lr_find")  # as on a machine that has only the run
    (tmp_path / "run" / "summary.json").unlink()
    shutil.rmtree(Store(tmp_path / "run" / "checkpoints").committed()[-1])
    assert recipe("single_scale")(words) == 0
    after = capsys.readouterr().out
    assert "epoch(s) of" not in after
    assert "continuing from" in after


def test_nothing_is_searched_where_the_run_cannot_be_trained(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    capsys.readouterr()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    refused = {
        ("--output-dir", str(base)): f"error: {base} was begun without --lr-find, and a run keeps its rate",
        ("--resume", str(base)): f"error: {base} was begun without --lr-find, and a run keeps its rate",
        ("--resume", str(base), "--output-dir", str(tmp_path / "new")): f"continues the run in {base}: drop --output-d",
        ("--output-dir", str(base), "--resume", "never"): "holds a run and --resume never forbids to continue it",
        ("--output-dir", str(tmp_path / "other")): "the folder holds other files; give an empty or a new one",
    }
    for words, told in refused.items():
        assert recipe("single_scale")([*QUICK, "--epochs", "2", "--lr-find", *words]) == 2
        said = capsys.readouterr()
        assert told in said.err
        assert "epoch(s) of" not in said.out
    assert not (tmp_path / ".lr_find").exists()


def test_a_machine_without_the_run_finds_what_was_found_in_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usual = {"synthetic_count": 96, "synthetic_size": 32, "batch_size": 24, "epochs": 4}
    swept = RateSweep("top1", True, 2, 50, (Trial(1e-3, 50.0, 1.0), Trial(3e-3, None, None)), 1e-3)
    monkeypatch.setattr(rate_sweep, "_sweep", lambda *words: pytest.fail("searched again"))
    with servers.s3() as storage:
        (tmp_path / "there").mkdir()
        (tmp_path / "there/lr_find.json").write_text(json.dumps({"of": "it", **swept.to_json()}))
        storage.put(tmp_path / "there")
        settings = Settings(**usual, output_dir=storage.url)
        assert find_rate(settings, SingleScale(16)) == swept
        with pytest.raises(pytest.fail.Exception, match="searched again"):  # control: of a run that is not there
            find_rate(settings.model_copy(update={"output_dir": f"{storage.url}-other"}), SingleScale(16))


def test_the_best_rate_is_not_at_an_end_of_those_that_were_tried(base: Path, tmp_path: Path):
    settings = Settings(
        synthetic_count=96, synthetic_size=32, batch_size=24, epochs=4, learning_rate=1e-5, output_dir=tmp_path / "run"
    )
    found = find_rate(settings, SingleScale(16))
    rates = [trial.learning_rate for trial in found.trials]
    assert rates == sorted(rates)
    assert len(rates) == 7 or rates[0] < found.learning_rate < rates[-1]
    scores = {trial.learning_rate: (trial.score, trial.loss) for trial in found.trials}
    top, losses = max(score for score, _ in scores.values()), {rate: loss for rate, (_, loss) in scores.items()}
    error = (top * (100 - top) / 16) ** 0.5  # of an accuracy on 16 images
    near = [rate for rate, (score, _) in scores.items() if score >= top - error]
    assert found.learning_rate == min(near, key=losses.get)
    assert not (tmp_path / "run").exists()


def test_rates_that_all_diverge_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = [*SWEPT, "--learning-rate", "1e36", "--optimizer", "sgd", "--output-dir", str(tmp_path / "run")]
    assert recipe("single_scale")(words) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: --lr-find: training diverges at all of 1e+35, 3.2e+35, 1e+36")


def test_a_strategy_that_cannot_be_shorter_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = [*QUICK[:-2], "--epochs", "4", "--lr-find", "--progressive", "--scales", "16,24", "--scale-epochs", "2,2"]
    assert recipe("multiscale")([*words, "--output-dir", str(tmp_path / "run")]) == 2
    assert "has no training of at most 2 of 4 epochs" in capsys.readouterr().err


@SLOW
def test_two_processes_find_the_same_rate(run: Runner, tmp_path: Path):
    model = ("--arch", "test_vit", "--model-kwargs", "patch_size=8")  # without BatchNorm, whose batches are a process's
    words = ["recipes/single_scale.py", *SWEPT, *model]
    assert run(*words, "--output-dir", str(tmp_path / "one")).returncode == 0
    shutil.rmtree(tmp_path / ".lr_find")
    assert run(*words, "--output-dir", str(tmp_path / "two"), launcher=TORCHRUN).returncode == 0
    one, two = (json.loads((tmp_path / name / "lr_find.json").read_text()) for name in ("one", "two"))
    assert [trial["learning_rate"] for trial in one["trials"]] == [trial["learning_rate"] for trial in two["trials"]]
    assert (one["steps"], one["learning_rate"]) == (two["steps"], two["learning_rate"])
    for a, b in zip(one["trials"], two["trials"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
