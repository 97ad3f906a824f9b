"""Bad input: one clear line, exit code 2, and nothing written over."""

from pathlib import Path

import pytest

from tests.conftest import recipe, write_folders, write_image, write_manifest
from toolkit.training import device

TINY_COUNT = ("--synthetic-count", "60", "--synthetic-size", "16")
QUICK = (*TINY_COUNT, "--batch-size", "12", "--epochs", "3", "--log-with", "none", "--num-workers", "0")
TWO = ("--scales", "16,32")
VIT = (*TWO, "--arch", "test_vit")
STAGED = (*TWO, "--progressive")
SHARED = (*TWO, "--consistency-share", "0.5")
FINISH = ("--img-size", "16", "--finish-size", "32")


def listing(folder: Path) -> dict[str, bytes | None]:
    """Every path under a folder, with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def refused(capsys, folder: Path, name: str, *words: str) -> str:
    """The one line with which a recipe refuses, having written nothing."""
    before = listing(folder)
    assert recipe(name)(words) == 2
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 1, err
    assert err.startswith("error: ")
    assert "Traceback" not in out + err
    assert listing(folder) == before
    return err


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)


FLAGS = [
    ("multiscale", ("--epohcs", "3"), "no flag --epohcs; did you mean --epochs?"),
    ("single_scale", ("--imgsize=32",), "no flag --imgsize; did you mean --img-size?"),
    ("single_scale", ("--scales", "16,32"), "--scales"),
    ("multiscale", ("--img-size", "32"), "--img-size"),
    ("multiscale", ("stray",), "stray"),
    ("multiscale", ("--epochs",), "--epochs"),
    ("multiscale", ("--epochs", "--amp"), "--epochs"),
    ("multiscale", ("--epochs", "few"), "--epochs few"),
    ("multiscale", ("--epochs", "0"), "--epochs 0"),
    ("multiscale", ("--batch-size", "1.5"), "--batch-size 1.5"),
    ("multiscale", ("--learning-rate", "0"), "--learning-rate 0"),
    ("multiscale", ("--learning-rate", "1e39"), "--learning-rate 1e39"),
    ("multiscale", ("--loader-timeout-s", "1e10"), "--loader-timeout-s 1e10"),
    ("multiscale", ("--seed", "99999999999999999999"), "--seed 99999999999999999999"),
    ("multiscale", ("--hflip", "maybe"), "maybe"),
    ("multiscale", ("--scheduler", "step"), "--scheduler step"),
    ("multiscale", ("--class-weights", "balanced"), "--class-weights balanced"),
    (
        "multiscale",
        ("--class-weights-power", "0.5"),
        "--class-weights-power would be ignored: it needs --class-weights",
    ),
    ("multiscale", ("--class-weights", "inverse", "--class-weights-power", "0"), "--class-weights-power 0"),
    (
        "multiscale",
        ("--task", "multilabel", "--loss", "poly"),
        "--loss poly: must be one of bce, asl with --task multilabel",
    ),
    ("multiscale", ("--cloud", "ibm"), "--cloud ibm"),
    ("multiscale", ("--fit", "letterbox"), "--fit letterbox: must be one of 'crop', 'pad' or 'squash'"),
    ("multiscale", ("--strategy", "random"), "--strategy random"),
    ("multiscale", ("--scales", "32,16"), "--scales 32,16: sizes must be positive and ascending"),
    ("multiscale", ("--scales", "16,16,32"), "--scales 16,16,32"),
    ("multiscale", ("--scales", "0,16"), "--scales 0"),
    ("multiscale", ("--scales", "-16,32"), "--scales -16"),
    ("multiscale", ("--scales", "16,b"), "--scales b"),
    ("multiscale", ("--scales", "16.5,32"), "--scales 16.5"),
    ("multiscale", ("--scales", "16,32,"), "--scales"),
    ("multiscale", ("--scales", "32"), "toolkit train single"),
    ("multiscale", (*TWO, "--eval-scales", "32,16"), "--eval-scales 32,16"),
    ("single_scale", ("--img-size", "-4"), "--img-size -4"),
    ("multiscale", (*TWO, "--progressive", "--scale-epochs", "2,2"), "2+2 must be --epochs 3"),
    ("multiscale", (*TWO, "--progressive", "--scale-epochs", "3"), "3+0 must be --epochs 3"),
    ("multiscale", (*TWO, "--progressive", "--scale-epochs", "1,1,1"), "one per scale"),
    ("multiscale", (*TWO, "--progressive", "--scale-epochs", "-1"), "--scale-epochs -1"),
    ("multiscale", (*TWO, "--progressive", "--ramp", "--scale-epochs", "1"), "--scale-epochs would be ignored"),
    ("multiscale", (*TWO, "--scale-epochs", "1"), "--scale-epochs would be ignored by --strategy simultaneous"),
    ("multiscale", (*TWO, "--ramp"), "--ramp would be ignored"),
    ("multiscale", (*TWO, "--progressive", "--consistency-weight", "1"), "--consistency-weight would be ignored"),
    ("multiscale", (*TWO, "--progressive", "--consistency", "js"), "--consistency would be ignored"),
    ("multiscale", (*TWO, "--progressive", "--strategy", "simultaneous"), "--progressive contradicts"),
    ("multiscale", (*STAGED, "--regularization-from", "1.5"), "--regularization-from 1.5"),
    ("multiscale", (*STAGED, "--regularization-from", "-0.5"), "--regularization-from -0.5"),
    ("multiscale", (*STAGED, "--regularization-from", "0.5"), "would be ignored, because nothing regularizes this run"),
    ("multiscale", (*TWO, "--regularization-from", "0.5"), "--regularization-from would be ignored by --strategy simu"),
    ("multiscale", (*TWO, "--consistency", "js", "--consistency-weight", "0"), "--consistency js would be ignored"),
    ("multiscale", (*TWO, "--consistency", "js"), "--consistency js would be ignored"),
    ("multiscale", (*TWO, "--consistency-share", "1.5"), "--consistency-share 1.5: a share, 0 to 1"),
    ("multiscale", (*TWO, "--consistency-gate"), "--consistency-gate would be ignored without --consistency-share"),
    ("multiscale", (*SHARED, "--consistency-weight", "1"), "two forms of one loss"),
    ("multiscale", (*SHARED, "--consistency", "mse", "--consistency-temperature", "2"), "ignored by --consistency mse"),
    ("multiscale", (*SHARED, "--consistency-temperature", "0"), "--consistency-temperature 0: above 0"),
    ("multiscale", (*SHARED, "--consistency-teacher", "best"), "--consistency-teacher best"),
    ("multiscale", (*SHARED, "--strategy", "sampled"), "--consistency-share would be ignored by --strategy sampled"),
    ("multiscale", (*TWO, "--strategy", "sandwich"), "--scales 16/32: --strategy sandwich needs 3 or more"),
    ("multiscale", (*TWO, "--grow-batch", "sqrt"), "--grow-batch would be ignored by --strategy simultaneous"),
    ("multiscale", (*STAGED, "--grow-batch", "double"), "--grow-batch double"),
    ("multiscale", (*TWO, "--finish-size", "32"), "--finish-size 32: larger than the 32 px"),
    ("single_scale", ("--img-size", "32", "--finish-size", "16"), "--finish-size 16: larger than the 32 px"),
    ("single_scale", ("--img-size", "16", "--finish-epochs", "2"), "ignored without --finish-size"),
    ("single_scale", (*FINISH, "--patience", "2"), "--patience would be ignored: it follows the last phase, a finish"),
    ("single_scale", (*FINISH, "--scheduler", "plateau"), "--scheduler plateau would be ignored"),
    ("single_scale", (*FINISH, "--finish-epochs", "3"), "--finish-epochs 3: at most 2 of --epochs 3"),
    ("multiscale", (*TWO, "--strategy", "progressive-simultaneous", "--epochs", "1"), "--epochs 1: 1 small scale"),
    ("multiscale", (*TWO, "--data-root", "characters", "--synthetic-classes", "80"), "--synthetic-classes 80"),
    ("multiscale", (*TWO, "--synthetic-classes", "5"), "--synthetic-classes 5: --data-root synthetic has 10"),
    ("multiscale", (*VIT, "--norm-per-scale", "statistics"), "test_vit has no BatchNorm"),
    ("multiscale", (*VIT, "--progressive", "--norm-per-scale", "full"), "test_vit has no BatchNorm"),
    ("multiscale", (*TWO, "--min-delta", "0.1"), "--min-delta would be ignored"),
    ("multiscale", (*TWO, "--wandb-mode", "offline"), "--wandb-mode and --wandb-artifact would be ignored"),
    ("multiscale", (*TWO, "--val-split", "0.2"), "--val-split would be ignored"),
    ("multiscale", (*TWO, "--warmup-epochs", "3"), "--warmup-epochs 3"),
    ("multiscale", (*TWO, "--batch-size", "61"), "--batch-size 61 exceeds the 60 training images"),
    ("multiscale", (*TWO, "--device-batch-size", "5"), "--device-batch-size 5: each process has 12 / 1 = 12 images"),
    ("multiscale", (*TWO, "--arch", "resnett18"), "--arch resnett18: timm has no such architecture; did you mean"),
    ("multiscale", ("--scales", "20,32", "--arch", "mixer_s32_224"), "mixer_s32_224 cannot take 20 px images"),
    ("single_scale", ("--img-size", "16", "--arch", "maxvit_pico_rw_256"), "maxvit_pico_rw_256 cannot take 16 px"),
    ("multiscale", ("--scales", "192,224", "--arch", "mixer_s32_224"), "mixer_s32_224 cannot take 192 px images"),
    ("multiscale", (*TWO, "--arch", "swin_tiny_patch4_window7_224"), "swin_tiny_patch4_window7_224"),
    ("multiscale", (*TWO, "--model-kwargs", "nonsense=3"), "nonsense"),
    ("multiscale", (*TWO, "--model-kwargs", "nonsense"), "'nonsense' is not of the form key=value"),
    ("multiscale", (*TWO, "--optimizer", "adamww"), "--optimizer adamww: unknown timm optimizer; did you mean adamw"),
    ("multiscale", (*TWO, "--pretrained"), "--pretrained: the weights of test_resnet could not be loaded"),
    ("multiscale", (*TWO, "--config", "none.yaml"), "none.yaml: No such file"),
    ("multiscale", (*TWO, "--resume", "nowhere"), "--resume nowhere"),
]


@pytest.mark.parametrize(("name", "words", "told"), FLAGS, ids=[" ".join(words) for _, words, _ in FLAGS])
def test_a_command_is_refused_in_one_line_when_its_flags_are_wrong(capsys, tmp_path: Path, name: str, words, told: str):
    assert told in refused(capsys, tmp_path, name, *QUICK, *words)


def test_bfloat16_is_refused_on_a_cpu_when_a_layer_strides_past_its_input(capsys, tmp_path: Path, monkeypatch):
    """oneDNN leaves such a weight's gradient undefined: at 16 px this run met infinite ones."""
    monkeypatch.setattr(device, "has_accelerator", lambda: False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    told = refused(capsys, tmp_path, "multiscale", *QUICK, *TWO)
    assert "16 px in bfloat16 on a CPU: a convolution of 3 x 3 with stride 2 meets 1 x 1 pixels" in told
    assert refused(capsys, tmp_path, "multiscale", *QUICK, *TWO, "--benchmark") == told  # before it measures
    padded = ("--scales", "16,32", "--arch", "tf_efficientnet_lite0")  # its inputs are as long as its strides
    evaluated = ("--scales", "20,32", "--eval-scales", "16,20,32")
    for words in ((*TWO, "--no-amp"), ("--scales", "20,32"), evaluated, padded):
        assert recipe("multiscale")([*QUICK, *words, "--dry-run"]) == 0


def test_a_config_is_refused_in_one_line_when_a_name_in_it_is_mistyped(capsys, tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("epohcs: 3\n")
    told = refused(capsys, tmp_path, "multiscale", "--config", "mine.yaml")
    assert "mine.yaml: there is no setting 'epohcs'; did you mean epochs?" in told


def missing_folder(root: Path) -> None:
    """Nothing is written."""


def neither_folder_nor_manifest(root: Path) -> None:
    root.mkdir()


def empty_class(root: Path) -> None:
    write_folders(root, {"train": 3})
    (root / "train" / "emu").mkdir()


def extra_class_in_val(root: Path) -> None:
    write_folders(root, {"train": 3, "val": 2})
    write_image(root / "val" / "emu" / "0.png")


def label_is_a_word(root: Path) -> None:
    write_manifest(root, "train", [("0.png", 0), ("1.png", "dog")])


def label_is_negative(root: Path) -> None:
    write_manifest(root, "train", [("0.png", 0), ("1.png", 1), ("2.png", -100)])


def label_is_too_large(root: Path) -> None:
    write_manifest(root, "train", [("0.png", 0), ("1.png", 1)])
    write_manifest(root, "val", [("0.png", 0), ("1.png", 2)])


def columns_are_missing(root: Path) -> None:
    write_manifest(root, "train", [("0.png", 0)])
    (root / "train.csv").write_text("who,what\n0.png,0\n")


def file_of_a_row_is_missing(root: Path) -> None:
    write_manifest(root, "train", [("0.png", 0), ("1.png", 1)])
    (root / "1.png").unlink()


DATA = [
    (missing_folder, "data: no such folder"),
    (neither_folder_nor_manifest, "neither a folder train/ nor a file train.csv"),
    (empty_class, "class 'emu' has no images"),
    (extra_class_in_val, "class 'emu' is not in train"),
    (label_is_a_word, "train.csv, line 3: label 'dog' is not a whole number"),
    (label_is_negative, "train.csv, line 4: label -100 is out of range"),
    (label_is_too_large, "val.csv, line 3: label 2 is out of range"),
    (columns_are_missing, "train.csv: needs the columns filepath,label; it has who,what"),
    (file_of_a_row_is_missing, "train.csv, line 3: there is no file"),
]


@pytest.mark.parametrize(("spoil", "told"), DATA, ids=[spoil.__name__ for spoil, _ in DATA])
def test_data_is_refused_in_one_line_when_it_is_wrong(capsys, tmp_path: Path, spoil, told: str):
    spoil(tmp_path / "data")
    words = ("--data-root", "data", "--log-with", "none", "--batch-size", "2", "--epochs", "2", "--img-size", "32")
    assert told in refused(capsys, tmp_path, "single_scale", *words)


@pytest.mark.parametrize("extra", [(), ("--dry-run",), ("--benchmark",)])
def test_a_command_is_refused_alike_when_it_would_only_plan_or_measure(capsys, tmp_path: Path, extra):
    words = (*QUICK, *TWO, "--batch-size", "61", *extra)
    assert "--batch-size 61 exceeds the 60 training images" in refused(capsys, tmp_path, "multiscale", *words)


def test_a_broken_image_is_named_in_one_line_when_training_meets_it(capsys, tmp_path: Path):
    write_folders(tmp_path / "data", {"train": 6, "val": 1})
    broken = tmp_path / "data" / "train" / "dog" / "3.png"
    broken.write_bytes(broken.read_bytes()[:100])
    words = ("--data-root", "data", "--arch", "test_resnet", "--img-size", "32", "--batch-size", "12", "--epochs", "2")
    assert recipe("single_scale")([*words, "--log-with", "none", "--num-workers", "1"]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "train/dog/3.png: cannot be read as an image" in err
