"""Labels of images with any number of classes: from manifests, folders and data sets of Python."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import write_folders, write_image, write_manifest
from toolkit import InputError, Settings
from toolkit.data.loading.python_data import find_data
from toolkit.data.sources.index import Found
from toolkit.data.sources.label_rows import as_rows, count_in, joined_labels


def found(root: Any, task: str = "multilabel", data: Any = None, **more) -> Found:
    given = {} if data is not None else {"data_root": str(root)}
    return find_data(Settings(task=task, num_workers=1, **given, **more), 32, data)


def write(root: Path, text: str, name: str = "train") -> Path:
    """A manifest as it stands, and its files, which its first column names."""
    for line in text.splitlines()[1:]:
        write_image(root / line.partition(",")[0])
    (root / f"{name}.csv").write_text(text)
    return root


def rows(index: Any) -> list[list[int]]:
    return index.labels.tolist()


def test_a_cell_names_any_number_of_classes(tmp_path: Path):
    write_manifest(
        tmp_path, "train", [("a.png", "cat|dog"), ("b.png", ""), ("c.png", " dog | bird "), ("d.png", "cat")]
    )
    write_manifest(tmp_path, "val", [("e.png", "bird|dog")])
    data = found(tmp_path)
    assert tuple(data.classes) == ("bird", "cat", "dog")
    assert rows(data.train) == [[0, 1, 1], [0, 0, 0], [1, 0, 1], [0, 1, 0]]
    assert rows(data.val) == [[1, 0, 1]]
    assert data.train.labels.dtype == np.int64


def test_single_labels_are_fine_too(tmp_path: Path):
    write_manifest(tmp_path, "train", [("a.png", "cat"), ("b.png", "dog")])
    assert rows(found(tmp_path).train) == [[1, 0], [0, 1]]


def test_numbers_are_classes_named_by_a_file(tmp_path: Path):
    write_manifest(tmp_path, "train", [("a.png", "0|2"), ("b.png", "1")])
    assert tuple(found(tmp_path).classes) == ("0", "1", "2")
    (tmp_path / "class_names.txt").write_text("red\ngreen\nblue\n")
    data = found(tmp_path)
    assert tuple(data.classes) == ("red", "green", "blue")
    assert rows(data.train) == [[1, 0, 1], [0, 1, 0]]
    (tmp_path / "class_names.txt").write_text("red\ngreen\nblue\nwhite\n")  # training names it: no image has it
    assert found(tmp_path).train.labels.shape == (2, 4)


def test_a_column_a_class(tmp_path: Path):
    write(tmp_path, "image,width,Dog,cat\na.png,24,1,0\nb.png,24,0,0\nc.png,24,1.0,true\n")
    write(tmp_path, "image,cat,Dog\nd.png,1,0\n", "val")
    write(tmp_path, "image,width\ne.png,24\n", "test")
    data = found(tmp_path)
    assert tuple(data.classes) == ("Dog", "cat")
    assert rows(data.train) == [[1, 0], [0, 0], [1, 1]]
    assert rows(data.val) == [[0, 1]]  # by name, not by place
    assert data.test is None  # it has no labels


def test_a_split_column_tells_the_splits(tmp_path: Path):
    write(tmp_path, "file,tags,split\na.png,x|y,train\nb.png,y,train\nc.png,x,val\n", "labels")
    data = found(tmp_path)
    assert rows(data.train) == [[1, 1], [0, 1]]
    assert rows(data.val) == [[1, 0]]


def test_a_source_of_one_class_an_image_has_rows_with_one(tmp_path: Path):
    data = found(write_folders(tmp_path, {"train": 2, "val": 1}))
    assert rows(data.train) == [[1, 0], [1, 0], [0, 1], [0, 1]]
    assert rows(data.val) == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("filepath,label\na.png,\nb.png,\n", "train.csv: needs at least 2 classes; it has 0"),
        ("filepath,label\na.png,cat\nb.png,cat\n", "train.csv: needs at least 2 classes; it has 1"),
        ("filepath,cat,dog\na.png,1,2\n", "train.csv, line 2: dog is '2', not 0 or 1"),
        ("filepath,cat,dog\na.png,1\n", "train.csv, line 2: dog is '', not 0 or 1"),
        ("filepath,label\na.png,cat|dog\na.png,cat\n", "a.png has two labels"),
        ("filepath,species,breed\na.png,x,y\n", "--label-column names the one of labels: species or breed"),
        ("filepath,label\na.png,0|-1\nb.png,1\n", "there is no class"),
    ],
)
def test_bad_manifests_are_refused_in_one_line(tmp_path: Path, text: str, told: str):
    if told == "there is no class":  # a name like any other, since not all labels are numbers
        assert tuple(found(write(tmp_path, text)).classes) == ("-1", "0", "1")
        return
    with pytest.raises(InputError) as error:
        found(write(tmp_path, text))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_classes_that_train_lacks_are_refused(tmp_path: Path):
    write_manifest(tmp_path, "train", [("a.png", "cat|dog")])
    write_manifest(tmp_path, "val", [("b.png", "cat|cow")])
    with pytest.raises(InputError, match=r"val.csv, line 2: label 'cow' is not one of train's$"):
        found(tmp_path)
    write(tmp_path, "filepath,cat,dog\na.png,1,0\n")
    write(tmp_path, "filepath,cat,cow\nb.png,1,0\n", "val")
    with pytest.raises(InputError, match=r"val.csv: the column 'cow' is not in both it and train's manifest"):
        found(tmp_path)


@pytest.mark.parametrize(
    "labels", [("cat", "dog", "cat|dog"), ("cat|dog", "dog|bird"), ("0", "1", "0|1"), ("0|1", "1", "0")]
)
def test_several_labels_hint_at_the_task_for_them(tmp_path: Path, labels: Sequence[str]):
    write_manifest(tmp_path, "train", [(f"{i}.png", label) for i, label in enumerate(labels)])
    with pytest.raises(InputError, match=r"^\S+train.csv.* images with several labels are for --task multilabel$"):
        found(tmp_path, task="classification")


def test_a_name_that_only_looks_like_several_labels_stays_one(tmp_path: Path):
    write_manifest(tmp_path, "train", [("a.png", "a|b"), ("b.png", "c|d"), ("c.png", "e")])
    assert tuple(found(tmp_path, task="classification").classes) == ("a|b", "c|d", "e")
    assert joined_labels({"a|b", "c"}) is None
    assert joined_labels({"a|b", "b"}) == "a|b"


class Items:
    def __init__(self, labels: Sequence[Any], told: bool = True, classes: Sequence[str] = ()) -> None:
        self.labels = labels
        if told:
            self.targets = labels
        if classes:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[np.ndarray, Any]:
        return np.zeros((8, 8, 3), dtype=np.uint8), self.labels[i]


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize(
    "labels",
    [
        [[0, 2], [], [1]],
        [(0, 2), (), (1,)],
        [{0, 2}, set(), {1}],
        [[1, 0, 1], [0, 0, 0], [0, 1, 0]],
        [np.array([1, 0, 1]), np.array([0, 0, 0]), np.array([0, 1, 0])],
        [np.array([1.0, 0.0, 1.0]), np.array([0.0, 0, 0]), np.array([0.0, 1, 0])],
        [np.array([0, 2]), np.array([], dtype=int), 1],
    ],
)
def test_labels_of_python_are_indexes_or_vectors(labels: Sequence[Any], told: bool):
    data = found(None, data={"train": Items(labels, told), "val": Items(labels[:1], told)})
    assert rows(data.train) == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert rows(data.val) == [[1, 0, 1]]


def test_classes_of_a_data_set_tell_their_number():
    data = found(None, data={"train": Items([[0], [1]], classes=("a", "b", "c"))})
    assert rows(data.train) == [[1, 0, 0], [0, 1, 0]]
    assert count_in([[0, 1], [1, 0]], "x") == 2
    assert as_rows([[0, 1]], 2, "x").tolist() == [[0, 1]]
    assert as_rows([{0, 1}], 2, "x").tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([[0], ["cat"]], r"data\['train'\].targets\[1\]: label \['cat'\] must be a class index"),
        ([[0, 3], [1]], r"data\['train'\].targets\[0\]: class 3 is out of range: 0 to 2"),
        ([[0], 0.5], r"data\['train'\].targets\[1\]: label 0.5 must be a class index"),
    ],
)
def test_other_labels_of_python_are_refused(labels: Sequence[Any], told: str):
    with pytest.raises(InputError, match=told):
        found(None, data={"train": Items(labels, classes=("a", "b", "c"))})


def test_sequences_of_indexes_hint_at_the_task_for_them():
    with pytest.raises(InputError, match="images with several labels are for --task multilabel"):
        found(None, task="classification", data={"train": Items([[0, 1], [1]])})
