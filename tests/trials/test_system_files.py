"""What systems and shares leave in folders is no data, in any source, for any command, and in an output folder."""

import logging
import shutil
from pathlib import Path

import pytest

from tests.conftest import recipe, write_folders, write_image
from tests.unit.data.test_shards import image, write_tar
from toolkit import InputError, Settings
from toolkit.data.sources.paths import list_paths
from toolkit.data.sources.splits import open_splits
from toolkit.data.sources.survey import survey
from toolkit.runs.directory import RunDirectory
from toolkit.system.system_files import is_system
from toolkit.tools.export import refuse_existing_export

# Folders, each with an image below it that must not be found; in the case in which some system writes them, or another.
FOLDERS = (
    *("@eaDir/0.png", "@EADIR/1.png", "__MACOSX", "__macosx/cat", "lost+found", "$RECYCLE.BIN/S-1-5", "#recycle"),
    *("System Volume Information", "SYSTEM VOLUME INFORMATION", ".ipynb_checkpoints", ".Trashes", ".Trash-1000/files"),
    *(".Spotlight-V100", ".fseventsd", ".AppleDouble", "@Recycle", ".@__thumb", "@__thumb", ".stfolder", ".stversions"),
    *(".dropbox.cache", ".git/lfs", "__pycache__", "#snapshot", "~snapshot", ".snapshot", "@tmp", "FOUND.000"),
    *("found.012", "RECYCLER/S-1-5-21", "__MACOSX 2", "__MACOSX (1)", "@SynoDrive", "@sharesnap", "#SynoRecycle"),
    *("_vti_cnf", "_svn", "_recycle", "iPod Photo Cache", "Catalog Previews.lrdata", "@GMT-2024.01.01-00.00.00"),
    *("Network Trash Folder", "Temporary Items", "LOST.DIR", ".thumbnails", ".sync", "@Recently-Snapshot", ".cache"),
)
FILES = (
    *(
        ".DS_Store",
        "Thumbs.db",
        "THUMBS.DB",
        "ehthumbs.db",
        "desktop.ini",
        "Desktop.ini",
        "Icon\r",
        "._0.png",
        ".a.png",
    ),
    *("._.DS_Store", ".directory", "~$list.png", ":2e_0.png", "0.png:Zone.Identifier", "0.png@SynoEAStream"),
)
NOT_OURS = (
    "recycle",
    "thumbs",
    "git",
    "snapshot",
    "desktop",
    "icon",
    "eaDir",
    "cache",
    "MACOSX",
    "lost",
    "found",
    "found.1",
    "recycled",
    "recycle bin",
    "@friend",
    "tmp",
)


def litter(folder: Path) -> int:
    """Write all of these into a folder; returns how many entries that makes."""
    for name in FOLDERS:
        write_image(folder / name / "SYNOPHOTO_THUMB_M.png", seed=1)
    for name in FILES:
        shutil.copyfile(folder / FOLDERS[0] / "SYNOPHOTO_THUMB_M.png", folder / name)
    return len({name.split("/")[0] for name in FOLDERS} | {*FILES})


def test_names_of_peoples_own_folders_are_no_system_files():
    assert all(is_system(name.split("/")[0]) for name in (*FOLDERS, *FILES))
    assert not any(map(is_system, NOT_OURS))


@pytest.fixture
def share(tmp_path: Path) -> tuple[Path, int]:
    """A data set on a share, and how many files and folders of systems lie in it."""
    root = write_folders(tmp_path / "photos", {"train": 4, "val": 1, "test": 1})
    places = [root, *root.glob("*"), *root.glob("*/*")]
    counts = [litter(place) for place in places if place.is_dir()]
    return root, sum(counts[1:])  # what lies beside the splits is nobody's


