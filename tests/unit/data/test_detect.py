"""Each layout of a data root has one source, and training, scan and evaluation act on that source."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import write_image
from toolkit import InputError, Settings
from toolkit.data.sources import survey as survey_module
from toolkit.data.sources.base import Source
from toolkit.data.sources.built_in import BuiltInSource
from toolkit.data.sources.detect import find_source
from toolkit.data.sources.folders import FolderSource, read_folders
from toolkit.data.sources.hub import HubSource
from toolkit.data.sources.manifests import ManifestSource
from toolkit.data.sources.shards import ShardSource, UrlSource
from toolkit.data.sources.splits import open_splits
from toolkit.data.sources.survey import survey
from toolkit.tools import run_data

ROWS = "filepath,label\n"
NO_TRAIN = "neither a folder train/ nor a file train.csv nor shards train"
CLASSES_ALONE = "class 'cat' has 1 image, too few to hold one out"
UNSPLIT, INCOMPLETE = "a folder without train", "train, but of no kind"  # no source recognizes them
TWO_NAMES = "has val and validation, which are names of one and the same split"

# Paths in the folder (one that ends in / is a folder; -> makes a link), the source, and what training says of it:
# a part of its error. Layouts hold no usable image, so that the reader at work can be told by its error.
LAYOUTS = {
    "nothing": ((), UNSPLIT, NO_TRAIN),
    "class folders": (("cat/a.png", "dog/a.png"), FolderSource, CLASSES_ALONE),
    "class folders, one without images": (("cat/a.png", "dog/a.png", "notes/"), UNSPLIT, NO_TRAIN),
    "class folders beside a split": (("cat/a.png", "dog/a.png", "val/"), UNSPLIT, NO_TRAIN),
    "only other splits": (("val/cat/a.png", "test/cat/a.png"), UNSPLIT, NO_TRAIN),
    "a name that only begins with train": (("trains/cat/a.png",), UNSPLIT, NO_TRAIN),
    "another name of train": (("training/cat/a.png",), FolderSource, "training: needs a sub-folder per class"),
    "class folders in train": (("train/cat/", "train/dog/"), FolderSource, "class 'cat' has no images"),
    "one class folder": (("train/cat/a.png",), FolderSource, "at least 2; it has 1"),
    "a class folder that is a link to nothing": (("train/cat -> gone",), FolderSource, "at least 2; it has 1"),
    "tars beside class folders": (("train/cat/", "train/a.tar"), FolderSource, "at least 2; it has 1"),
    "tars beside train": (("train/cat/", "train-0.tar"), FolderSource, "at least 2; it has 1"),
    "two names of val": (
        ("train/cat/a.png", "train/dog/a.png", "val/", "validation/"),
        FolderSource,
        TWO_NAMES,
    ),
    "train without class folders": (("train/a.png",), INCOMPLETE, "at least 2; it has 0"),
    "hidden folders in train": (("train/.cat/a.png",), INCOMPLETE, "at least 2; it has 0"),
    "hidden tars in train": (("train/.a.tar",), INCOMPLETE, "at least 2; it has 0"),
    "tars beside an empty train": (("train/", "train-0.tar"), ShardSource, "train-0.tar: not a whole"),
    "train is a file": (("train",), INCOMPLETE, NO_TRAIN),
    "train is a link to nothing": (("train -> gone",), INCOMPLETE, NO_TRAIN),
    "train.csv is a folder": (("train.csv/",), INCOMPLETE, NO_TRAIN),
    "train.csv is a link to nothing": (("train.csv -> gone",), INCOMPLETE, NO_TRAIN),
    "a manifest": (("train.csv",), ManifestSource, "train.csv: no rows"),
    "a manifest beside class folders": (("train.csv", "train/cat/"), ManifestSource, "train.csv: no rows"),
    "a manifest that is a folder, and class folders": (
        ("train.csv/", "train/cat/"),
        FolderSource,
        "at least 2; it has 1",
    ),
    "a manifest beside shards": (("train.csv", "train-0.tar"), ManifestSource, "train.csv: no rows"),
    "tars in train": (("train/a.tar",), ShardSource, "train/a.tar"),
    "tars in the folder": (("train-0.tar",), ShardSource, "train-0.tar"),
    "tars where train is a link to nothing": (("train -> gone", "train.tar"), ShardSource, "train: No such file"),
}


Layout = tuple[Path, type[Source] | str, str]


def source_of(data_root: str | Path) -> type[Source] | None:
    source = find_source(data_root)
    return type(source) if source else None


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
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> Layout:
    paths, kind, told = request.param
    return lay_out(tmp_path / "data", paths), kind, told


def test_a_folder_has_the_source_of_its_layout(layout: Layout):
    root, kind, _ = layout
    assert source_of(root) is source_of(str(root)) is (kind if isinstance(kind, type) else None)


def test_training_reads_a_folder_by_its_source(layout: Layout):
    root, _, told = layout
    with pytest.raises(InputError) as caught:
        open_splits(Settings(data_root=str(root)), 32)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("paths", "held"),
    [
        (("cat/", "dog/"), "it holds 2 folders (cat/: 0 images, 0 folders, dog/: 0 images, 0 folders)"),
        (
            ("t.zip", "x/a/b/", "x/c.png"),
            "it holds 1 folder (x/: 1 images, 1 folders); 1 archive to unpack (t.zip)",
        ),
        (
            ("a.png", "a.csv", "0.tar"),
            "it holds 1 CSV file (a.csv: filepath,label); 1 tar file (0.tar); 1 image",
        ),
        ((), "it holds nothing that is read"),
        (("train -> gone", "cat/", "dog/"), "it holds 2 folders (cat/"),
    ],
)
def test_what_a_folder_holds_is_told_when_it_is_no_data_set(tmp_path: Path, paths: tuple[str, ...], held: str):
    root = lay_out(tmp_path / "data", paths)
    with pytest.raises(InputError) as caught:
        read_folders(root, tmp_path)
    assert NO_TRAIN in str(caught.value)
    assert held in str(caught.value)


def test_a_scan_lists_folders_and_manifests_leniently_and_nothing_else(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    root, kind, told = layout
    strict: list[str] = []

    def find(settings: Settings, largest: int) -> None:
        strict.append(settings.data_root)
        raise InputError("read strictly")

    monkeypatch.setattr(survey_module, "find_splits", find)
    lenient = kind in (ManifestSource, FolderSource)
    if lenient and told is not TWO_NAMES:
        assert survey(str(root)).source == str(root)
    else:
        with pytest.raises(InputError, match=TWO_NAMES if lenient else "read strictly"):
            survey(str(root))
    assert strict == ([] if lenient else [str(root)])


def test_evaluation_takes_a_folder_for_class_folders_only_where_there_is_no_train(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
):
    root, kind, told = layout
    taken: list[Path] = []

    def class_folders(folder: Path, loaded: object) -> None:
        taken.append(folder)
        raise InputError("class folders")

    monkeypatch.setattr(run_data, "_class_folders", class_folders)
    selection = SimpleNamespace(selection=lambda: SimpleNamespace(sizes=(32,)))
    loaded = SimpleNamespace(settings=Settings(), strategy=selection, classes=("a", "b"))
    with pytest.raises(InputError):
        run_data.other_images(loaded, str(root), {})
    assert taken == ([root] if kind is UNSPLIT or told is CLASSES_ALONE else [])


@pytest.mark.parametrize(
    ("data_root", "kind"),
    [
        ("synthetic", BuiltInSource),
        ("s3://bucket/photos", UrlSource),
        ("hf:beans", HubSource),
        ("hf:./folder", HubSource),
        ("nowhere", None),
        ("file.tar", None),
    ],
)
def test_a_reserved_name_is_no_folder_unless_it_is_given_as_a_path(
    data_root: str, kind: type[Source] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("file.tar").write_text("")
    assert source_of(data_root) is kind
    assert source_of(Path(data_root)) is None  # control
    lay_out(tmp_path / "synthetic", ("train.csv",))
    assert source_of("synthetic") is BuiltInSource
    assert source_of(Path("synthetic")) is ManifestSource
