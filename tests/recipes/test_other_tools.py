"""Habits of other tools: their flags get ours as an answer; lists with blanks and a path without a flag are read."""

from pathlib import Path

import pytest

from tests.conftest import recipe, write_folders, write_image
from toolkit import InputError, Settings
from toolkit.config.other_tools import OTHER_TOOLS
from toolkit.config.scales import Scales
from toolkit.config.words import flag_of, name_of

NAMES = [name for rows in OTHER_TOOLS.values() for names in rows for name in names.split()]
TINY = (
    "--synthetic-count",
    "60",
    "--synthetic-size",
    "16",
    "--batch-size",
    "12",
    "--epochs",
    "3",
    "--log-with",
    "none",
)

# A command line of another tool -> what the error names.
FLAGS = {
    "--lr 0.1": "here it is --learning-rate\n",
    "--lr0=0.01": "here it is --learning-rate\n",
    "--base-lr 0.1": "here it is --learning-rate, never scaled",
    "--model resnet50": "here it is --arch, a name of timm",
    "--model_name_or_path microsoft/resnet-50": "here it is --arch: a name of timm, or hf-hub:NAME",
    "-a resnet18": "here it is --arch",
    "--checkpoint x.pth": "here it is --weights to start from weights, --resume to continue a run",
    "--initial-checkpoint x.pth": "here it is --weights",
    "--ckpt_path last.ckpt": "--resume to continue",
    "--workers 8": "here it is --num-workers",
    "-j 8": "here it is --num-workers",
    "--dataloader_num_workers 4": "here it is --num-workers",
    "--device cuda:0": "the launcher chooses devices and processes: toolkit launch, accelerate launch, torchrun",
    "--gpus 2": "the launcher chooses",
    "--accelerator gpu": "the launcher chooses",
    "--local-rank=0": "the launcher chooses",
    "--imgsz 64": "here it is --img-size for one size (train single), --scales for several",
    "--image_size 64": "--scales for several",
    "--train-img-sizes 64 112": "here it is --scales; by default all of them are in each step",
    "--bs 64": "here it is --batch-size, images per step over all processes together",
    "--batch 64": "here it is --batch-size, images",
    "-b 64": "here it is --batch-size, images",
    "--per_device_train_batch_size 32": "the batch of all processes together: multiply by their number",
    "--gradient_accumulation_steps 4": "here it is --device-batch-size, most images per process and forward pass",
    "--accumulate_grad_batches=4": "here it is --device-batch-size",
    "--wd 0.05": "here it is --weight-decay",
    "--opt sgd": "here it is --optimizer",
    "--optim adamw_torch": "here it is --optimizer",
    "--momentum 0.9": "momentum and betas are timm's defaults",
    "--sched cosine": "here it is --scheduler",
    "--lr_scheduler_type cosine": "here it is --scheduler",
    "--warmup_ratio 0.1": "here it is --warmup-epochs, in epochs, such as 0.5",
    "--clip-grad 1": "here it is --gradient-clip, the norm",
    "--max_grad_norm 1": "here it is --gradient-clip",
    "--gradient_clip_val 1": "here it is --gradient-clip",
    "--num-epochs 3": "here it is --epochs\n",
    "--max_epochs 3": "here it is --epochs\n",
    "--trainer.max_epochs 3": "here it is --epochs\n",
    "--num_train_epochs 3": "here it is --epochs\n",
    "--max-steps 100": "here it is --epochs, whole passes",
    "--fp16": "here it is --amp, in the best type",
    "--bf16 True": "here it is --amp",
    "--precision 16-mixed": "here it is --amp",
    "--smoothing 0.1": "here it is --label-smoothing\n",
    "--mixup-alpha 0.2": "here it is --mixup\n",
    "--reprob 0.1": "here it is --random-erasing\n",
    "--aa rand-m9": "here it is --rand-augment, a magnitude such as 9",
    "--drop 0.1": "here it is --dropout-rate\n",
    "--model-ema": "here it is --ema-decay",
    "--valid_pct 0.2": "here it is --val-split, a share",
    "--data-dir photos": "here it is --data-root\n",
    "--dataset_name beans": "here it is --data-root: hf:NAME",
    "--output x": "here it is --output-dir",
    "--save_total_limit 3": "here it is --keep\n",
    "--resume_from_checkpoint x": "here it is --resume; the same command continues",
    "--val_check_interval 0.5": "nothing to set: every epoch ends with an evaluation",
    "--report_to wandb": "here it is --log-with",
    "--early_stopping_patience 5": "here it is --patience, in epochs",
    "--test-only": "toolkit evaluate RUN evaluates a finished run",
    "--tta 2": "toolkit evaluate RUN --flip",
    "imgsz=64": "no flag imgsz; here it is --img-size",
    "epochs=3": "no flag epochs; did you mean --epochs?",
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(capsys, name: str, *words: str) -> str:
    """The one line with which a recipe refuses."""
    assert recipe(name)(words) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1, err
    return err


@pytest.mark.parametrize("line", FLAGS)
def test_a_flag_of_another_tool_is_answered_with_ours(capsys, line: str):
    assert FLAGS[line] in refused(capsys, "multiscale", *line.split())


def test_flags_of_other_tools_are_none_of_ours_and_stand_once():
    assert len(NAMES) == len({*NAMES}) > 200
    assert {name_of(flag_of(name)) for name in NAMES} & {*Settings.model_fields, *Scales.model_fields} == set()


def test_a_setting_of_another_tool_is_answered_with_ours_in_python():
    for name, told in (
        ("lr", "there is no setting 'lr'; here it is learning_rate"),
        ("imgsz", "there is no setting 'imgsz'; here it is img_size or scales, which a strategy has, such as Single"),
        ("cfg", "there is no setting 'cfg'; here it is config, which only toolkit train has"),
        ("model", "there is no setting 'model'; here it is arch, a name of timm"),
        ("devices", "there is no setting 'devices'; the launcher chooses devices and processes"),
        ("scales", "there is no setting 'scales': it belongs to the strategy, such as SingleScale(img_size=64)"),
    ):
        with pytest.raises(InputError) as caught:
            Settings(**{name: 1})  # type: ignore[arg-type]
        assert str(caught.value).startswith(told)


def test_a_key_of_another_tool_is_answered_with_ours_in_a_file(capsys):
    Path("theirs.yaml").write_text("per_device_train_batch_size: 32\n")
    told = "theirs.yaml: there is no setting 'per_device_train_batch_size'; here it is batch_size, the batch of all"
    assert told in refused(capsys, "multiscale", "--config", "theirs.yaml")


def test_a_command_without_that_flag_is_told_what_has_it(capsys):
    told = refused(capsys, "predict", "run", "photos", "--lr", "0.1")
    assert "there is no flag --lr; here it is --learning-rate, which only toolkit train has" in told
    assert "there is no flag --bs; here it is --batch-size" in refused(capsys, "predict", "run", "photos", "--bs", "8")
    assert "extra belongs to no flag" in refused(capsys, "evaluate", "run", "extra")


@pytest.mark.parametrize(
    "line", ["--scales 16 24 32", "--scales 16, 24, 32", "--scales=16 24,32", "--scales 16 24 ,32"]
)
def test_a_list_is_the_same_with_blanks_and_with_commas(capsys, line: str):
    words = (*line.split(), "--eval-scales", "16", "32", "--num-workers", "0", "--dry-run")
    assert recipe("multiscale")([*TINY, *words]) == 0
    assert "at 16+24+32 px" in capsys.readouterr().out


def test_a_list_with_blanks_in_a_file_or_in_quotes_is_the_same(capsys):
    Path("mine.yaml").write_text("scales: 16 24 32\n")
    assert recipe("multiscale")([*TINY, "--config", "mine.yaml", "--eval-scales", "16 32", "--dry-run"]) == 0
    assert "at 16+24+32 px" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--scales 16 -32", "--scales -32: must be above 0"),
        ("--scales -16 32", "--scales -16: must be above 0"),
        ("--scales 32 16", "--scales 32,16: sizes must be positive and ascending"),
        ("--scales 16 24.5", "--scales 24.5: must be a whole number"),
        ("--scales 16, 32,", "--scales"),
        ("--scales 16 x", "x after --scales belongs to no flag"),
        ("--epochs 3 4", "4 after --epochs belongs to no flag"),
    ],
)
def test_a_list_with_blanks_is_refused_in_one_line_when_it_is_none(capsys, line: str, told: str):
    assert told in refused(capsys, "multiscale", *TINY, *line.split(), "--dry-run")


