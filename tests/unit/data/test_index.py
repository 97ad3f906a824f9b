"""What images there are: folders and manifests, and what is wrong with them."""

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import paths_of, write_folders, write_image, write_manifest
from toolkit import InputError, Settings
from toolkit.data.loading.reader import ImageReader
from toolkit.data.sources import index as index_module
from toolkit.data.sources.index import Index, Names, Splits
from toolkit.data.sources.splits import open_splits


def opened(root: Path, **values) -> Splits:
    return open_splits(Settings(data_root=str(root), **values), 32)


def names(index: Index | None, root: Path) -> list[str]:
    assert index is not None
    return [str(path.relative_to(root)) for path in paths_of(index)]


def test_splits_are_read_in_order_when_a_folder_has_all_three(tmp_path: Path):
    splits = opened(write_folders(tmp_path, {"train": 3, "val": 2, "test": 1}))
    assert splits.classes == ("cat", "dog")
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert names(splits.train, tmp_path)[0] == "train/cat/0.png"
    assert names(splits.val, tmp_path) == ["val/cat/0.png", "val/cat/1.png", "val/dog/0.png", "val/dog/1.png"]
    assert names(splits.test, tmp_path) == ["test/cat/0.png", "test/dog/0.png"]


def test_rows_of_numbers_stay_as_they_are_unless_all_are_whole():
    soft = Index.of_files(Path("photos"), ["a.png"], [[0.5, 0.7]]).labels
    assert soft.dtype == np.float32
    assert soft.tolist() == np.float32([[0.5, 0.7]]).tolist()
    assert Index.of_files(Path("photos"), ["a.png"], [[0.0, 1.0]]).labels.dtype == np.int64
    assert Index.of_files(Path("photos"), ["a.png"], [1]).labels.tolist() == [1]


@pytest.mark.parametrize("name", ["validation", "valid"])
def test_validation_is_read_when_its_folder_has_another_name(tmp_path: Path, name: str):
    splits = opened(write_folders(tmp_path, {"train": 3, name: 2}))
    assert names(splits.val, tmp_path)[0] == f"{name}/cat/0.png"
    assert len(splits.train) == 6
    assert splits.test is None


@pytest.mark.parametrize("ending", ["jfif", "JFIF", "avif"])
def test_images_are_found_when_their_ending_is_rare(tmp_path: Path, ending: str):
    write_folders(tmp_path, {"train": 1, "val": 1})
    form = "AVIF" if ending == "avif" else "JPEG"
    Image.new("RGB", (30, 20), (9, 99, 200)).save(tmp_path / f"train/cat/x.{ending}", form)
    train = opened(tmp_path).train
    assert list(train.names) == ["train/cat/0.png", f"train/cat/x.{ending}", "train/dog/0.png"]
    assert np.abs(ImageReader(train).whole(1).astype(int) - (9, 99, 200)).max() <= 3


