"""Hugging Face datasets whose images have several labels: sequences of classes or names, columns of booleans."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Value

from tests.conftest import recipe
from tests.unit.data.test_shards import image
from toolkit import InputError, Settings
from toolkit.data.sources.index import Found
from toolkit.data.sources.read import read_bytes
from toolkit.data.sources.splits import find_splits

ANIMALS = ClassLabel(names=["cat", "dog", "emu"])
EXPECTED = [[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 0]]
INDEXES = [[0, 2], [], [1], [1, 0]]


def write(root: Path, split: str, columns: dict[str, tuple[Any, Sequence[Any]]], first: int = 0) -> Path:
    """A split of encoded images beside columns, each of a kind and values; a list of one kind is a sequence of it."""
    kinds = {
        name: datasets.Sequence(kind[0]) if isinstance(kind, list) else kind for name, (kind, _) in columns.items()
    }
    count = len(next(iter(columns.values()))[1])
    rows = {"image": [{"bytes": image(first + i), "path": None} for i in range(count)]}
    rows |= {name: values for name, (_, values) in columns.items()}
    features = datasets.Features({"image": datasets.Image(), **kinds})
    root.mkdir(exist_ok=True, parents=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(root / f"{split}-00000-of-00001.parquet"))
    return root


def found(root: Path, task: str = "multilabel", **values) -> Found:
    return find_splits(Settings(data_root=f"hf:{root}", task=task, **values), 32)


@pytest.mark.parametrize(
    ("kind", "values", "classes"),
    [
        ([ANIMALS], INDEXES, ("cat", "dog", "emu")),
        ([Value("int64")], INDEXES, ("0", "1", "2")),
        ([Value("uint8")], EXPECTED, ("0", "1", "2")),
        ([Value("bool")], [[*map(bool, row)] for row in EXPECTED], ("0", "1", "2")),
        ([Value("string")], [["cat", "emu"], [], ["dog"], [" dog ", "cat", "cat"]], ("cat", "dog", "emu")),
    ],
    ids=["classes", "numbers", "zeros and ones", "booleans", "texts"],
)
def test_a_sequence_holds_the_labels_of_an_image(tmp_path: Path, kind: Any, values: Sequence[Any], classes: Any):
    root = write(tmp_path / "data", "train", {"tags": (kind, values), "author": (Value("string"), list("abcd"))})
    write(root, "validation", {"tags": (kind, values[:1]), "author": (Value("string"), ["a"])}, first=50)
    data = found(root)
    assert tuple(data.classes) == classes
    assert data.train.labels.tolist() == EXPECTED
    assert data.train.labels.dtype == np.int64
    assert data.val is not None
    assert data.val.labels.tolist() == EXPECTED[:1]
    assert data.test is None
    assert [read_bytes(data.train, i) for i in range(4)] == [image(i) for i in range(4)]
    assert read_bytes(data.val, 0) == image(50)


def test_two_classes_of_an_image_are_indexes_and_no_vector(tmp_path: Path):
    root = write(tmp_path / "data", "train", {"labels": ([ClassLabel(names=["cat", "dog"])], [[0, 1], [1, 0], [1]])})
    assert found(root).train.labels.tolist() == [[1, 1], [1, 1], [0, 1]]


def test_a_column_of_booleans_a_class(tmp_path: Path):
    flags = {
        name: (Value("bool"), [bool(row[i]) for row in EXPECTED]) for i, name in enumerate(("smile", "hat", "beard"))
    }
    root = write(tmp_path / "data", "train", {"person": (Value("int64"), [5, 5, 6, 7]), **flags})
    write(root, "test", {"person": (Value("int64"), [5] * 4), **flags})
    data = found(root)
    assert tuple(data.classes) == ("smile", "hat", "beard")
    assert data.train.labels.tolist() == EXPECTED
    assert data.test is not None  # none of them is told to be kept secret


def test_images_that_are_files_have_several_labels_too(tmp_path: Path):
    root = tmp_path / "data"
    for split, names in {"train": "abcd", "validation": "e"}.items():
        (root / split).mkdir(parents=True)
        for seed, name in enumerate(names):
            (root / split / f"{name}.png").write_bytes(image(seed))
        rows = [{"file_name": f"{name}.png", "tags": ["x", "y"] if name < "c" else ["y"]} for name in names]
        (root / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = found(root)
    assert data.train.labels.tolist() == [[1, 1], [1, 1], [0, 1], [0, 1]]
    assert [Path(data.train.place(i).path).name for i in range(4)] == ["a.png", "b.png", "c.png", "d.png"]


def test_one_class_an_image_is_a_row_with_one(tmp_path: Path):
    root = write(tmp_path / "data", "train", {"label": (ANIMALS, [0, 2, 1, 1]), "checked": (Value("bool"), [True] * 4)})
    assert found(root).train.labels.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 0]]


def test_a_column_is_named_where_there_are_several(tmp_path: Path):
    columns = {"tags": ([Value("string")], [["a"], ["b"]]), "colors": ([Value("string")], [["red"], ["blue", "red"]])}
    root = write(tmp_path / "data", "train", columns)
    with pytest.raises(InputError, match=r"hf:\S+: --label-column takes one of tags, colors$"):
        found(root)
    data = found(root, label_column="colors")
    assert tuple(data.classes) == ("blue", "red")
    assert data.train.labels.tolist() == [[0, 1], [1, 1]]
    usual = {"labels": columns["tags"], "others": columns["colors"]}
    assert tuple(found(write(tmp_path / "usual", "train", usual)).classes) == ("a", "b")


@pytest.mark.parametrize("secret", [[[], [], []], [[-1], [-1], [-1]]])
def test_a_test_split_without_any_label_is_left_out(tmp_path: Path, secret: Any):
    root = write(tmp_path / "data", "train", {"labels": ([Value("int64")], INDEXES)})
    write(root, "test", {"labels": ([Value("int64")], secret)}, first=70)
    assert found(root).test is None


REFUSED = [
    ([Value("int64")], [[0], [1], None], "train: row 2 has no labels; a row without labels has an empty sequence"),
    ([Value("int64")], [[0], [1], [-1]], "train: labels[2]: class -1 is out of range: 0 to 1"),
    ([ANIMALS], [[0], [0]], None),
    ([Value("string")], [["a"], ["b", ""]], "train, row 1: label '' is not a name"),
    ([Value("string")], [["a"], ["b", None]], "train, row 1: label None is not a name"),
    ([Value("string")], [["a"], ["a"]], "train: needs at least 2 classes; it has 1"),
    ([Value("int64")], [[0], [2**21]], "train: labels holds 2097152, which is no class index"),
    (
        [Value("float32")],
        [[0.5], [1.0]],
        "needs one column of sequences of labels, columns of booleans, or one column of kind ClassLabel, or one named",
    ),
]


@pytest.mark.parametrize(("kind", "values", "told"), REFUSED)
def test_what_cannot_be_labels_is_refused_in_one_line(tmp_path: Path, kind: Any, values: Any, told: str | None):
    root = write(tmp_path / "data", "train", {"labels": (kind, values)})
    if told is None:  # of classes that no image has the task decides
        assert found(root).train.labels.tolist() == [[1, 0, 0], [1, 0, 0]]
        return
    with pytest.raises(InputError) as error:
        found(root)
    assert f"hf:{root}: {told}" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_label_that_train_lacks_is_refused(tmp_path: Path):
    root = write(tmp_path / "data", "train", {"labels": ([Value("string")], [["a"], ["b"]])})
    write(root, "validation", {"labels": ([Value("string")], [["a"], ["c"]])})
    with pytest.raises(InputError, match=r"validation, row 1: label 'c' is not one of train's$"):
        found(root)


@pytest.mark.parametrize("flag", [{}, {"label_column": "labels"}])
def test_several_labels_hint_at_the_task_for_them(tmp_path: Path, flag: dict[str, str]):
    root = write(tmp_path / "data", "train", {"labels": ([ANIMALS], INDEXES)})
    with pytest.raises(InputError, match=r"; images with several labels are for --task multilabel$"):
        found(root, task="classification", **flag)


def test_a_run_on_them_is_trained_and_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rng = np.random.default_rng(0)
    for split, count, first in (("train", 24, 0), ("validation", 6, 100), ("test", 6, 200)):
        values = [np.flatnonzero(row < 0.5).tolist() for row in rng.random((count, 3))]
        write(tmp_path / "data", split, {"tags": ([ANIMALS], values)}, first)
    words = ["--task", "multilabel", "--arch", "test_resnet", "--img-size", "32", "--batch-size", "8", "--epochs", "1"]
    words += ["--data-root", f"hf:{tmp_path / 'data'}", "--num-workers", "0", "--log-with", "none"]
    words += ["--sampling", "balanced", "--label-column", "tags", "--output-dir", str(tmp_path / "run")]
    assert recipe("single_scale")(words) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {*summary["test"]["32px"]} >= {"map", "micro_f1", "macro_f1"}
    assert recipe("evaluate")([str(tmp_path / "run"), "--output-dir", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "evaluation.json").read_text())["splits"]["test"]["32px"]
    assert again["map"] == pytest.approx(summary["test"]["32px"]["map"], abs=1e-6)