def test_paths_after_a_list_stay_paths(capsys):
    """The run is missing: what is refused tells how the words were read."""
    write_image(Path("photos/0.png"))
    assert "run" in refused(capsys, "predict", "run", "--scales", "16", "24", "photos")
    told = refused(capsys, "predict", "run", "--cascade", "24", "16", "photos")
    assert "--cascade 24,16: sizes must be positive and ascending" in told
    Path("24").mkdir()
    told = refused(capsys, "predict", "run", "--scales", "16", "24", "photos")
    assert "24 after --scales: a value or a path? Write ./24, or the values with commas" in told


def test_lists_of_words_and_of_batches_take_blanks_too(capsys):
    words = ("--precisions", "float32", "bf16", "--batch-sizes", "8", "-16")
    assert "--batch-sizes -16: must be above 0" in refused(capsys, "benchmark", *words)


@pytest.mark.parametrize("line", ["photos --epochs 2", "--epochs 2 photos", "--epochs 2 --hflip photos --seed 3"])
def test_a_path_without_a_flag_is_the_data(capsys, line: str):
    write_folders(Path("photos"), {"train": 6, "val": 1})
    words = ("--arch", "test_resnet", "--scales", "16", "32", "--batch-size", "6", "--log-with", "none", "--dry-run")
    assert recipe("multiscale")([*line.split(), *words]) == 0
    assert "photos" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("photos more", "photos and more: a run has one --data-root"),
        ("photos --data-root other", "photos: --data-root other is given too: drop one of them"),
        ("missing --epochs 2", "missing: no such folder"),
        ("--output-dir My Runs", "Runs after --output-dir belongs to no flag: write --flag=value, with quotes"),
        ("--amp true", "true after --amp belongs to no flag"),
        ("photos --lr 0.1", "there is no flag --lr; here it is --learning-rate"),
    ],
)
def test_words_without_a_flag_are_refused_in_one_line(capsys, line: str, told: str):
    Path("photos").mkdir()
    assert told in refused(capsys, "multiscale", *line.split())