def test_files_that_are_left_out_are_told_by_kind_when_there_are_some(tmp_path: Path, caplog):
    write_folders(tmp_path, {"train": 1, "val": 1})
    caplog.set_level(logging.INFO)
    opened(tmp_path)
    assert "left out" not in caplog.text
    for file in ("train/cat/a.xcf", "train/cat/deep/b.XCF", "train/dog/noname", "val/loose.png", "val/cat/.hidden.txt"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    opened(tmp_path)
    assert (
        "4 files are left out: 2 .xcf (train/cat/a.xcf), 1 without a suffix (train/dog/noname), "
        "1 in no class folder (val/loose.png)"
    ) in caplog.text
    assert "left out: 1 hidden or system file (.hidden.txt)" in caplog.text


def test_images_in_sub_folders_are_found_and_other_files_are_not_when_a_class_is_read(tmp_path: Path):
    write_folders(tmp_path, {"train": 1, "val": 1})
    write_image(tmp_path / "train/cat/more/deep.JPG")
    (tmp_path / "train/cat/notes.txt").write_text("not an image")
    (tmp_path / "train/cat/._0.png").write_bytes(b"left by a file manager")
    write_image(tmp_path / "train/.hidden/0.png")
    splits = opened(tmp_path)
    assert names(splits.train, tmp_path) == ["train/cat/0.png", "train/cat/more/deep.JPG", "train/dog/0.png"]


def test_validation_is_held_out_by_class_when_there_is_none(tmp_path: Path):
    root = write_folders(tmp_path, {"train": 10})
    for i in range(10, 40):
        write_image(root / "train" / "dog" / f"{i}.png")
    splits = opened(root, val_split=0.2)
    train, val = names(splits.train, root), names(splits.val, root)
    assert not set(train) & set(val)
    assert len(train) + len(val) == 50
    assert Counter(splits.val.labels.tolist()) == {0: 2, 1: 8}
    assert all(splits.classes[label] in name for name, label in zip(val, splits.val.labels, strict=True))


def test_validation_is_held_out_alike_when_the_seed_is_the_same(tmp_path: Path):
    root = write_folders(tmp_path, {"train": 20})
    one, again, other = (names(opened(root, seed=seed).val, root) for seed in (1, 1, 2))
    assert one == again
    assert one != other
    assert len(one) == 4  # a tenth of each class


def test_every_class_keeps_images_on_both_sides_when_it_has_only_two(tmp_path: Path):
    splits = opened(write_folders(tmp_path, {"train": 2}), val_split=0.9)
    assert splits.train.labels.tolist() == splits.val.labels.tolist() == [0, 1]


def test_a_manifest_is_read_when_it_has_a_byte_order_mark(tmp_path: Path):
    rows = [(f"photos/{i}.png", i % 3) for i in range(12)]
    write_manifest(tmp_path, "train", rows)
    (tmp_path / "train.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "train.csv").read_bytes())
    write_manifest(tmp_path, "val", rows[:3])
    write_manifest(tmp_path, "test", rows[3:5])
    splits = opened(tmp_path)
    assert splits.classes == ("0", "1", "2")
    assert names(splits.train, tmp_path) == [path for path, _ in rows]
    assert splits.train.labels.tolist() == [label for _, label in rows]
    assert len(splits.val) == 3
    assert splits.test is not None
    assert splits.test.labels.tolist() == [0, 1]


def test_a_manifest_may_have_more_columns_in_any_order_when_it_is_read(tmp_path: Path):
    write_image(tmp_path / "a, b.png", seed=1)
    write_image(tmp_path / "c.png", seed=2)
    (tmp_path / "train.csv").write_text('who,label,filepath\nx,0,"a, b.png"\ny,1,c.png\n')
    write_manifest(tmp_path, "val", [("v.png", 0), ("w.png", 1)])
    assert names(opened(tmp_path).train, tmp_path) == ["a, b.png", "c.png"]


def test_validation_is_held_out_of_a_manifest_when_there_is_no_other(tmp_path: Path):
    rows = [(f"{i}.png", i % 2) for i in range(20)]
    splits = opened(write_manifest(tmp_path, "train", rows))
    assert Counter(splits.val.labels.tolist()) == {0: 1, 1: 1}
    assert set(names(splits.train, tmp_path)) | set(names(splits.val, tmp_path)) == {path for path, _ in rows}


def test_column_names_are_stripped_when_a_manifest_has_spaces_after_its_commas(tmp_path: Path):
    for split in ("train", "val"):
        write_manifest(tmp_path, split, [("a.png", 0), ("b.png", 1)])
        (tmp_path / f"{split}.csv").write_text("filepath, label \na.png, 0\nb.png, 1\n")
    assert opened(tmp_path).train.labels.tolist() == [0, 1]


def test_the_folder_beside_is_named_when_a_foreign_manifest_is_met(tmp_path: Path):
    write_folders(tmp_path, {"train": 2, "val": 1})
    (tmp_path / "train.csv").write_text("Id,Tags\n1,x\n")
    told = r"train\.csv: needs the columns filepath,label; it has Id,Tags; to use the folder train/ instead"
    with pytest.raises(InputError, match=told):
        opened(tmp_path)


def test_the_first_wrong_row_is_named_when_a_file_is_gone_and_a_label_is_none(tmp_path: Path):
    write_manifest(tmp_path, "train", [("a.png", 0), ("b.png", 1), ("c.png", "x")])
    (tmp_path / "b.png").unlink()
    with pytest.raises(InputError, match=r"train\.csv, line 3: there is no file .*b\.png"):
        opened(tmp_path)


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/none/below"])
def test_the_flag_is_named_when_the_cache_cannot_be_written(tmp_path: Path, place: str):
    root = write_folders(tmp_path / "data", {"train": 2, "val": 1})
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="the cache cannot be used; --cache-dir names another place for it"):
        opened(root, cache_dir=tmp_path / place)


def spoilt(content: bytes, how: str) -> bytes:
    """A cache's file that was cut or changed on the disk."""
    if how == "cut":
        return content[: len(content) // 2]
    if how == "empty":
        return b""
    at = {"start": 0, "header": 40, "middle": len(content) // 2, "end": len(content) - 15}[how]
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


@pytest.mark.parametrize("how", ["cut", "empty", "start", "header", "middle", "end"])
def test_a_damaged_cache_counts_as_none_when_a_data_set_is_opened_again(tmp_path: Path, how: str):
    root = write_folders(tmp_path / "data", {"train": 30, "val": 1}, ("cat", "dog"), (8, 6))
    before = opened(root, cache_dir=tmp_path / "cache").digests()
    tables = sorted((tmp_path / "cache/index").glob("*.npz"))
    whole = [table.read_bytes() for table in tables]
    assert len(tables) == 2
    for table, content in zip(tables, whole, strict=True):
        table.write_bytes(spoilt(content, how))
    assert opened(root, cache_dir=tmp_path / "cache").digests() == before
    assert [len(table.read_bytes()) for table in tables] == [len(content) for content in whole]  # written anew


def no_class_folders(root: Path) -> None:
    (root / "train").mkdir()


def empty_class(root: Path) -> None:
    write_folders(root, {"train": 3, "val": 1})
    (root / "train" / "emu").mkdir()
    write_image(root / "val" / "emu" / "0.png")


def extra_class_in_val(root: Path) -> None:
    write_folders(root, {"train": 3})
    write_folders(root, {"val": 3}, ("cat", "dog", "emu"))


def empty_val(root: Path) -> None:
    write_folders(root, {"train": 3, "val": 3})
    for file in (root / "val").glob("*/*"):
        file.unlink()


def one_image_to_hold_out(root: Path) -> None:
    write_folders(root, {"train": 3})
    write_image(root / "train" / "emu" / "0.png")


def train_is_a_file(root: Path) -> None:
    (root / "train").write_text("not a folder")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: None, "neither a folder train/ nor a file train.csv"),
        (no_class_folders, "train: needs a sub-folder per class, at least 2; it has 0"),
        (lambda root: write_folders(root, {"train": 2}, ("cat",)), "at least 2; it has 1"),
        (empty_class, "train/emu: class 'emu' has no images"),
        (extra_class_in_val, "val: class 'emu' is not in train"),
        (empty_val, "val: 0 images, none in a class folder"),
        (one_image_to_hold_out, "class 'emu' has 1 image"),
        (train_is_a_file, "train"),
    ],
)
def test_a_folder_is_refused_with_the_place_when_it_is_wrong(tmp_path: Path, spoil, words: str):
    spoil(tmp_path)
    with pytest.raises(InputError, match=words) as caught:
        opened(tmp_path)
    assert str(tmp_path) in str(caught.value) or "--val-split" in str(caught.value)


