"""A scan of images with several labels: what is counted, what is found, and what plain scans say of such data."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import recipe, write_image, write_manifest
from tests.unit.data.test_hub_several_labels import ANIMALS, INDEXES, write
from toolkit import InputError, Settings
from toolkit.data.sources.splits import open_splits
from toolkit.tools.scan import scan
from toolkit.tools.scan_report import ScanReport

ROWS = {  # names of files, whose seeds they are, and labels
    "train": [("0.png", "cat|dog"), ("1.png", ""), ("2.png", "dog"), ("3.png", "dog|emu|cat"), ("4.png", "")],
    "val": [("5.png", "cat"), ("6.png", "dog")],
}


def manifests(root: Path, rows: dict[str, Sequence[tuple[str, str]]] | None = None) -> Path:
    for split, of_split in (rows or ROWS).items():
        write_manifest(root, split, of_split)
        for name, _ in of_split:
            write_image(root / name, (30, 20), seed=int(Path(name).stem))
    return root


def columns(root: Path, header: str, *lines: str) -> Path:
    """A manifest with a column a class, and its images."""
    root.mkdir(exist_ok=True)
    (root / "train.csv").write_text("\n".join([header, *lines]) + "\n")
    for line in lines:
        write_image(root / line.split(",")[0], (30, 20), seed=int(Path(line.split(",")[0]).stem))
    return root


def scanned(root: Path | str, task: str = "multilabel", **more) -> ScanReport:
    name = str(root).rpartition("/")[2]
    return scan(str(root), output_dir=Path(f"out-{name}-{task}"), task=task, num_workers=1, **more)


def found(report: ScanReport) -> list[tuple[str, str, str]]:
    return [(finding.split, finding.name, finding.kind) for finding in report.findings]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_labels_are_counted_by_class_and_images_without_any(tmp_path: Path):
    report = scanned(manifests(tmp_path / "data"))
    assert report.classes == ("cat", "dog", "emu")
    assert report.splits["train"].per_class == {"cat": 2, "dog": 3, "emu": 1}
    assert (report.splits["train"].unlabeled, report.splits["val"].unlabeled) == (2, 0)
    assert found(report) == [("val", "emu", "class untested")]
    assert report.serious() == []
    lines = [line.split() for line in report.text.splitlines()]
    assert ["labels", "6", "2"] in lines
    assert ["images", "without", "labels", "2", "0"] in lines
    assert ["dog", "3", "1"] in lines
    assert json.loads((report.folder / "scan.json").read_text())["splits"]["train"]["unlabeled"] == 2
    sheets = {path.name for path in (report.folder / "contact-sheets").iterdir()}
    assert sheets == {"0000-cat.png", "0001-dog.png", "0002-emu.png", "0003-without_labels.png"}


def test_a_column_a_class_is_counted_too_and_one_without_images_is_missing(tmp_path: Path):
    root = columns(tmp_path / "data", "file,dog,cat,emu", "0.png,1,0,0", "1.png,1,1,0", "2.png,0,0,0", "3.png,0,1,0")
    report = scanned(root)
    assert report.classes == ("dog", "cat", "emu")
    assert report.splits["train"].per_class == {"dog": 2, "cat": 2, "emu": 0}
    assert report.splits["train"].unlabeled == 1
    assert found(report) == [("train", "emu", "class missing")]
    assert report.findings[0].reason == "no image of train has it"


def test_numbers_get_their_names(tmp_path: Path):
    root = manifests(tmp_path / "data", {"train": [("0.png", "0|2"), ("1.png", "1"), ("2.png", "0|1|2")]})
    (root / "class_names.txt").write_text("red\ngreen\nblue\n")
    report = scanned(root)
    assert report.splits["train"].per_class == {"red": 2, "green": 2, "blue": 2}
    (root / "class_names.txt").write_text("red\ngreen\nblue\nwhite\n")
    assert found(scanned(root)) == [("train", "3", "class missing")]


def test_every_fault_is_found_beside_all_else(tmp_path: Path):
    rows = {**ROWS, "val": [("5.png", "cat|cow"), ("6.png", "dog")]}
    root = manifests(tmp_path / "data", {**rows, "test": [("7.png", "dog"), ("8.png", "cat")]})
    (root / "2.png").write_bytes(b"")
    (root / "test.csv").write_text("filepath,url\n7.png,x\n")
    with (root / "train.csv").open("a") as file:
        file.write("gone.png,dog\n../x.png,dog\n0.png,emu\n")
    with pytest.raises(InputError):
        open_splits(Settings(data_root=str(root), task="multilabel"), 32)
    report = scanned(root)
    assert set(found(report)) == {
        ("train", "2.png", "empty"),
        ("train", "train.csv", "bad row"),
        ("val", "cow", "class extra"),
        ("val", "emu", "class untested"),
        ("test", "test.csv", "left out"),
    }
    assert sum(finding.kind == "bad row" for finding in report.findings) == 3


def test_copies_are_told_by_their_labels(tmp_path: Path):
    root = manifests(tmp_path / "data")
    for name, of in (("1.png", "0.png"), ("4.png", "5.png")):
        (root / name).write_bytes((root / of).read_bytes())
    report = scanned(root)
    assert {(finding.name, finding.kind, finding.reason) for finding in report.findings if finding.name != "emu"} == {
        ("4.png", "leak", "the same content as 5.png, labels cat"),
        ("0.png", "contradiction", "the same content as 1.png, no label"),
        ("1.png", "contradiction", "the same content as 0.png, labels cat|dog"),
    }


def test_a_written_manifest_trains_with_the_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = manifests(tmp_path / "data")
    (root / "3.png").write_bytes(b"")  # the only one of emu
    assert recipe("scan")([str(root), "--task", "multilabel", "--output-dir", "out", "--write-manifest"]) == 2
    out, err = capsys.readouterr()
    assert "out/manifest: --data-root on it with --task multilabel trains without what was found" in out
    assert err == f"error: {root}: not usable as it is: 1 class untested, 1 empty\n"
    splits = open_splits(Settings(data_root="out/manifest", task="multilabel"), 32)
    assert splits.classes == ("cat", "dog")
    assert splits.train.labels.tolist() == [[1, 1], [0, 0], [0, 1], [0, 0]]
    assert splits.val.labels.tolist() == [[1, 0], [0, 1]]
    assert found(scanned(tmp_path / "out" / "manifest")) == []


@pytest.mark.parametrize("form", ["cells", "columns", "numbers", "sequences"])
def test_a_plain_scan_says_that_images_have_several_labels(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root = tmp_path / "data"
    if form == "cells":
        manifests(root, {"train": [("0.png", "cat|dog"), ("1.png", "dog"), ("2.png", "cat"), ("3.png", "cat|dog")]})
    elif form == "columns":
        columns(root, "file,dog,cat", "0.png,1,0", "1.png,1,1")
    elif form == "numbers":
        manifests(root, {"train": [("0.png", "0"), ("1.png", "0|1"), ("2.png", "1")]})
    else:
        root = write(root, "train", {"labels": ([ANIMALS], INDEXES)})
    name = f"hf:{root}" if form == "sequences" else str(root)
    capsys.readouterr()
    assert recipe("scan")([name, "--output-dir", "out"]) == 2
    out, err = capsys.readouterr()
    told = [line for line in [*out.splitlines(), *err.splitlines()] if "for --task multilabel" in line]
    assert len(told) == 1
    assert err.count("\n") == 1
    assert recipe("scan")([name, "--output-dir", "again", "--task", "multilabel"]) == 0


def test_a_plain_scan_of_names_that_only_look_like_several_finds_nothing(tmp_path: Path):
    rows = [(f"{i}.png", label) for i, label in enumerate(("a|b", "c|d", "e", "a|b", "c|d", "e"))]
    assert found(scanned(manifests(tmp_path / "data", {"train": rows}), "classification")) == []


def test_other_sources_are_scanned_with_the_task(tmp_path: Path):
    root = write(tmp_path / "data", "train", {"labels": ([ANIMALS], [[0, 1], [], [1], [0, 1]])})
    report = scanned(f"hf:{root}")
    assert report.splits["train"].per_class == {"cat": 2, "dog": 3, "emu": 0}
    assert found(report) == [("train", "emu", "class missing")]
    for i, name in enumerate(("cat", "dog", "cat", "dog")):
        write_image(tmp_path / "folders" / "train" / name / f"{i}.png", seed=i)
    folders = scanned(tmp_path / "folders")
    assert folders.splits["train"].per_class == {"cat": 2, "dog": 2}
    assert folders.splits["train"].unlabeled == 0


def test_a_task_that_there_is_not_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert recipe("scan")([str(manifests(tmp_path / "data")), "--task", "multilable"]) == 2
    assert "--task multilable: must be one of classification, multilabel; did you mean" in capsys.readouterr().err