def test_no_thumbnail_is_trained_on_and_the_plan_counts_what_is_left_out(share, capsys: pytest.CaptureFixture[str]):
    root, count = share
    words = ["--arch", "test_resnet", "--img-size", "32", "--batch-size", "4", "--log-with", "none", "--dry-run"]
    assert recipe("single_scale")(["--data-root", str(root), *words]) == 0
    told = "".join(capsys.readouterr())
    assert "train 8, val 2, test 2 images, 2 classes" in told
    assert f"left out: {count} hidden or system files (" in told
    alone = root.parent / "alone"  # the same without train/: class folders at the root
    shutil.copytree(root / "train", alone)
    splits = open_splits(Settings(data_root=str(alone)), 32)
    assert (splits.classes, len(splits.train) + len(splits.val)) == (("cat", "dog"), 8)


def test_a_clean_folder_has_nothing_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    open_splits(Settings(data_root=str(write_folders(tmp_path, {"train": 2, "val": 1}))), 32)
    assert "left out" not in caplog.text


def test_a_scan_and_predict_find_the_same_images(share, monkeypatch: pytest.MonkeyPatch):
    root, count = share
    found = survey(str(root))
    assert {split: len(index) for split, index in found.splits.items()} == {"train": 8, "val": 2, "test": 2}
    assert found.classes == ("cat", "dog")
    assert {finding.kind for finding in found.findings} == {"left out"}
    assert sum(int(finding.reason.split()[0]) for finding in found.findings) == count
    listed = list_paths([str(root)])
    assert len(listed.names) == 12
    assert not listed.unreadable
    assert len(listed.system) > count
    monkeypatch.chdir(root / "train/cat")
    by_shell = sorted(str(path) for path in Path().glob("[!.]*"))  # what a shell makes of *
    assert list_paths(by_shell).names == ["0.png", "1.png", "2.png", "3.png"]
    assert list_paths(["._0.png", "0.png"]).names == ["._0.png", "0.png"]  # control: one that is named is meant
    with pytest.raises(InputError, match="there are no images in it"):
        list_paths(["Thumbs.db", "desktop.ini"])


def test_members_of_shards_are_left_out_whenever_a_shard_is_opened(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    good = [
        (f"./{i}.{ending}", content)
        for i in range(4)
        for ending, content in (("png", image(i)), ("cls", b"01"[i % 2 :][:1]))
    ]
    bad = [(f"{name}/x.png", image(9)) for name in FOLDERS] + [(f"{name}", image(9)) for name in FILES]
    bad += [("__MACOSX/._0.cls", b"\0"), ("a/@eaDir/0.png/y.jpg", image(9))]
    write_tar(tmp_path / "train-0.tar", [*bad, *good])
    caplog.set_level(logging.INFO)
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        splits = open_splits(Settings(data_root=str(tmp_path), val_split=0.5), 32)
        names = sorted([*splits.train.names, *splits.val.names])
        assert names == [f"train-0.tar/./{i}.png" for i in range(4)]
        assert f"left out: {len(bad)} hidden or system files (" in caplog.text


def test_a_list_of_all_files_leaves_out_thumbnails(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """As a script with os.walk writes it."""
    names = ["a.png", "b.png", ".mine/c.png", "d.png", "@eaDir/a.png/T.png", "x/._a.png", "lost+found/e.png"]
    for name in names:
        write_image(tmp_path / name)
    rows = "".join(f"{name},{i % 2}\n" for i, name in enumerate(names))
    (tmp_path / "train.csv").write_text(f"filepath,label\n{rows}")
    caplog.set_level(logging.INFO)
    splits = open_splits(Settings(data_root=str(tmp_path)), 32)
    assert sorted([*splits.train.names, *splits.val.names]) == [".mine/c.png", "a.png", "b.png", "d.png"]
    assert "left out: 3 hidden or system files (T.png, ._a.png, e.png), listed in train.csv" in caplog.text
    assert {len(index) for index in survey(str(tmp_path)).splits.values()} == {4}


def test_an_output_folder_is_empty_when_only_systems_have_written_into_it(tmp_path: Path):
    litter(tmp_path)
    assert RunDirectory(tmp_path).is_empty()
    refuse_existing_export(tmp_path, overwrite=False)
    (tmp_path / "notes.txt").write_text("")  # control
    assert not RunDirectory(tmp_path).is_empty()
    with pytest.raises(InputError, match=r"the folder holds other files \(notes\.txt\)"):
        refuse_existing_export(tmp_path, overwrite=False)