def test_a_folder_is_refused_when_it_is_missing(tmp_path: Path):
    with pytest.raises(InputError, match=r"--data-root .*nowhere: no such folder"):
        opened(tmp_path / "nowhere")


def test_val_split_is_refused_when_the_data_has_a_validation_split(tmp_path: Path):
    write_folders(tmp_path, {"train": 3, "val": 1})
    with pytest.raises(InputError, match="--val-split would be ignored"):
        opened(tmp_path, val_split=0.2)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("cat", "label 'cat' is not a whole number"),
        ("1.0", "label '1.0' is not a whole number"),
        ("nan", "label 'nan' is not a whole number"),
        ("0_1", "label '0_1' is not a whole number"),
        ("+1", r"label '\+1' is not a whole number"),
        ("\u0661", "label '\u0661' is not a whole number"),  # an Arabic digit
        pytest.param("9" * 5000, f"label '{'9' * 40}' is not a whole number", id="long"),
        ("", "label '' is not a whole number"),
        (-1, "label -1 is out of range"),
        (-100, "label -100 is out of range"),
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_manifest_is_refused_with_its_row_when_a_label_is_wrong(tmp_path: Path, split: str, label, words: str):
    good = [(f"{i}.png", i % 2) for i in range(6)]
    write_manifest(tmp_path, "train", good)
    write_manifest(tmp_path, "val", good)
    write_manifest(tmp_path, split, [*good[:3], ("3.png", label), *good[4:]])
    with pytest.raises(InputError, match=rf"{split}\.csv, line 5: {words}"):
        opened(tmp_path)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_manifest_is_refused_with_its_row_when_a_label_is_not_one_of_train(tmp_path: Path, split: str):
    rows = [(f"{i}.png", i % 2) for i in range(6)]
    write_manifest(tmp_path, "train", rows)
    write_manifest(tmp_path, "val", rows)
    write_manifest(tmp_path, split, [*rows, ("0.png", 2)])
    with pytest.raises(InputError, match=rf"{split}\.csv, line 8: label 2 is out of range: 0 to 1"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("0.png", 0), ("1.png", 2)], "labels must be 0 ... C-1"),
        ([("0.png", 1), ("1.png", 2)], "labels must be 0 ... C-1"),
        ([("0.png", 0), ("1.png", 0)], "at least 2, each used; there is only 1"),
        ([("0.png", 0), ("1.png", 3_000_000)], "train.csv"),
        ([("0.png", 0), ("1.png", 10**30)], "train.csv"),
    ],
)
def test_a_manifest_is_refused_when_its_labels_leave_gaps(tmp_path: Path, rows, words: str):
    write_manifest(tmp_path, "train", rows)
    write_manifest(tmp_path, "val", rows[:1])
    with pytest.raises(InputError, match=words) as caught:
        opened(tmp_path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,colour,label_id,class\na.png,x,0,y\n", "--label-column names the one of labels: label_id or class"),
        ("what;label\na.png;0\n", "needs the columns filepath,label; it has what;label"),
        ("a.png,0\n", "needs the columns filepath,label; it has a.png,0"),
        ("", "needs the columns filepath,label; it has none"),
        ("filepath,label\n", "no rows"),
        ("filepath,label\nnone.png,0\n", "line 2: there is no file .*none.png"),
        ("label,filepath\n0\n", "line 2"),
        ("filepath,label\na.png\n", "line 2: label None"),
    ],
)
def test_a_manifest_is_refused_when_columns_rows_or_files_are_missing(tmp_path: Path, text: str, words: str):
    write_image(tmp_path / "a.png")
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        opened(tmp_path)
    assert "train.csv" in str(caught.value)


