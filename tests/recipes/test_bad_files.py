"""Whole runs over data with files that cannot be read: refused, or quarantined without moving anything else."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import recipe, write_folders
from toolkit.runs.dashboards import Tracking

pytestmark = pytest.mark.pages

# 64 px images, so that copies of 32 px is worthwhile for training at 16 px; 24 train images, 3 steps an epoch
WORDS = ("--data-root", "data", "--arch", "test_vit", "--img-size", "16", "--batch-size", "8", "--epochs", "3")
MORE = ("--model-kwargs", "patch_size=4", "dynamic_img_size=true", "--log-with", "none", "--record-samples", "--no-amp")
SIZE = (64, 64)
HTML, EMPTY = "the content is no image in a known format", "the file is empty"
BAD = {"train/cat/3.png": HTML, "train/dog/5.png": "truncated", "val/dog/1.png": "truncated", "test/cat/0.png": EMPTY}
# Their numbers in the index: twelve cats, then twelve dogs, each in the order 0 1 10 11 2 3 ...
CAT_3, DOG_5 = 5, 12 + 7


def spoil(root: Path, name: str) -> None:
    content = (root / name).read_bytes()
    (root / name).write_bytes({HTML: b"<html></html>", EMPTY: b""}.get(BAD[name], content[: len(content) // 2]))


def write_data(root: Path, bad: Any = ()) -> Path:
    write_folders(root, {"train": 12, "val": 4, "test": 3}, size=SIZE)
    for name in bad:
        spoil(root, name)
    return root


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def started(*words: str) -> int:
    return recipe("single_scale")([*WORDS, *MORE, *words])


def summary(output: Path) -> dict[str, Any]:
    return json.loads((output / "summary.json").read_text())


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def listed(output: Path) -> dict[str, str]:
    """quarantine.jsonl as name -> reason; each name once."""
    found = lines(output / "quarantine.jsonl")
    assert len({line["name"] for line in found}) == len(found)
    return {line["name"]: line["reason"] for line in found}


def delivered(output: Path) -> list[list[tuple[int, int]]]:
    """Per step and micro-batch: (id, digest of the augmented image)."""
    return [list(zip(line["ids"], line["digests"], strict=True)) for line in lines(output / "samples.jsonl")]


def test_a_run_is_refused_before_it_writes_anything_when_headers_are_broken(tmp_path: Path, capsys):
    write_data(tmp_path / "data", ["train/cat/3.png", "test/cat/0.png"])
    assert started("--output-dir", "run") == 2
    error = capsys.readouterr().err
    assert error.splitlines() == [
        f"error: train/cat/3.png: cannot be read as an image: {HTML} (and 1 more); `toolkit scan` lists all of them, "
        "--on-bad-sample quarantine trains without"
    ]
    assert not (tmp_path / "run").exists()


def test_a_run_ends_with_one_line_when_it_meets_a_file_that_is_cut_short(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    codes: list[int] = []
    monkeypatch.setattr(Tracking, "finish", lambda _, exit_code=0: codes.append(exit_code))
    write_data(tmp_path / "data", ["train/dog/5.png"])
    assert started("--output-dir", "run") == 2
    assert codes[0] == 2  # what the dashboard shows
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert error.startswith("error: train/dog/5.png: cannot be read as an image: image file is truncated")
    assert f"error: {summary(tmp_path / 'run')['exit_reason']}\n" == error


WAYS = {
    "ram": ("--cache", "auto"),
    "off": ("--cache", "off"),
    "disk": ("--cache", "disk"),
    "processes": ("--cache", "auto", "--rand-augment", "5"),
    "disk-processes": ("--cache", "disk", "--rand-augment", "5"),
}
TESTED = [pytest.param(way, marks=[pytest.mark.slow] * (way not in ("ram", "processes"))) for way in WAYS]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Path]:
    """A finished run in each of the ways, over good data or bad; made when it is first asked for."""
    folder = tmp_path_factory.mktemp("quarantine")
    for name in ("good", "bad"):
        write_data(folder / name / "data", BAD if name == "bad" else ())

    def of(way: str, bad: bool) -> Path:
        root = folder / ("bad" if bad else "good")
        if not (root / way).exists():
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(root)
                assert started("--output-dir", way, "--on-bad-sample", "quarantine", *WAYS[way]) == 0
        return root / way

    return of


@pytest.mark.parametrize("way", TESTED)
def test_a_neighbor_stands_in_and_nothing_else_moves_when_images_are_quarantined(trained, way: str):
    """The run over good data, where the same images are delivered but for the two, is the control."""
    good, bad = (delivered(trained(way, spoiled)) for spoiled in (False, True))
    assert not (trained(way, False) / "quarantine.jsonl").exists()
    assert {CAT_3, DOG_5} <= {sample for batch in good for sample, _ in batch}
    pixels = {
        (epoch, i): digest for epoch in range(3) for batch in good[3 * epoch : 3 * epoch + 3] for i, digest in batch
    }
    for step, (expected, found) in enumerate(zip(good, bad, strict=True)):
        substituted = [{CAT_3: CAT_3 + 1, DOG_5: DOG_5 + 1}.get(sample, sample) for sample, _ in expected]
        assert [sample for sample, _ in found] == substituted
        assert all(digest == pixels[step // 3, sample] for sample, digest in found)  # that image, not another


@pytest.mark.parametrize("way", TESTED)
def test_each_bad_file_is_listed_once_with_its_reason_when_images_are_quarantined(trained, way: str):
    found = listed(trained(way, True))
    assert found.keys() == BAD.keys()
    assert all(reason in found[name] for name, reason in BAD.items())


def test_the_same_images_are_delivered_when_the_cache_is_another(trained):
    ids = [[[i for i, _ in step] for step in delivered(trained(way, True))] for way in ("ram", "off", "disk")]
    assert ids[0] == ids[1] == ids[2]


def test_figures_count_the_good_images_only_and_say_so_when_images_are_quarantined(trained, tmp_path: Path, capsys):
    write_data(tmp_path / "data", BAD)
    for name in ("val/dog/1.png", "test/cat/0.png"):  # the same training, and evaluation data without the two
        (tmp_path / "data" / name).unlink()
    assert started("--output-dir", "run", "--on-bad-sample", "quarantine") == 0
    assert "unreadable" not in capsys.readouterr().out
    found, expected = summary(trained("ram", True)), summary(tmp_path / "run")
    for split, images in (("val", 7), ("test", 5)):
        score, other = found[split]["16px"], expected[split]["16px"]
        assert (score["images"], score["unreadable"]) == (images, 1)
        assert (other["images"], other["unreadable"]) == (images, 0)
        assert score["top1"] == pytest.approx(other["top1"], abs=1e-6)
        assert score["loss"] == pytest.approx(other["loss"], abs=1e-6)


def test_the_log_says_how_many_were_left_out_and_a_resumed_run_ends_alike(trained, tmp_path: Path, capsys):
    """As if it had been stopped after its second epoch."""
    shutil.copytree(trained("ram", True).parent / "data", tmp_path / "data")
    capsys.readouterr()  # of the training that others look at too
    for name in ("whole", "resumed"):
        if name == "resumed":
            shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
            (tmp_path / "resumed" / "summary.json").unlink()
            shutil.rmtree(max((tmp_path / "resumed" / "checkpoints").iterdir()))
        assert started("--output-dir", name, "--on-bad-sample", "quarantine") == 0
        out, err = capsys.readouterr()
        epochs = 3 if name == "whole" else 1
        assert out.count("(1 unreadable left out)") == epochs + 2  # a line an epoch, and val and test at the end
        assert err.count("quarantine ") == (len(BAD) if name == "whole" else 0)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    with (whole / "metrics.csv").open(newline="") as file:
        assert [row["16px/unreadable"] for row in csv.DictReader(file)] == ["1"] * 3
    assert listed(resumed) == listed(whole)
    assert delivered(resumed) == delivered(whole)
    assert [summary(resumed)[part] for part in ("val", "test")] == [summary(whole)[part] for part in ("val", "test")]


def test_the_page_and_the_model_card_say_how_many_were_left_out(trained, tmp_path: Path):
    good, bad = (Path(shutil.copytree(trained("ram", spoiled), tmp_path / str(spoiled))) for spoiled in (False, True))
    page = "Images that could not be read are left out: 1 of validation, 1 of test; quarantine.jsonl has them."
    table = "Images that could not be read are left out: 1 of validation, 1 of test.\n"
    counts = "24 training, 8 validation (7 readable), 6 test (5 readable) images"
    for run in (good, bad):
        assert recipe("export")([str(run), "--formats", "safetensors"]) == 0
        card = (run / "export/README.md").read_text()
        told = (page in (run / "report.html").read_text(), table in card, counts in card)
        assert told == (run == bad,) * 3
    (bad / "summary.json").unlink()  # as while it goes on
    assert recipe("report")([str(bad)]) == 0
    assert "left out: 1 of validation; quarantine.jsonl" in (bad / "report.html").read_text()
    assert recipe("export")([str(bad), "--formats", "safetensors", "--overwrite"]) == 0
    card = (bad / "export/README.md").read_text()
    assert "left out: 1 of validation.\n" in card
    assert "24 training, 8 validation (7 readable) images" in card
