"""Each layout of a data root has one kind, and training, scan and evaluation act on that kind."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import write_image
from toolkit import InputError, Settings
from toolkit.data.sources import survey as survey_module
from toolkit.data.sources.detect import SourceKind, detect
from toolkit.data.sources.splits import open_splits
from toolkit.data.sources.survey import survey
from toolkit.tools import run_data

ROWS = "filepath,label\n"
NO_TRAIN = "neither a folder train/ nor a file train.csv nor shards train"
TWO_NAMES = "has val and validation, which are names of one and the same split"

# Paths in the folder (one that ends in / is a folder; -> makes a link), the kind, and what training says of it:
# a part of its error. Layouts hold no usable image, so that the reader at work can be told by its error.
LAYOUTS = {
    "nothing": ((), SourceKind.UNSPLIT, NO_TRAIN),
    "class folders": (("cat/a.png", "dog/a.png"), SourceKind.UNSPLIT, NO_TRAIN),
    "only other splits": (("val/cat/a.png", "test/cat/a.png"), SourceKind.UNSPLIT, NO_TRAIN),
    "a name that only begins with train": (("training/cat/a.png",), SourceKind.UNSPLIT, NO_TRAIN),
    "class folders in train": (("train/cat/", "train/dog/"), SourceKind.FOLDERS, "class 'cat' has no images"),
    "one class folder": (("train/cat/a.png",), SourceKind.FOLDERS, "at least 2; it has 1"),
    "a class folder that is a link to nothing": (("train/cat -> gone",), SourceKind.FOLDERS, "at least 2; it has 1"),
    "tars beside class folders": (("train/cat/", "train/a.tar"), SourceKind.FOLDERS, "at least 2; it has 1"),
    "tars beside train": (("train/cat/", "train-0.tar"), SourceKind.FOLDERS, "at least 2; it has 1"),
    "two names of val": (
        ("train/cat/a.png", "train/dog/a.png", "val/", "validation/"),
        SourceKind.FOLDERS,
        TWO_NAMES,
    ),
    "train without class folders": (("train/a.png",), SourceKind.INCOMPLETE, "at least 2; it has 0"),
    "hidden folders in train": (("train/.cat/a.png",), SourceKind.INCOMPLETE, "at least 2; it has 0"),
    "hidden tars in train": (("train/.a.tar",), SourceKind.INCOMPLETE, "at least 2; it has 0"),
    "tars beside an empty train": (("train/", "train-0.tar"), SourceKind.INCOMPLETE, "at least 2; it has 0"),
    "train is a file": (("train",), SourceKind.INCOMPLETE, NO_TRAIN),
    "train is a link to nothing": (("train -> gone",), SourceKind.INCOMPLETE, NO_TRAIN),
    "train.csv is a folder": (("train.csv/",), SourceKind.INCOMPLETE, NO_TRAIN),
    "train.csv is a link to nothing": (("train.csv -> gone",), SourceKind.INCOMPLETE, NO_TRAIN),
    "a manifest": (("train.csv",), SourceKind.MANIFESTS, "train.csv: no rows"),
    "a manifest beside class folders": (("train.csv", "train/cat/"), SourceKind.MANIFESTS, "train.csv: no rows"),
    "a manifest that is a folder, and class folders": (
        ("train.csv/", "train/cat/"),
        SourceKind.FOLDERS,
        "at least 2; it has 1",
    ),
    "a manifest beside shards": (("train.csv", "train-0.tar"), SourceKind.MANIFESTS, "train.csv: no rows"),
    "tars in train": (("train/a.tar",), SourceKind.SHARDS, "train/a.tar"),
    "tars in the folder": (("train-0.tar",), SourceKind.SHARDS, "train-0.tar"),
    "tars where train is a link to nothing": (("train -> gone", "train.tar"), SourceKind.SHARDS, "train: No such file"),
}


def lay_out(root: Path, paths: tuple[str, ...]) -> Path:
    root.mkdir()
    for path in paths:
        name, _, target = path.partition(" -> ")
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if target:
            place.symlink_to(target)
        elif path.endswith("/"):
            place.mkdir(exist_ok=True)
        elif path.endswith(".png"):
            write_image(place)
        else:
            place.write_text(ROWS if path.endswith(".csv") else "")
    return root


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS)
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, SourceKind, str]:
    paths, kind, told = request.param
    return lay_out(tmp_path / "data", paths), kind, told


def test_a_folder_has_the_kind_of_its_layout(layout: tuple[Path, SourceKind, str]):
    root, kind, _ = layout
    assert detect(root) is detect(str(root)) is kind


def test_training_reads_a_folder_by_its_kind(layout: tuple[Path, SourceKind, str]):
    root, _, told = layout
    with pytest.raises(InputError) as caught:
        open_splits(Settings(data_root=str(root)), 32)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("paths", "hint"),
    [
        (("cat/", "dog/"), "it has 2 folders (cat, dog): move them into {root}/train/"),
        (("cat/", "dog/", "owl/"), "it has 3 folders (cat, dog, ...): move them into {root}/train/"),
        (("cat/",), None),
        (("validation/", "test/"), None),
        (("val/", "cat/", "dog/"), None),
        (("train -> gone", "cat/", "dog/"), None),
    ],
)
def test_folders_are_to_be_moved_into_train_only_where_they_can_be_its_classes(
    tmp_path: Path, paths: tuple[str, ...], hint: str | None
):
    root = lay_out(tmp_path / "data", paths)
    with pytest.raises(InputError, match=NO_TRAIN) as caught:
        open_splits(Settings(data_root=str(root)), 32)
    assert str(caught.value).endswith(f"train*.tar in it; {hint.format(root=root)}" if hint else "train*.tar in it")


def test_a_scan_lists_folders_and_manifests_leniently_and_nothing_else(
    layout: tuple[Path, SourceKind, str], monkeypatch: pytest.MonkeyPatch
):
    root, kind, told = layout
    strict: list[str] = []

    def find(settings: Settings, largest: int) -> None:
        strict.append(settings.data_root)
        raise InputError("read strictly")

    monkeypatch.setattr(survey_module, "find_splits", find)
    lenient = kind in (SourceKind.MANIFESTS, SourceKind.FOLDERS)
    if lenient and told is not TWO_NAMES:
        assert survey(str(root)).source == str(root)
    else:
        with pytest.raises(InputError, match=TWO_NAMES if lenient else "read strictly"):
            survey(str(root))
    assert strict == ([] if lenient else [str(root)])


def test_evaluation_takes_a_folder_for_class_folders_only_where_there_is_no_train(
    layout: tuple[Path, SourceKind, str], monkeypatch: pytest.MonkeyPatch
):
    root, kind, _ = layout
    taken: list[Path] = []

    def class_folders(folder: Path, loaded: object) -> None:
        taken.append(folder)
        raise InputError("class folders")

    monkeypatch.setattr(run_data, "_class_folders", class_folders)
    selection = SimpleNamespace(selection=lambda: SimpleNamespace(sizes=(32,)))
    loaded = SimpleNamespace(settings=Settings(), strategy=selection, classes=("a", "b"))
    with pytest.raises(InputError):
        run_data.other_images(loaded, str(root))
    assert taken == ([root] if kind is SourceKind.UNSPLIT else [])


@pytest.mark.parametrize(
    ("data_root", "kind"),
    [
        ("synthetic", SourceKind.SYNTHETIC),
        ("s3://bucket/photos", SourceKind.URL),
        ("hf:beans", SourceKind.HUB),
        ("hf:./folder", SourceKind.HUB),
        ("nowhere", SourceKind.MISSING),
        ("file.tar", SourceKind.MISSING),
    ],
)
def test_a_reserved_name_is_no_folder_unless_it_is_given_as_a_path(
    data_root: str, kind: SourceKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("file.tar").write_text("")
    assert detect(data_root) is kind
    assert detect(Path(data_root)) is SourceKind.MISSING  # control
    lay_out(tmp_path / "synthetic", ("train.csv",))
    assert detect("synthetic") is SourceKind.SYNTHETIC
    assert detect(Path("synthetic")) is SourceKind.MANIFESTS