def test_a_manifest_is_refused_when_it_is_not_text(tmp_path: Path):
    (tmp_path / "train.csv").write_bytes(b"filepath,label\n\xff\xfe\x00,0\n")
    with pytest.raises(InputError, match=r"train\.csv"):
        opened(tmp_path)


def test_a_class_missing_in_the_validation_manifest_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_manifest(tmp_path, "train", [(f"{i}.png", i % 3) for i in range(6)])
    write_manifest(tmp_path, "val", [("0.png", 0), ("1.png", 1)])
    caplog.set_level(logging.INFO)
    assert len(opened(tmp_path).val) == 2
    assert "val has no images of 1 of 3 classes: 2" in caplog.text


@pytest.mark.parametrize("taken", [3, 2**18])
def test_names_are_taken_in_any_order_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch, taken: int):
    monkeypatch.setattr(index_module, "TAKEN", taken)
    texts = ["", *(f"{'é' * (i % 5)}{i}\udcff" for i in range(20)), ""]
    found = Names.of(texts)
    for ids in ([], [0], [0, 21], [4], [7, 7, 1], [*range(22)][::-1]):
        assert [*found.take(np.array(ids, dtype=np.int64))] == [texts[i] for i in ids]
    assert [*Names.of([]).take(np.arange(0))] == []
