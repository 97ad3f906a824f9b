"""Hugging Face datasets made here: image files stay files, bytes are read where `datasets` keeps them."""

import hashlib
import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from tests.conftest import recipe, write_folders
from tests.unit.data.test_shards import image
from toolkit import InputError, Settings
from toolkit.data.loading.reader import ImageReader
from toolkit.data.sources.index import Splits
from toolkit.data.sources.read import read_bytes
from toolkit.data.sources.splits import open_splits


def write_parquet(root: Path, split: str, labels: list, first: int = 0, names=("cat", "dog"), **columns) -> Path:
    """A split of so many encoded images; their content follows from their number."""
    count = len(labels)
    rows = {"image": [{"bytes": image(first + i), "path": None} for i in range(count)], "label": labels, **columns}
    kind = datasets.ClassLabel(names=list(names)) if names else datasets.Value("int64")
    others = {name: datasets.Value("string") for name in columns}
    features = datasets.Features({"image": datasets.Image(), "label": kind, **others})
    root.mkdir(exist_ok=True, parents=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(root / f"{split}-00000-of-00001.parquet"))
    return root


def opened(root: Path | str, **values) -> Splits:
    return open_splits(Settings(data_root=f"hf:{root}", **values), 32)


def test_bytes_are_read_where_they_lie_when_a_data_set_is_parquet(tmp_path: Path):
    root = write_parquet(tmp_path / "data", "train", [0, 1] * 20)
    write_parquet(root, "validation", [1, 0], first=100)
    splits = opened(root)
    assert splits.classes == ("cat", "dog")
    assert splits.train.labels.tolist() == [0, 1] * 20
    assert splits.val.labels.tolist() == [1, 0]
    assert splits.test is None
    assert [read_bytes(splits.train, i) for i in range(40)] == [image(i) for i in range(40)]
    assert [read_bytes(splits.val, i) for i in range(2)] == [image(100), image(101)]
    assert all(Path(path).suffix == ".arrow" for path in splits.train.containers)
    assert np.array_equal(ImageReader(splits.train).whole(3), np.asarray(Image.open(io.BytesIO(image(3)))))


def test_all_files_of_a_split_are_read_in_order_when_there_are_several(tmp_path: Path):
    root = tmp_path / "data"
    for part in range(3):
        write_parquet(root, "train", [0, 1] * 3, first=6 * part)
        (root / "train-00000-of-00001.parquet").rename(root / f"train-{part:05d}-of-00003.parquet")
    splits = opened(root, val_split=0.34)
    held, kept = ([read_bytes(index, i) for i in range(len(index))] for index in (splits.val, splits.train))
    assert sorted(held + kept) == sorted(image(i) for i in range(18))
    assert len(held) == 6


def test_files_stay_files_when_a_data_set_is_a_folder_of_images(tmp_path: Path):
    root = write_folders(tmp_path / "data", {"train": 3, "validation": 2, "test": 1})
    splits, plain = opened(root), open_splits(Settings(data_root=str(root)), 32)
    assert splits.classes == plain.classes == ("cat", "dog")
    for name, index in splits.all().items():
        same = plain.all()[name]
        assert [index.place(i).path for i in range(len(index))] == [same.place(i).path for i in range(len(same))]
        assert index.labels.tolist() == same.labels.tolist()
        assert (index.container == -1).all()


def test_numbers_name_the_classes_when_labels_are_plain_numbers(tmp_path: Path):
    root = write_parquet(tmp_path / "data", "train", [0, 1, 2] * 4, names=None)
    assert opened(root).classes == ("0", "1", "2")


def test_a_test_split_is_left_out_when_its_labels_are_secret(tmp_path: Path):
    root = write_parquet(tmp_path / "data", "train", [0, 1] * 5)
    write_parquet(root, "test", [-1, -1], first=50)
    assert opened(root).test is None


def test_bytes_are_written_once_more_when_an_arrow_file_is_compressed(tmp_path: Path, cache: Path):
    root = write_parquet(tmp_path / "data", "train", [0, 1] * 20)
    arrow = Path(opened(root).train.containers[0])
    batches = pyarrow.ipc.open_stream(pyarrow.memory_map(str(arrow))).read_all().to_batches(max_chunksize=16)
    with pyarrow.OSFile(str(arrow.with_name("smaller")), "wb") as sink:
        options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
        with pyarrow.ipc.new_stream(sink, batches[0].schema, options=options) as writer:
            for batch in batches:
                writer.write_batch(batch)
    arrow.with_name("smaller").rename(arrow)
    before = hashlib.sha256(arrow.read_bytes()).hexdigest()
    train = opened(root).train
    assert Path(train.containers[0]).parent == cache / "hub"
    kept = {read_bytes(train, i) for i in range(len(train))}
    assert kept < {image(i) for i in range(40)}
    assert len(kept) == 36
    assert hashlib.sha256(arrow.read_bytes()).hexdigest() == before


