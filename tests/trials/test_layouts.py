"""The layouts and names that people's data sets have: read, or answered by what was found and what to do."""

import csv
import io
import logging
import shutil
import unicodedata
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.conftest import recipe, write_folders, write_image
from tests.unit.data.test_hub import write_parquet
from tests.unit.data.test_shards import samples, write_tar
from toolkit import InputError, Settings
from toolkit.data.images.decode import read_pixels
from toolkit.data.images.formats import FORM_OF, FORMATS
from toolkit.data.images.header import read_header
from toolkit.data.images.preprocess import readable_formats
from toolkit.data.loading.reader import ImageReader
from toolkit.data.sources.index import Splits
from toolkit.data.sources.splits import open_splits
from toolkit.data.sources.survey import survey
from toolkit.tools import run_data

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
PICTURES = tuple(f"{name}.png" for name in "abcd")
TRAINING = ("--arch", "test_resnet", "--img-size", "32", "--epochs", "1", "--batch-size", "6", "--log-with", "none")
TRAINING = (*TRAINING, "--num-workers", "0", "--warmup-epochs", "0")
ROWS = "a.png,{0}\nb.png,{1}\nc.png,{0}\nd.png,{1}\n"


def opened(root: Path | str, **values) -> Splits:
    return open_splits(Settings(data_root=str(root), **values), 32)


def lay_out(root: Path, *images: str, **texts: str) -> Path:
    """Images, no two alike, and text files: `train_csv` is train.csv."""
    root.mkdir()
    for seed, name in enumerate(images):
        write_image(root / name, (8, 8), seed)
    for name, text in texts.items():
        (root / ".".join(name.rsplit("_", 1))).write_text(text)
    return root


def classes(prefix: str, count: int = 2) -> list[str]:
    return [f"{prefix}{name}/{i}.png" for name in ("cat", "dog") for i in range(count)]


# Paths of images; images of train and val together, and of test, None without; and the first name of train.
FOLDERS = {
    "class folders at the root": ((*classes("", 3), "loose.png"), 6, None, "cat/"),
    "Training and Testing": ((*classes("Training/"), *classes("Testing/")), 4, 4, "Training/cat/"),
    "TRAIN and Test": ((*classes("TRAIN/"), *classes("Test/", 1)), 4, 2, "TRAIN/cat/"),
    "three other names": ((*classes("training/"), *classes("dev/"), *classes("testing/")), 8, 4, "training/cat/"),
    "train and Validation": ((*classes("train/"), *classes("Validation/", 1)), 6, None, "train/cat/"),
    "doubled folders": ((*classes("train/train/"), *classes("test/test/")), 4, 4, "train/train/cat/"),
    "doubled folders with a prefix": (
        (*classes("seg_train/seg_train/"), *classes("seg_test/seg_test/"), "seg_pred/a.png"),
        *(4, 4, "seg_train/seg_train/cat/"),
    ),
    "folders with an ending": ((*classes("training_set/"), *classes("test_set/", 1)), 4, 2, "training_set/cat/"),
    "folders with a year": ((*classes("train2017/"), *classes("val2017/")), 8, None, "train2017/cat/"),
    "one folder deeper": ((*classes("archive/train/"), *classes("archive/test/")), 4, 4, "train/cat/"),
    "class folders three deeper": (tuple(classes("a/b/PetImages/")), 4, None, "cat/"),
    "class folders beside another folder": ((*classes("images/"), "docs/deep/figure.png"), 4, None, "cat/"),
    "a flat test": ((*classes("train/"), "test/1.png", "test/2.png"), 4, None, "train/cat/"),
    "a flat doubled test": ((*classes("train/"), "test/test/1.png"), 4, None, "train/cat/"),
}


@pytest.mark.parametrize(("images", "learned", "tested", "first"), FOLDERS.values(), ids=FOLDERS)
def test_folders_are_read_as_people_have_them(tmp_path: Path, images, learned: int, tested: int | None, first: str):
    splits = opened(lay_out(tmp_path / "data", *images))
    assert splits.classes == ("cat", "dog")
    assert len(splits.train) + len(splits.val) == learned
    assert (splits.test and len(splits.test)) == tested
    assert splits.train.names[0].startswith(first)
    assert splits.source == str(tmp_path / "data")
    found = survey(str(tmp_path / "data"))
    assert len(found.splits["train"]) + len(found.splits.get("val", ())) == learned
    assert len(found.splits.get("test", ())) == (tested or 0)
    assert {finding.kind for finding in found.findings} <= {"left out"}


