"""Data sets passed from Python that cannot work are refused in one line, before anything is written where possible."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_data import DATA, Stripes, start
from runs import cut_off
from torch.utils.data import IterableDataset

from toolkit import InputError, Settings
from toolkit.data.loading.python_data import open_data


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def changed(**attributes: Any) -> Stripes:
    data = Stripes(12, 0)
    for name, value in attributes.items():
        setattr(data, name, value)
    return data


class Items(list):  # type: ignore[type-arg]
    """A list of items, with the targets of Stripes."""

    targets: Any = [0, 1, 2] * 4


def of(item: Any) -> Items:
    return Items([item, *(Stripes(12, 0)[i] for i in range(1, 12))])


class Endless(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any: ...


class Unlabeled:
    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return np.zeros((4, 4, 3), np.uint8), ["cat", "dog", "cat"][i]


class Lengthless(Stripes):
    def __init__(self) -> None: ...

    def __len__(self) -> int:
        raise TypeError("not known yet")


PIXELS = np.zeros((4, 5, 3), np.uint8)
VAL = Stripes(12, 1)
BAD = {
    "no train": ({"val": VAL}, "data has no 'train'; it has 'val'"),
    "nothing": ({}, "data has no 'train'; it has nothing"),
    "an unknown key": (
        {"train": VAL, "vaL": VAL},
        "no place for 'vaL': the splits are train, val, test; did you mean val?",
    ),
    "no mapping": ([VAL], "data must be a mapping of 'train', 'val' and 'test' to data sets, not a list"),
    "iterable-style": (
        {"train": Endless()},
        "data['train'] is a Endless: it must be map-style, with len(data) and data[i]",
    ),
    "a generator": ({"train": iter([])}, "data['train'] is a list_iterator: it must be map-style"),
    "empty": ({"train": []}, "data['train'] has no images"),
    "targets of another length": ({"train": Items([*VAL][:3])}, "data['train'] has 3 images, but 12 targets"),
    "a label that is no number": (
        {"train": changed(targets=[*"abcabcabcabc"])},
        "data['train'].targets[0]: label 'a' is not a whole number",
    ),
    "a label that is no whole number": (
        {"train": changed(targets=[0, 1.5, 2] * 4)},
        "data['train'].targets[1]: label 1.5 is not a whole number",
    ),
    "a label that is a truth value": (
        {"train": changed(targets=[True, False] * 6)},
        "data['train'].targets[0]: label True is not a whole number",
    ),
    "a label that no integer holds": (
        {"train": changed(targets=[0, 1, 2**70] * 4)},
        f"data['train'].targets[2]: label {2**70} is not a whole number below 2147483648",
    ),
    "a label far out of range": ({"train": changed(targets=[0, 1, 10**12] * 4)}, "labels must be 0 ... C-1"),
    "no length": ({"train": Lengthless()}, "data['train'] has no length: TypeError: not known yet"),
    "labels without targets": ({"train": Unlabeled()}, "data['train'][0]: label 'cat' is not a whole number"),
    "a class without images": (
        {"train": changed(targets=[0, 1, 3] * 4)},
        "data: train: labels must be 0 ... C-1, at least 2, each used; 2 is not used, 3 is",
    ),
    "the last class without images": ({"train": changed(targets=[0, 1] * 6)}, "no image of class 'wide' in train"),
    "more labels than names": (
        {"train": changed(classes=("a", "b"))},
        "data: labels of train are 0 to 2, but only 2 classes have names",
    ),
    "a negative label": (
        {"train": changed(targets=[-1, 0, 1] * 4)},
        "data: train: train/0: label -1 is out of range: 0 or more",
    ),
    "a label of val that train does not have": (
        {"train": VAL, "val": changed(targets=[0, 1, 2, 3] * 3)},
        "data: val, val/3: label 3 is out of range: 0 to 2, as in train",
    ),
    "one image of a class and no val": (
        {"train": changed(targets=[0, 1] * 5 + [0, 2])},
        "--val-split: class 'wide' has 1 image, too few to hold one out",
    ),
    "an item that is an image alone": (
        {"train": of(PIXELS), "val": VAL},
        "data['train'][0]: must be (PIL image or H x W x 3 uint8 array, label), not a ndarray",
    ),
    "an item of three parts": ({"train": of((PIXELS, 0, "x"))}, "not a tuple of 3 parts"),
    "an item that is a mapping": ({"train": of({"image": PIXELS})}, "data['train'][0]: must be (PIL image"),
    "a tensor": (
        {"train": of((torch.zeros(3, 4, 4), 0))},
        "uint8 array, label); the image is a Tensor of shape (3, 4, 4) and type torch.float32",
    ),
    "floats": ({"train": of((PIXELS.astype(float), 0))}, "the image is a ndarray of shape (4, 5, 3) and type float64"),
    "gray": ({"train": of((PIXELS[..., 0], 0))}, "the image is a ndarray of shape (4, 5) and type uint8"),
    "no pixels": ({"train": of((PIXELS[:0], 0))}, "the image is a ndarray of shape (0, 5, 3) and type uint8"),
    "a path": ({"train": of(("a.png", 0))}, "the image is a str"),
    "another label than its target": (
        {"train": of((PIXELS, 2)), "val": VAL},
        "data['train'][0]: its label is array(2), but the data set told 0 before",
    ),
}


@pytest.mark.parametrize(("data", "told"), BAD.values(), ids=BAD)
def test_data_that_cannot_work_is_refused_in_one_line_before_anything_is_written(data: Any, told: str):
    with pytest.raises(InputError) as caught:
        start(Path("run"), data)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"cache": "ram"}, "--cache ram: data sets passed from Python are not cached"),
        ({"cache": "disk"}, "--cache disk: data sets passed from Python are not cached"),
        ({"num_workers": 0}, "--num-workers 0: data sets passed from Python are read in worker processes"),
        ({"data_root": "photos"}, "--data-root photos would be ignored: data sets were passed from Python"),
        ({"val_split": 0.2}, "--val-split would be ignored: data sets passed from Python"),
        ({"synthetic_count": 100}, "--synthetic-count would be ignored"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], told: str):
    with pytest.raises(InputError, match=told):
        start(Path("run"), **settings)
    assert not Path("run").exists()


class Growing(Stripes):
    """Has more images, or others, from some reading on."""

    def __getitem__(self, i: int) -> tuple[Any, int]:
        image, label = super().__getitem__(i)
        return (image, label) if i != 40 else (image, label + 1)


def test_a_label_that_changes_later_ends_the_run():
    with pytest.raises(InputError, match=r"data\['train'\]\[40\]: its label is 2, but the data set told 1 before"):
        start(Path("run"), {**DATA, "train": Growing(96, 0)})


def test_a_length_that_changes_ends_the_run_and_is_refused_on_a_resume():
    data = Stripes(96, 0)
    splits = open_data(Settings(), 24, {**DATA, "train": data})
    data.targets = data.targets[:90]
    items = splits.train.items
    with pytest.raises(InputError, match=r"data\['train'\] has now 90 images, 96 when its labels were read"):
        items.read(0)
    assert replace(items, count=90).read(0)[1] == 0  # control

    start(Path("whole"), epochs=2)
    cut_off(Path("whole"), Path("run"))
    with pytest.raises(InputError, match="run was trained with 96 train images, now 90"):
        start(Path("run"), {**DATA, "train": data}, epochs=2)
    other = Stripes(96, 0)
    other.targets[:2] = [1, 0]
    with pytest.raises(InputError, match="run was trained with as many train images, but other names, labels"):
        start(Path("run"), {**DATA, "train": other}, epochs=2)
