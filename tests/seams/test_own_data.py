"""Data sets passed from Python: exact, read in other processes, checked, and evaluated, predicted and exported."""

import csv
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import own_data
import pytest
import torch
import yaml
from own_data import DATA, Stripes, start
from PIL import Image
from runs import cut_off, delivered, different, kill, results
from torch.utils.data import Subset

from tests.conftest import PATIENCE_S, recipe
from tests.forkserver import run_ranks
from toolkit import InputError, Settings
from toolkit.data.loading.pipeline import open_pipeline
from toolkit.data.loading.python_data import open_data
from toolkit.system.errors import BadSampleError
from toolkit.tools.evaluate import evaluate
from toolkit.tools.export import export
from toolkit.tools.predict import predict

STEPS = 8  # an epoch


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted."""
    run = tmp_path_factory.mktemp("data") / "run"
    start(run)
    return run


def kill_in_the_second_epoch(_: Path, run: Path) -> None:
    kill(Path(own_data.__file__), run, STEPS * 3 // 2)


CUT = [pytest.param(cut_off, id="cut off"), pytest.param(kill_in_the_second_epoch, id="killed", marks=pytest.mark.slow)]


@pytest.mark.parametrize("interrupt", CUT)
def test_an_interrupted_run_goes_on_to_the_same_end_with_another_number_of_workers(
    whole: Path, interrupt: Callable[[Path, Path], None], capsys: pytest.CaptureFixture[str]
):
    run = Path("run")
    interrupt(whole, run)
    start(run, num_workers=1)
    out = capsys.readouterr().out
    assert "continuing from run/checkpoints/step-0000000" in out
    assert "not bit-exact" not in out
    assert different(run, whole) == []
    assert delivered(run) == delivered(whole)
    assert results(run) == results(whole)


@pytest.mark.slow
def test_two_processes_share_the_same_images_and_go_on_exactly(whole: Path, tmp_path: Path):
    for run in ("two", "again"):
        if run == "again":
            cut_off(tmp_path / "two", tmp_path / "again")
        done = run_ranks([own_data.__file__, str(tmp_path / run)], timeout=PATIENCE_S)
        assert done.returncode == 0, done.stderr[-3000:]
    assert different(tmp_path / "two", tmp_path / "again") == []
    assert delivered(tmp_path / "two") == delivered(tmp_path / "again")
    one, two = (
        [sorted(i for line in delivered(run) if line["step"] == step for i in line["ids"]) for step in range(3 * STEPS)]
        for run in (whole, tmp_path / "two")
    )
    assert one == two


class Still(Stripes):
    """Draws nothing."""

    shades = 1


def write(root: Path, data: dict[str, Stripes]) -> Path:
    """The same images as files, in the same order and with the same names of classes."""
    for split, images in data.items():
        rows = []
        for i in range(len(images)):
            pixels, label = images[i]
            path = root / split / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path)
            rows.append((f"{split}/{path.name}", label))
        with (root / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("filepath", "label"), *rows])
    (root / "class_names.txt").write_text("\n".join(Stripes.classes))
    return root


STILL = {"train": Still(48, 0), "val": Still(12, 1), "test": Still(9, 2)}
ALL = {"rand_augment": 5, "random_erasing": 0.5, "mixup": 0.4, "cutmix": 1.0}


def test_a_data_set_trains_as_files_of_the_same_images_do():
    write(Path("files"), STILL)
    start(Path("own"), STILL, epochs=2, **ALL)
    start(Path("filed"), None, epochs=2, data_root="files", cache="off", **ALL)
    assert different(Path("own"), Path("filed")) == []
    assert results(Path("own")) == results(Path("filed"))
    own, filed = (yaml.safe_load(Path(run, "config.yaml").read_text()) for run in ("own", "filed"))
    assert own["data_root"] == "data sets passed from Python: test_own_data:Still"
    assert {name for name in own if own[name] != filed[name]} == {"data_root"}


@pytest.mark.parametrize("augmentation", [{}, ALL], ids=["plain", "augmented"])
def test_pixels_are_the_same_for_any_number_of_workers(augmentation: dict[str, float]):
    settings = Settings(arch="test_resnet", batch_size=12, **augmentation)
    splits = open_data(settings, 24, DATA)
    strategy = own_data.SingleScale(24)

    def epoch(workers: int, number: int = 0) -> list[torch.Tensor]:
        from toolkit.data.loading.cache import CacheChoice
        from toolkit.data.loading.sampler import Epoch, RankShare
        from toolkit.strategies.base import Budget

        (phase,) = strategy.phases(Budget(1, 96, 12))
        pipeline = open_pipeline(settings, strategy, splits, CacheChoice("off", (None,), 0.0), workers)
        batches = pipeline.batches(Epoch(number, phase, 0, 0, STEPS), 0, RankShare(0, 1, 1))
        return [batch.images for batch in batches]

    one, two, later = epoch(1), epoch(2), epoch(2, 1)
    assert len(one) == STEPS
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, later, strict=True))  # control


class Elsewhere(Stripes):
    """Must not be read in the process that made it, as one that opens a file when it is first read."""

    def __init__(self, count: int, seed: int, known: bool = True) -> None:
        super().__init__(count, seed)
        self.labels, self.process = self.targets, os.getpid()
        if not known:
            del self.targets

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        assert os.getpid() != self.process
        self.targets = self.labels
        return super().__getitem__(i)


@pytest.mark.slow
def test_the_process_that_trains_never_reads_a_data_set():
    data = {"train": Elsewhere(48, 0), "val": Elsewhere(12, 1, known=False), "test": Elsewhere(9, 2)}
    start(Path("run"), data, epochs=1)
    evaluate(Path("run"), data=data, recalibrate=True, scales=(16, 24))
    predict(Path("run"), data=data["test"], output="rows.csv")
    export(Path("run"), data=data, formats=["safetensors"])


# Labels and classes


def opened(data: Any, **settings: Any) -> Any:
    return open_data(Settings(**settings), 24, data)


def test_labels_are_read_once_where_there_are_no_targets(caplog: pytest.LogCaptureFixture):
    pairs = [Stripes(7, 0)[i] for i in range(7)]
    with caplog.at_level(logging.INFO):
        splits = opened({"train": pairs, "val": Stripes(3, 1)})
    assert caplog.text.count("reading the labels of 7 images once: data['train'] has no targets") == 1
    assert "data['val']" not in caplog.text
    assert splits.train.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert splits.classes == ("0", "1", "2")
    assert list(splits.val.names) == ["val/0", "val/1", "val/2"]


def test_a_subset_is_looked_through(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        splits = opened({"train": Subset(Stripes(20, 0), [5, 3, 1, 0]), "val": Subset(Stripes(9, 1), [2, 1, 0])})
    assert "reading the labels" not in caplog.text
    assert splits.train.labels.tolist() == [2, 0, 1, 0]
    assert splits.classes == Stripes.classes
    assert splits.source == "data sets passed from Python: own_data:Stripes"


class Items(list):  # type: ignore[type-arg]
    """A list of items, and their targets."""

    targets: Any


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, lambda labels: [np.int32(x) for x in labels]])
def test_targets_may_be(kind: Callable[[Any], Any]):
    data = Items(Stripes(9, 0)[i] for i in range(9))
    data.targets = kind([0, 1, 2] * 3)
    assert opened({"train": data, "val": data}).train.labels.tolist() == [0, 1, 2] * 3


def test_classes_that_are_called_alike_are_told_apart():
    data = Stripes(9, 0)
    data.classes = [("crane",), ("crane",), ("tench", "Tinca tinca")]  # type: ignore[assignment]
    assert opened({"train": data, "val": data}).classes == ("crane (0)", "crane (1)", "tench, Tinca tinca")


def test_a_share_of_train_is_held_out_where_there_is_no_val():
    splits = opened({"train": Stripes(60, 0)}, val_split=0.2)
    assert (len(splits.train), len(splits.val), splits.test) == (48, 12, None)
    assert np.bincount(splits.val.labels).tolist() == [4, 4, 4]
    assert {*splits.train.names} | {*splits.val.names} == {f"train/{i}" for i in range(60)}
    held = int(splits.val.names[0].removeprefix("train/"))
    assert splits.val.offset[0] == held
    assert opened({"train": Stripes(60, 0)}, val_split=0.2).val.digest() == splits.val.digest()
    assert opened({"train": Stripes(60, 0)}, val_split=0.2, seed=1).val.digest() != splits.val.digest()


def test_a_label_may_be_a_row_of_numbers_for_a_task_of_several_labels():
    rows = np.eye(3)[[0, 1, 2, 0]] + np.eye(3)[2]
    data = [(np.zeros((4, 4, 3), np.uint8), torch.tensor(row).clamp(max=1).float()) for row in rows]
    splits = opened({"train": data, "test": data[:2]}, val_split=0.25)
    assert splits.train.labels.shape == (3, 3)
    assert splits.train.labels.dtype == np.int64
    assert len(splits.val) == 1
    with pytest.raises(InputError, match="labels of shape"):
        start(Path("run"), {"train": data, "val": data}, batch_size=2)


@pytest.mark.parametrize("rows", [[[0.1, 0.9], [0.7, 0.3]] * 3, torch.tensor([[0.1, 0.9], [0.7, 0.3]] * 3).double()])
def test_rows_that_float32_rounds_are_the_labels_that_the_data_set_told(rows: Any):
    data = Items((np.zeros((4, 4, 3), np.uint8), row) for row in rows)
    data.targets = rows
    splits = opened({"train": data, "val": data})
    assert splits.train.labels.dtype == np.float32
    items = splits.train.items
    items.check_label(1, items.read(1)[1], splits.train.labels[1])
    with pytest.raises(InputError, match="the data set told"):
        items.check_label(1, items.read(0)[1], splits.train.labels[1])


# After training


def test_a_run_is_evaluated_predicted_and_exported_with_its_data_sets(whole: Path):
    summary = yaml.safe_load((whole / "summary.json").read_text())
    report = evaluate(whole, data=DATA, output_dir=Path("own"))
    for split in ("val", "test"):
        assert report.evaluations[split].scores["24px"]["top1"] == summary[split]["24px"]["top1"]
    assert Path("own/predictions/val.csv").read_text() == (whole / "predictions/val.csv").read_text()
    only = evaluate(whole, data={"test": DATA["test"]}, output_dir=Path("other"), num_workers=0)
    assert [*only.evaluations] == ["test"]

    images = [image for image, _ in (DATA["test"][i] for i in range(9))]
    for data in (DATA["test"], images):
        done = predict(whole, data=data, output="rows.csv", overwrite=True)
        assert (done.images, done.read) == (9, 9)
        with Path("rows.csv").open(newline="") as file:
            assert [row["path"] for row in csv.DictReader(file)] == [f"data/{i}" for i in range(9)]

    assert export(whole, data=DATA, formats=["safetensors"], output_dir=Path("export")).checked == 32


def test_recipes_say_how_such_a_run_is_opened(whole: Path, capsys: pytest.CaptureFixture[str]):
    for words in (["evaluate", str(whole)], ["export", str(whole), "--output-dir", "export"]):
        assert recipe(words[0])(words[1:]) == 2
        assert capsys.readouterr().err == (
            "error: data sets passed from Python: own_data:Stripes: these cannot be opened by name: from Python pass "
            "data=, on the command line let --data-root name their images\n"
        )
    write(Path("files"), DATA)
    assert recipe("evaluate")([str(whole), "--data-root", "files", "--output-dir", "evaluation"]) == 0
    assert recipe("predict")([str(whole), "files/test", "--output", "rows.csv"]) == 0
    words = ["--config", str(whole / "config.yaml"), "--img-size", "24", "--output-dir", "again"]
    assert recipe("single_scale")(words) == 2
    assert "these cannot be opened by name" in capsys.readouterr().err


def test_other_data_needs_the_classes_of_the_run(whole: Path):
    other = Stripes(9, 5)
    other.classes = ("plain", "narrow", "checked")
    with pytest.raises(InputError, match="data: test: other classes than the run's: 'checked' is no class of the run"):
        evaluate(whole, data={"test": other})
    other.classes, other.targets = Stripes.classes, [0, 1, 3]
    with pytest.raises(InputError, match=r"data: test, test/2: label 3 is out of range: 0 to 2, as in train"):
        evaluate(whole, data={"test": other})
    with pytest.raises(InputError, match="--data-root x would be ignored: data= is given"):
        evaluate(whole, data=DATA, data_root="x")
    with pytest.raises(InputError, match="paths would be ignored: data= is given"):
        predict(whole, ["a.png"], data=other)


# Bad images


class Broken(Stripes):
    """Raises on some of its images."""

    bad = (3, 17)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        if i in self.bad:
            raise KeyError(f"photo {i}")
        return super().__getitem__(i)


@pytest.mark.slow
def test_an_image_that_raises_ends_a_run_or_is_quarantined():
    data = {"train": Broken(96, 0), "val": Broken(12, 1), "test": Stripes(9, 2)}
    with pytest.raises(BadSampleError, match=r"train/(3|17): cannot be read as an image: KeyError: 'photo (3|17)'"):
        start(Path("run"), data)
    summary = start(Path("run"), data, on_bad_sample="quarantine", epochs=3)
    assert summary["val"]["24px"]["unreadable"] == 1
    names = {line.split('"name": "')[1].split('"')[0] for line in Path("run/quarantine.jsonl").read_text().splitlines()}
    assert names == {"train/3", "train/17", "val/3"}


def test_a_first_image_that_raises_is_refused_unless_quarantined():
    class First(Broken):
        bad = (0,)

    data = {"train": First(96, 0), "val": Stripes(12, 1)}
    with pytest.raises(BadSampleError, match="train/0: cannot be read as an image: KeyError"):
        opened(data)
    assert len(opened(data, on_bad_sample="quarantine").train) == 96
    pairs = First(9, 0)
    del pairs.targets
    pairs.__class__.__len__ = lambda _: 9  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"train/0: cannot be read .* its label is not known either"):
        opened({"train": pairs}, on_bad_sample="quarantine")