def no_image(root: Path) -> None:
    root.mkdir()
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}).to_parquet(str(root / "train.parquet"))


def words_for_labels(root: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    rows = {"image": [{"bytes": image(0), "path": None}], "label": ["cat"]}
    root.mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(root / "train.parquet"))


def null_label(root: Path) -> None:
    write_parquet(root, "train", [0, 1, None, 1])


def null_image(root: Path) -> None:
    root.mkdir()
    rows = {"image": [None, *({"bytes": image(i), "path": None} for i in range(3))], "label": [0, 1, 0, 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(root / "train-00000-of-00001.parquet"))


def null_file(root: Path) -> None:
    root.mkdir()
    (root.parent / "0.png").write_bytes(image(0))
    rows = {"image": [None, {"bytes": None, "path": str(root.parent / "0.png")}], "label": [0, 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(root / "train-00000-of-00001.parquet"))


def unused_class(root: Path) -> None:
    write_parquet(root, "train", [0, 1] * 3, names=("cat", "dog", "emu"))


def unnamed_class(root: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [{"bytes": image(i), "path": None} for i in range(4)], "label": [0, 1, 2, 1]}
    table = datasets.Dataset.from_dict({**rows, "label": [0, 1, 0, 1]}, features=features).data.table
    labels = pyarrow.array(rows["label"], type=table.schema.field("label").type)
    root.mkdir()
    pyarrow.parquet.write_table(table.set_column(1, table.schema.field("label"), labels), root / "train.parquet")


def broken_file(root: Path) -> None:
    write_parquet(root, "train", [0, 1] * 3)
    file = root / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:500])


def strange_label(split: str, *labels: int):
    """A data set with these labels in one split, and good ones in the others."""

    def spoil(root: Path) -> None:
        for name in ("train", "validation", "test"):
            write_parquet(root, name, list(labels) if name == split else [0, 1, 0, 1], names=None)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (strange_label("train", 0, 1, 0, -5), r"train, row 3: label -5 is out of range: 0 or more"),
        (strange_label("validation", 0, 1, -5), r"validation, row 2: label -5 is out of range: 0 to 1, as in train"),
        (strange_label("test", 0, 7), r"test, row 1: label 7 is out of range: 0 to 1, as in train"),
        (lambda root: None, "cannot be loaded: "),
        (lambda root: root.mkdir(), "cannot be loaded: "),
        (broken_file, "cannot be loaded: "),
        (no_image, "needs one column of kind Image, or one named 'image'; it has text: Value, label: Value"),
        (words_for_labels, "needs one column of kind ClassLabel, or one named 'label'; it has image: Image, label"),
        (null_image, r"train: .*have no bytes or no label"),
        (null_file, r"train: row 0 has no path"),
        (null_label, r"train: .*have no bytes or no label"),
        (unnamed_class, "labels of train are 0 to 2, but only 2 classes have names"),
        (unused_class, "no image of class 'emu' in train"),
        (lambda root: write_parquet(root, "test", [0, 1]), "has no split train; it has test"),
    ],
)
def test_a_data_set_is_refused_in_one_line_when_it_is_wrong(tmp_path: Path, spoil, words: str):
    spoil(tmp_path / "data")
    with pytest.raises(InputError, match=words) as caught:
        opened(tmp_path / "data")
    assert str(caught.value).startswith(f"hf:{tmp_path / 'data'}: ")
    assert "\n" not in str(caught.value)


def test_a_name_is_refused_in_one_line_when_the_hub_cannot_be_reached():
    with pytest.raises(InputError, match="hf:nobody/nothing: cannot be loaded: ") as caught:
        opened("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_training_runs_and_can_be_repeated_when_the_folder_is_relative(tmp_path: Path, monkeypatch):
    write_parquet(tmp_path / "data", "train", [0, 1] * 12)
    write_parquet(tmp_path / "data", "validation", [0, 1], first=100)
    monkeypatch.chdir(tmp_path)
    words = ["--arch", "test_resnet", "--img-size", "32", "--batch-size", "8", "--epochs", "1", "--log-with", "none"]
    where = ["--output-dir", str(tmp_path / "run"), "--num-workers", "0"]
    assert recipe("single_scale")(["--data-root", "hf:data", *words, *where]) == 0
    assert f"data_root: hf:{tmp_path / 'data'}" in (tmp_path / "run/config.yaml").read_text()
