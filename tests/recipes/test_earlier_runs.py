"""Runs that an earlier version made, kept as files: the finished one is still of use, the unfinished one is continued.

tests/fixtures/runs-8909503 holds both, as commit 8909503 left them (but for report.html and some thumbnails): 24 and
32 px on the built-in data, a moving average, private normalization, predictions with its column names.
"""

import csv
import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT, recipe, write_image

pytestmark = pytest.mark.pages
EARLIER = ROOT / "tests" / "fixtures" / "runs-8909503"


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    return shutil.copytree(EARLIER / "finished", tmp_path / "finished")


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def test_evaluation_says_of_an_earlier_run_what_that_run_said(finished: Path):
    assert recipe("evaluate")([str(finished), "--no-amp"]) == 0
    found = json.loads((finished / "evaluation" / "evaluation.json").read_text())
    for split in ("val", "test"):
        now, then = found["splits"][split], summary(finished)[split]
        assert {name: score["top1"] for name, score in now.items()} == {n: score["top1"] for n, score in then.items()}


def test_an_earlier_run_predicts(finished: Path, tmp_path: Path):
    images = [str(write_image(tmp_path / f"{seed}.png", seed=seed)) for seed in range(3)]
    assert recipe("predict")([str(finished), *images, "--output", str(tmp_path / "rows.csv")]) == 0
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == images


def test_an_earlier_run_is_exported(finished: Path):
    assert recipe("export")([str(finished), "--formats", "safetensors"]) == 0
    assert (finished / "export" / "model.safetensors").stat().st_size > 0


def test_the_page_of_an_earlier_run_shows_its_predictions(finished: Path):
    assert recipe("report")([str(finished)]) == 0
    page = (finished / "report.html").read_text()
    assert f"{summary(finished)['val']['32px']['top1']:.1f}" in page
    assert "calibration" in page.lower()


def test_an_earlier_unfinished_run_is_continued(tmp_path: Path):
    run = shutil.copytree(EARLIER / "unfinished", tmp_path / "unfinished")
    assert recipe("multiscale")(["--config", str(run / "config.yaml"), "--output-dir", str(run)]) == 0
    assert summary(run)["exit_reason"] == "done"
    assert summary(run)["steps"] == 10
    with (run / "metrics.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1"]
    steps = [json.loads(line)["step"] for line in (run / "samples.jsonl").read_text().splitlines()]
    assert steps == list(range(10))