# Files, and words of the error.
REFUSED = {
    "a class of test that is not in train": (
        (*classes("train/"), *classes("test/"), "test/emu/1.png"),
        "data/test: class 'emu' is not in train",
    ),
    "a val of one unknown folder": (
        (*classes("train/"), "val/images/1.png"),
        r"class 'images' is not in train; .*its 1 images are in no class folders: move them into .*val/CLASS/, or move",
    ),
    "a test of one unknown folder": (
        (*classes("train/"), "test/images/1.png"),
        "test: class 'images' is not in train.*; images without labels belong into .*/data/test itself",
    ),
    "a flat val": ((*classes("train/"), "val/1.png"), r"data/val: 1 images, none in a class folder: move them into"),
    "a flat train": (
        ("train/cat.0.png", "train/dog.0.png"),
        "it has 0, but 2 images: .*/data/train.csv of filepath,label can name their classes",
    ),
    "two data sets": (
        (*classes("one/train/"), *classes("two/train/")),
        r"it holds 2 data sets \(one/, two/\): name one",
    ),
    "images alone": (("x.png", "y.png"), r"it holds 2 images \(x.png, y.png\)"),
    "images and masks": ((*classes("images/"), *classes("masks/")), "it holds 2 .*images/"),
    "class folders beside a test": (
        (*classes(""), "test/1.png"),
        r"it holds 3 folders .*: move the folders of classes \(cat, dog\) into .*/data/train/",
    ),
    "a class of class folders": ((*classes(""), *classes("bird/")), "it holds 3 folders .*bird/: 0 images, 2 folders"),
    "two of one name": ((*classes("Train/"), *classes("training/")), "has Train and training, which are names of one"),
}


@pytest.mark.parametrize(("images", "told"), REFUSED.values(), ids=REFUSED)
def test_other_folders_are_answered_by_what_was_found(tmp_path: Path, images, told: str):
    with pytest.raises(InputError, match=told) as caught:
        opened(lay_out(tmp_path / "data", *images))
    assert "\n" not in str(caught.value)


