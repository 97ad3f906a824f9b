"""What cannot work with labels, classes, weights and layers: one line, exit code 2, and nothing written."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import recipe, write_image, write_manifest
from toolkit import InputError, Settings, SingleScale, train
from toolkit.models.classification import Classification

SINGLE, SEVERAL = ("cat", "dog"), ("cat|dog", "dog", "cat", "")
MULTILABEL = ("--task", "multilabel")


def manifests(root: Path, train: Sequence[str] = SEVERAL, val: Sequence[str] = SINGLE) -> Path:
    for split, labels in (("train", train), ("val", val)):
        write_manifest(root, split, [(f"{split}{i}.png", labels[i % len(labels)]) for i in range(24)])
    return root


def columns(root: Path, header: str, *rows: str) -> Path:
    """A manifest of cells as they are, and its images."""
    lines = [f"{i}.png,{rows[i % len(rows)]}" for i in range(24)]
    for i in range(24):
        write_image(root / f"{i}.png")
    (root / "train.csv").write_text("\n".join([header, *lines]) + "\n")
    return root


def command(root: Path | None, output: Path, *more: str) -> list[str]:
    data = ["--synthetic-count", "60", "--synthetic-size", "24"] if root is None else ["--data-root", str(root)]
    words = ["--arch", "test_resnet", "--img-size", "24", "--epochs", "1", "--batch-size", "6", "--num-workers", "1"]
    return [*data, *words, "--log-with", "none", "--output-dir", str(output), *more]


REFUSED: list[tuple[Callable[[Path], Path] | None, tuple[str, ...], str]] = [
    (None, ("--unfreeze-from", "layr3"), "--unfreeze-from layr3: test_resnet has no such stage; did you mean layer3?"),
    (
        None,
        ("--model-from", "frozen:frozen", "--freeze"),
        "--freeze: nothing is left to learn, because the model froze",
    ),
    (
        None,
        ("--task-kwargs", "thresholds=0.5"),
        "thresholds: --task classification does not take it; --task multilabel",
    ),
    (
        manifests,
        (*MULTILABEL, "--task-kwargs", "threshold=0.5"),
        "threshold: --task multilabel does not take it; did you",
    ),
    (
        manifests,
        (*MULTILABEL, "--task-kwargs", "thresholds=1.5"),
        "thresholds=1.5: a threshold must be above 0 and below",
    ),
    (
        manifests,
        (*MULTILABEL, "--task-kwargs", "thresholds=0"),
        "thresholds=0: a threshold must be above 0 and below 1",
    ),
    (
        manifests,
        (*MULTILABEL, "--task-kwargs", "thresholds=nan"),
        "thresholds=nan: a threshold must be above 0 and below",
    ),
    (manifests, (), "train.csv, line 5: no label; images with several labels are for --task multilabel"),
    (
        lambda root: manifests(root, ("cat|dog", "dog", "cat")),
        (),
        "label 'cat|dog' is several of the labels: images with",
    ),
    (
        lambda root: manifests(root, SINGLE, SEVERAL),
        (),
        "val.csv, line 2: label 'cat|dog' is not one of train's; images",
    ),
    (
        lambda root: manifests(root, ("0", "1", "0|1")),
        (),
        "train.csv, line 4: label '0|1' is not a whole number; images",
    ),
    (
        lambda root: columns(root, "file,cat,dog", "1,0", "0,1"),
        (),
        "it has file,cat,dog; --label-column names the one of labels; images with several labels are for --task",
    ),
    (
        lambda root: columns(root, "file,cat,dog", "1,0", "0,x"),
        MULTILABEL,
        "line 3: dog is 'x', not 0 or 1; --label-column",
    ),
    (
        lambda root: columns(root, "file,cat,dog,emu", "1,0,0", "0,1,0"),
        MULTILABEL,
        "no image of train has class 'emu': leave the class out, add images that have it",
    ),
    (
        None,
        ("--class-weights-power", "0.5"),
        "--class-weights-power would be ignored: it needs --class-weights inverse",
    ),
    (
        None,
        ("--class-weights", "inverse", "--task", "tags:Tags"),
        "--class-weights inverse would be ignored by --task tags",
    ),
]


@pytest.mark.parametrize(("data", "words", "told"), REFUSED, ids=[told[:40] for _, _, told in REFUSED])
def test_it_is_refused_in_one_line(
    data: Callable[[Path], Path] | None,
    words: tuple[str, ...],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "frozen.py").write_text(FROZEN)
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "contract"))
    root = data and data(tmp_path / "data")
    flags = ("--import", "tags") if "tags:Tags" in words else ()
    given = command(root, tmp_path / "run", *flags, *words)
    if "--model-from" in words:
        del given[given.index("--arch") : given.index("--arch") + 2]
    assert recipe("single_scale")(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not (tmp_path / "run").exists()


FROZEN = """
import timm

def frozen(num_classes):
    model = timm.create_model("test_resnet", num_classes=num_classes)
    model.fc.requires_grad_(False)
    return model
"""


@dataclass(frozen=True)
class Uncounted(Classification):
    """A task of the user's own that does not tell the images of a class."""

    def class_counts(self, labels, classes):
        return np.zeros(classes)


def test_class_weights_need_numbers_of_images(tmp_path: Path):
    def settings(name: str, **more) -> Settings:
        usual = {"synthetic_count": 60, "synthetic_size": 24, "batch_size": 20, "epochs": 1, "log_with": "none"}
        return Settings(**usual, **more, output_dir=tmp_path / name)

    for name, task in (
        ("uncounted", Uncounted(class_weights="inverse")),
        ("counted", Classification("ce", 0, "inverse")),
    ):
        if name == "counted":  # control
            assert train(settings(name), SingleScale(24), task=task)["exit_reason"] == "done"
            continue
        told = r"^--class-weights inverse: Uncounted\.class_counts gives no number of images for each of 10 classes"
        with pytest.raises(InputError, match=told):
            train(settings(name), SingleScale(24), task=task)
        assert not (tmp_path / name).exists()


class Mixed:
    """A data set of Python whose labels are of two tasks."""

    targets = (0, 1, [0, 1], 1) * 6

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int):
        return np.zeros((24, 24, 3), dtype=np.uint8), self.targets[i]


def test_labels_of_two_tasks_in_a_data_set_of_python_are_refused(tmp_path: Path):
    settings = Settings(batch_size=6, epochs=1, num_workers=1, log_with="none", output_dir=tmp_path / "run")
    with pytest.raises(
        InputError, match=r"^data\['train'\].targets\[2\]: label of shape \(2,\), others of \(\); images with"
    ):
        train(settings, SingleScale(24), data={"train": Mixed(), "val": Mixed()})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("split", ["val", "held out"])
def test_a_class_that_validation_lacks_is_told_and_does_not_count(
    split: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root = manifests(tmp_path / "data", (*SEVERAL, "emu"))
    if split == "held out":
        (root / "val.csv").unlink()
    more = (*MULTILABEL, *(("--val-split", "0.05") if split == "held out" else ()))
    assert recipe("single_scale")(command(root, tmp_path / "run", *more)) == 0
    assert "data      val has no images of" in capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "summary.json").read_text())["val"]["24px"]
    assert 0 <= found["map"] <= 100