def test_the_plan_says_what_is_held_out_left_out_and_untested(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--arch", "test_resnet", "--img-size", "32", "--batch-size", "2", "--log-with", "none", "--dry-run"]
    told = {}
    for name, images in {
        "alone": classes("", 3),
        "flat": [*classes("train/"), "test/1.png"],
        "half": [*classes("train/"), "val/dog/1.png", "test/cat/1.png"],
    }.items():
        assert recipe("single_scale")(["--data-root", str(lay_out(tmp_path / name, *images)), *words]) == 0
        told[name] = "".join(capsys.readouterr())
    held = "2 classes, validation held out of train (--val-split 0.1), no test images"
    assert f"train 4, val 2 images, {held}" in told["alone"]
    assert (
        "test/ is left out: 1 images without class folders are not scored; the recipe predicts them at its end"
        in told["flat"]
    )
    assert "val has no images of 1 of 2 classes: cat" in told["half"]
    assert "test has no images of 1 of 2 classes: dog" in told["half"]


def test_a_flat_test_is_predicted_when_training_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path / "data", *classes("train/", 6), *classes("val/"), "test/1.png", "test/2.png")
    words = ["--data-root", "data", *TRAINING, "--output-dir", "run"]
    assert recipe("single_scale")(words) == 0
    assert "wrote     run/test_predictions.csv: predictions of the images in data/test" in capsys.readouterr().out
    with Path("run/test_predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == ["data/test/1.png", "data/test/2.png"]
    assert {row["label"] for row in rows} <= {"cat", "dog"}
    Path("run/test_predictions.csv").unlink()
    assert recipe("single_scale")(words) == 0  # finished before: nothing is done again
    assert not Path("run/test_predictions.csv").exists()
    shutil.rmtree("data/test")
    assert recipe("single_scale")([*words[:-1], "other"]) == 0
    assert not Path("other/test_predictions.csv").exists()  # control


def test_folders_that_hold_images_are_named_when_they_are_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    images = (*classes("training/"), *classes("validation/"), *classes("evaluation/"), "more/1.png")
    root = lay_out(tmp_path / "data", *images)
    (root / "notes").mkdir()
    assert opened(root).test is None
    assert "not used, because not named like a split: evaluation/, more/" in caplog.text


def test_folders_of_other_splits_are_named_when_they_are_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    root = lay_out(tmp_path / "data", *classes("train/"), *classes("val/"), *classes("old_val/"), *classes("test-2/"))
    assert opened(root).test is None
    assert "not used, because not named like a split: old_val/, test-2/" in caplog.text
    caplog.clear()
    assert [*map(len, opened(root / "train", val_split=0.5).all().values())] == [2, 2]
    assert f"is train/ of a data set: --data-root {root} uses its other splits too" in caplog.text
    with pytest.raises(InputError, match=r"0\.png: is a file: give the folder that holds it"):
        opened(root / "val/cat/0.png")


def test_forms_of_unicode_are_one_name(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    root = lay_out(
        tmp_path / "data",
        *(f"train/{COMPOSED}/1.png", f"train/{DECOMPOSED}/2.png", "train/a/1.png", "train/a/2.png"),
        *(f"val/{DECOMPOSED}/1.png", "val/a/1.png", f"test/{COMPOSED}/1.png", "test/a/1.png"),
    )
    splits = opened(root)
    assert [*map(len, splits.all().values())] == [4, 2, 2]
    assert len(splits.classes) == 2
    assert splits.val.labels.tolist() == splits.test.labels.tolist() == [0, 1]
    assert {len(index) for index in survey(str(root)).splits.values()} == {4, 2}
    loaded = SimpleNamespace(
        classes=("a", COMPOSED), settings=Settings(), task=SimpleNamespace(check_labels=print, several_labels=False)
    )
    folder = lay_out(tmp_path / "other", "a/1.png", f"{DECOMPOSED}/1.png")
    for place in (folder, lay_out(tmp_path / "packed", "x/y/a/1.png", f"x/y/{DECOMPOSED}/1.png")):
        (images,) = run_data.other_images(loaded, str(place), {}).values()  # a run's classes, on another machine
        assert images.index.labels.tolist() == [0, 1]
    listed = lay_out(tmp_path / "listed", f"{DECOMPOSED}.png", "b.png", "c.png", "d.png")
    (listed / "train.csv").write_text(
        f"filepath,label\n{COMPOSED}.png,{COMPOSED}\nb.png,{DECOMPOSED}\nc.png,x\nd.png,x\n"
    )
    splits = opened(listed)
    assert splits.classes == ("x", COMPOSED)
    assert f"{DECOMPOSED}.png" in {*splits.train.names, *splits.val.names}


SUBMISSION = "id_code,diagnosis\na,0\n"
# Images, text files, what the classes are, and the folder of the first image.
TABLES = {
    "semicolons": (PICTURES, {"train_csv": "filepath;label\n" + ROWS.replace(",", ";")}, "01", ""),
    "tabs": (PICTURES, {"train_tsv": "image\tlabel\n" + ROWS.replace(",", "\t")}, "xy", ""),
    "a byte-order mark, quotes and blanks": (
        PICTURES,
        {"train_csv": '\ufeff"file", "class"\n' + ROWS.replace(",", ' , "').replace("\n", '"\n')},
        *("xy", ""),
    ),
    "what Excel writes before and behind": (
        PICTURES,
        {"train_csv": "sep=;\n\n" + ("filepath,label\n" + ROWS).replace(",", ";") + ";\n;\n"},
        *("xy", ""),
    ),
    "image,label": (PICTURES, {"train_csv": "Image,Label\n" + ROWS}, "xy", ""),
    "filename,category": (PICTURES, {"train_csv": "filename,category\n" + ROWS}, "xy", ""),
    "path,target": (PICTURES, {"train_csv": "path,target\n" + ROWS}, "01", ""),
    "a column of numbers as pandas writes it": (
        PICTURES,
        {"train_csv": ",file_name,who\n1," + ROWS.replace("\n", "\n1,", 3)},
        "xy",
        "",
    ),
    "ids without an ending": (
        [f"train_images/{name}" for name in PICTURES] + [f"test_images/{name}" for name in PICTURES],
        {
            "train_csv": "id_code,diagnosis\n" + ROWS.replace(".png", ""),
            "test_csv": "id_code\na\n",
            "sample_submission_csv": SUBMISSION,
        },
        *("01", "train_images/"),
    ),
    "labels.csv": (
        [f"train/{name}" for name in PICTURES] + [f"test/{name}" for name in PICTURES],
        {"labels_csv": "id,breed\n" + ROWS.replace(".png", ""), "sample_submission_csv": "id,x,y\na,1,0\n"},
        *("xy", "train/"),
    ),
    "train_labels.csv": (
        [f"train/{name}" for name in PICTURES],
        {"train_labels_csv": "image_id,label\n" + ROWS.replace(".png", "")},
        *("xy", "train/"),
    ),
    "Train.csv beside Train": (
        ["Train/0/a.png", "Train/0/c.png", "Train/1/b.png", "Train/1/d.png"],
        {
            "Train_csv": "Width,ClassId,Path\n"
            + "".join(f"1,{i % 2},Train/{i % 2}/{name}\n" for i, name in enumerate(PICTURES))
        },
        *("01", "Train/0/"),
    ),
    "backslashes": (
        [f"x/{name}" for name in PICTURES],
        {"train_csv": "filepath,label\n" + "".join(f"x\\{row}\n" for row in ROWS.split())},
        *("xy", "x/"),
    ),
    "absolute paths": (
        PICTURES,
        {"train_csv": "filepath,label\n" + "".join(f"{{root}}/{row}\n" for row in ROWS.split())},
        "xy",
        "",
    ),
}


@pytest.mark.parametrize(("images", "texts", "labels", "folder"), TABLES.values(), ids=TABLES)
def test_csv_files_are_read_as_people_have_them(
    tmp_path: Path, images, texts: dict[str, str], labels: str, folder: str
):
    root = tmp_path / "data"
    given = {name: text.replace("{root}", str(root)).format(*labels) for name, text in texts.items()}
    splits = opened(lay_out(root, *images, **given))
    assert splits.classes == tuple(labels)
    names, numbers = [*splits.train.names, *splits.val.names], [*splits.train.labels, *splits.val.labels]
    found = {name: int(number) for name, number in zip(names, numbers, strict=True)}
    assert {Path(name).name: number for name, number in found.items()} == dict(zip(PICTURES, (0, 1, 0, 1), strict=True))
    assert all(name.startswith(folder[:6]) for name in found)
    assert splits.test is None
    assert len(survey(str(root)).splits["train"]) == 4
    assert {finding.kind for finding in survey(str(root)).findings} <= {"left out"}


CSV_REFUSED = {
    "a column for each class": (
        {"train_csv": "file," + ",".join(map(str, range(5000))) + "\na.png,1\n"},
        r"it has file,0,1,.*,10,\.\.\. \(5001 in all\); --label-column",
    ),
    "two columns of labels": (
        {"train_csv": "file,class,category\na.png,x,1\n"},
        "--label-column .*: class or category",
    ),
    "an unknown column of labels": (
        {"meta_csv": "lesion,image_id,dx\n1,a,x\n"},
        "meta.csv: needs the columns filepath,label; it has lesion,image_id,dx; --label-column",
    ),
    "other columns": ({"what_csv": "what,is\n1,2\n"}, r"it holds 1 CSV file \(what.csv: what,is\)"),
    "tags of several labels": ({"train_csv": "image_name,tags\na,x y\n"}, "it has image_name,tags"),
    "a number among names": (
        {"train_csv": "file,label\na.png,0\nb.png,x\n"},
        "line 3: label 'x' is not a whole number",
    ),
    "no name": ({"train_csv": "file,label\na.png,x\nb.png,\n"}, "line 3: no label"),
    "a name that train lacks": (
        {"train_csv": "file,label\n" + ROWS.format("x", "y"), "val_csv": "file,label\na.png,z\n"},
        "val.csv, line 2: label 'z' is not one of train's",
    ),
    "one file missing": (
        {"train_csv": "file,label\na.png,x\ngone/b.png,y\n"},
        "line 3: there is no file .*/gone/b.png",
    ),
    "a drive of Windows": ({"train_csv": "file,label\nC:\\\\x\\\\q.png,x\n"}, "line 2: there is no file"),
    "rows of no split": (
        {"birds_csv": "filepaths,labels,data set\na.png,x,train\nb.png,y,later\n"},
        "birds.csv, line 3: its split is none of train, val and test: b.png,y,later",
    ),
    "another folder": ({"train_csv": "file,label\n/etc/a.png,x\n"}, "line 2: /etc/a.png leads out of"),
    "a folder above": ({"train_csv": "file,label\n..\\\\a.png,x\n"}, "line 2: .*a.png leads out of"),
}


@pytest.mark.parametrize(("texts", "told"), CSV_REFUSED.values(), ids=CSV_REFUSED)
def test_other_csv_files_are_answered_by_what_was_found(tmp_path: Path, texts: dict[str, str], told: str):
    with pytest.raises(InputError, match=told) as caught:
        opened(lay_out(tmp_path / "data", *PICTURES, **texts))
    assert "\n" not in str(caught.value)


def test_an_id_of_several_files_is_refused_and_a_column_may_be_chosen(tmp_path: Path):
    root = lay_out(
        tmp_path / "data", *PICTURES, "x/a.png", train_csv="id,class,kind\n" + "a,x,0\nb,y,1\nc,x,1\nd,y,0\n"
    )
    with pytest.raises(InputError, match=r"line 2: a can be a\.png or x/a\.png, 2 files in all: give their paths"):
        opened(root, label_column="kind")
    (root / "x/a.png").unlink()
    assert opened(root, label_column="kind").classes == ("0", "1")
    assert survey(str(root), label_column="kind").classes == ("0", "1")
    assert opened(root).classes == ("x", "y")  # `kind` is no usual name
    with pytest.raises(InputError, match=r"--label-column sort: .*train.csv has the columns id,class,kind"):
        opened(root, label_column="sort")
    with pytest.raises(InputError, match=r"--label-column kind would be ignored: .* is neither CSV files nor"):
        opened(write_folders(tmp_path / "folders", {"train": 2}), label_column="kind")
    with pytest.raises(InputError, match=r"--hf-config x would be ignored: .* does not begin with hf:"):
        opened(root, hf_config="x")


def test_one_csv_file_may_hold_all_splits_if_a_column_tells_them_apart(tmp_path: Path):
    rows = "".join(f"{i},{name},{'xy'[i % 2]},TRAIN\n" for i, name in enumerate(PICTURES))
    text = f"class id,filepaths,labels,data set\n{rows}1,e.png,y,valid\n0,f.png,x,test\n1,g.png,y,test\n"
    root = lay_out(tmp_path / "data", *PICTURES, "e.png", "f.png", "g.png", birds_csv=text)
    with pytest.raises(InputError, match="--label-column names the one of labels: class id or labels"):
        opened(root)
    splits = opened(root, label_column="labels")
    assert [[*index.names] for index in splits.all().values()] == [[*PICTURES], ["e.png"], ["f.png", "g.png"]]
    assert splits.test.labels.tolist() == [0, 1]
    scanned = survey(str(root), label_column="labels").splits
    assert {split: len(index) for split, index in scanned.items()} == {"train": 4, "val": 1, "test": 2}
    (root / "birds.csv").rename(root / "train.csv")  # control: as ever, other columns of train.csv are not read
    splits = opened(root, label_column="labels")
    assert (len(splits.train) + len(splits.val), splits.test) == (7, None)


def test_names_of_classes_have_the_order_of_their_file_and_of_train(tmp_path: Path):
    texts = {"train_csv": "file,label\n" + ROWS.format("x", "y"), "val_csv": "file,label\nb.png,y\n"}
    root = lay_out(tmp_path / "data", *PICTURES, **texts)
    (root / "class_names.txt").write_text("y\nx\n")
    splits = opened(root)
    assert (splits.classes, splits.train.labels.tolist(), splits.val.labels.tolist()) == (("y", "x"), [1, 0, 1, 0], [0])
    (root / "class_names.txt").write_text("y\nz\n")
    with pytest.raises(InputError, match=r"class_names\.txt: 'x' is not in both it and the labels of train"):
        opened(root)
    (found,) = [finding for finding in survey(str(root)).findings if finding.name == "class_names.txt"]
    assert "'x' is not in both it and the labels of train" in found.reason


def test_a_file_that_is_listed_again_is_told_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    rows = ROWS.format("x", "y")
    root = lay_out(tmp_path / "data", *PICTURES, train_csv=f"file,label\n{rows}{rows}", val_csv="file,label\na.png,x\n")
    opened(root)
    assert f"{root}/train.csv lists 4 files more than once, such as a.png" in caplog.text
    assert "1 files are in both train and val, such as a.png" in caplog.text
    (root / "train.csv").write_text(f"file,label\n{rows}a.png,y\n")
    with pytest.raises(InputError, match=r"line 6: a\.png has two labels: label 'y' here, 'x' in line 2; an image has"):
        opened(root)
    assert "bad row" in {finding.kind for finding in survey(str(root)).findings}


def test_names_that_are_probably_no_classes_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    text = "file,label\na.png,cat\nb.png,Cat\nc.png,NaN\nd.png,NaN\n"
    assert opened(lay_out(tmp_path / "data", *PICTURES, train_csv=text, val_csv=text)).classes == ("Cat", "NaN", "cat")
    assert "classes Cat, cat differ only in case or blanks" in caplog.text
    assert "'NaN' is taken for a class" in caplog.text


def test_an_empty_path_is_not_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(write_folders(tmp_path / "data", {"train": 2}))
    for read in (opened, survey):
        with pytest.raises(InputError, match="is empty"):
            read("")


def test_a_table_beside_folders_is_read_if_it_names_their_images(tmp_path: Path):
    folders = ("part_1/a.png", "part_1/b.png", "part_2/c.png", "part_2/d.png")
    root = lay_out(tmp_path / "data", *folders, breeds_csv="id,breed\n0,cat\n1,dog\n")  # of breeds, not of images
    assert opened(root).classes == ("part_1", "part_2")
    (root / "breeds.csv").write_text("image_id,dx\na,x\nb,y\nc,x\nd,y\n")
    assert opened(root, label_column="dx").classes == ("x", "y")


def test_classes_have_the_same_order_on_every_system(tmp_path: Path):
    images = [f"{name}/{i}.png" for name in ("cafe", f"caf{DECOMPOSED}", "cafz") for i in range(2)]
    assert opened(lay_out(tmp_path / "data", *images)).classes == ("cafe", "cafz", f"caf{DECOMPOSED}")


@pytest.mark.parametrize(
    "names",
    [
        ("imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar", "imagenet1k-test-0.tar"),
        ("Train/0.tar", "Val/0.tar", "Test/0.tar"),
        ("training-0.tar", "validation-0.tar", "testing-0.tar"),
    ],
)
def test_shards_are_found_by_other_names(tmp_path: Path, names: tuple[str, str, str]):
    for name, count in zip(names, (6, 4, 2), strict=True):
        write_tar(tmp_path / name, samples(0, count))
    assert [*map(len, opened(tmp_path).all().values())] == [6, 4, 2]
    for name in names[1:]:
        (tmp_path / name).unlink()
    (tmp_path / "0001.tar").write_bytes(b"")  # control: of no split
    assert len(opened(tmp_path, val_split=0.3).val) == 2


def test_a_column_and_a_configuration_of_a_hub_data_set_can_be_chosen(tmp_path: Path):
    root = write_parquet(tmp_path / "two", "train", [0, 1] * 4)
    table = datasets.load_dataset(str(root), cache_dir=str(tmp_path / "cache"))["train"]
    table = table.rename_column("label", "fine").add_column("coarse", [1, 1, 0, 0] * 2)
    table = table.cast_column("coarse", datasets.ClassLabel(names=["far", "near"]))
    table.to_parquet(str(root / "train-00000-of-00001.parquet"))
    with pytest.raises(InputError, match="--label-column takes one of fine, coarse; it has image: Image"):
        opened(f"hf:{root}")
    fine, coarse = (opened(f"hf:{root}", label_column=name, val_split=0.3) for name in ("fine", "coarse"))
    assert (fine.classes, coarse.classes) == (("cat", "dog"), ("far", "near"))  # of the same files, not from the cache
    assert fine.train.labels.tolist() != coarse.train.labels.tolist()
    with pytest.raises(InputError, match="--label-column image: no column of whole numbers"):
        opened(f"hf:{root}", label_column="image")
    both = tmp_path / "both"
    for name in ("large", "small"):
        write_parquet(both / name, "train", [0, 1] * (4 if name == "large" else 2))
    configs = "".join(f"  - config_name: {name}\n    data_files: {name}/*.parquet\n" for name in ("large", "small"))
    (both / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    for wrong in (None, "huge"):
        with pytest.raises(InputError, match="has several configurations: --hf-config takes one of large, small"):
            opened(f"hf:{both}", hf_config=wrong)
    assert len(survey(f"hf:{both}", hf_config="small").splits["train"]) == 4
    assert len(opened(f"hf:{both}", hf_config="small", val_split=0.5).train) == 2


def test_every_plain_format_of_pil_is_found_and_read(tmp_path: Path):
    Image.init()
    written = [ending for ending, form in FORM_OF.items() if form in Image.SAVE and form in readable_formats()]
    assert {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".tga", ".qoi", ".pcx", ".jpe", ".sgi"} <= {*written}
    assert {FORM_OF.get(ending, form) for ending, form in Image.registered_extensions().items() if form in FORMATS} <= {
        *FORMATS
    }
    root = write_folders(tmp_path / "data", {"train": 1, "val": 1})
    for ending in written:
        mode = {".pbm": "1", ".pgm": "L"}.get(ending, "RGB")
        Image.new("RGB", (12, 9), (9, 99, 200)).convert(mode).save(
            root / f"train/cat/x{ending.upper()}", FORM_OF[ending]
        )
    train = opened(root).train
    assert len(train) == len(written) + 2
    assert not len(train.unreadable())
    reader = ImageReader(train)
    shapes = {reader.whole(i).shape for i, name in enumerate(train.names) if "/x." in name}
    assert shapes == {(9, 12, 3)}
    assert {finding.kind for finding in survey(str(root)).findings} == set()


@pytest.mark.parametrize("form", ["TGA", "QOI", "PCX", "SGI", "JPEG2000", "PPM"])
@pytest.mark.filterwarnings("ignore")  # of PIL, about damage
def test_a_damaged_file_of_any_format_is_read_or_refused(form: str):
    rng, content, outcomes = np.random.default_rng(0), io.BytesIO(), Counter()
    Image.fromarray(rng.integers(0, 256, (20, 17, 3), dtype=np.uint8)).save(content, form)
    for i in range(60):
        spoilt = bytearray(content.getvalue())
        for at in rng.integers(0, min(len(spoilt), 80 if i % 2 else len(spoilt)), 3).tolist():
            spoilt[at] ^= 1 << int(rng.integers(8))
        try:
            read_header(io.BytesIO(spoilt))
            outcomes[read_pixels(bytes(spoilt))[0].ndim] += 1
        except ValueError:  # any other would end a run
            outcomes["refused"] += 1
    assert outcomes.total() == 60
    assert outcomes["refused"]
    for strange in (bytes(500), b"%PDF-1.4" + bytes(99), b"PK\3\4" + bytes(99), *map(rng.bytes, [300] * 200)):
        with pytest.raises(ValueError, match="no image in a known format"):  # TGA has no signature
            read_header(io.BytesIO(strange))


STRANGERS = {
    b"\0\0\0\x1cftypheic\0\0\0\0mif1heic": "HEIC: pip install pillow-heif",
    b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic": "HEIC: pip install pillow-heif",
    b"\xff\x0a\xfa\x7f": "JPEG XL is not read",
    b"version https://git-lfs.github.com/spec/v1\noid": "a pointer of Git LFS, not the image: git lfs pull",
    b"<html>": "the content is no image in a known format",  # control
}


@pytest.mark.parametrize("ending", ["heic", "jpg"])
@pytest.mark.parametrize("content", STRANGERS)
def test_files_that_are_not_read_are_named_as_what_they_are(tmp_path: Path, content: bytes, ending: str):
    if b"ftyp" in content and "HEIF" in readable_formats():
        pytest.skip("pillow-heif is installed")
    with pytest.raises(ValueError, match=STRANGERS[content]):
        read_header(io.BytesIO(content))
    root = write_folders(tmp_path, {"train": 2, "val": 1})
    (root / f"train/cat/IMG_1.{ending}").write_bytes(content)
    train = opened(root).train
    assert [train.names[i] for i in train.unreadable()] == [f"train/cat/IMG_1.{ending}"]


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path: Path):
    pillow_heif = pytest.importorskip("pillow_heif")
    root = write_folders(tmp_path, {"train": 2, "val": 1})
    pillow_heif.from_pillow(Image.new("RGB", (60, 40), (200, 30, 30))).save(root / "train/cat/IMG.HEIC")
    train = opened(root).train
    assert not len(train.unreadable())
    pixels = ImageReader(train).whole(2)
    assert pixels.shape == (40, 60, 3)
    assert np.abs(pixels.astype(int) - (200, 30, 30)).max() < 12
