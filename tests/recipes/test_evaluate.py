"""recipes/evaluate.py as a user calls it: the run's own figures again, on any data, at any size."""

import csv
import json
import re
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from tests.conftest import TINY, TORCHRUN, Runner, contents, recipe, write_folders, write_image
from toolkit.models.evaluator import Evaluator
from toolkit.runs import saved_predictions
from toolkit.training import device

pytestmark = pytest.mark.usefixtures("elsewhere")


def evaluate(*words: str | Path) -> int:
    return recipe("evaluate")([str(word) for word in words])


def report(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "evaluation.json").read_text())


def said(folder: str, split: str) -> tuple[list[str], np.ndarray]:
    """Names, and the numbers said of each image."""
    with Path(folder, "predictions", f"{split}.csv").open(newline="") as file:
        _, *rows = csv.reader(file)
    return [row[0] for row in rows], np.array([row[1:] for row in rows], dtype=float)


def drawn_words(folder: str) -> set[str]:
    """All text of the plot; nothing in it has a placeholder's color."""
    plot = Path(folder, "evaluation.svg")
    assert "#0101" not in plot.read_text()
    return {element.text or "" for element in ElementTree.parse(plot).iter() if element.tag.endswith("text")}


@pytest.fixture(scope="module")
def whole(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """All that can be asked for, once."""
    folder = str(tmp_path_factory.mktemp("evaluated"))
    known = saved_predictions.read(finished / "predictions", "test")
    assert known is not None
    half = float(np.median(known.table.of("16px").confidence)) + 1e-4  # not at any image's own value
    words = ["--scales", "16,24,32", "--average", "--cascade", "16,32", "--confidence", f"{half:.6f}"]
    assert evaluate(finished, *words, "--output-dir", folder) == 0
    return folder


def test_the_figures_are_those_of_the_run_when_nothing_else_is_asked_for(finished: Path, whole: str):
    found, summary = report(whole), json.loads((finished / "summary.json").read_text())
    assert found["schema"] == 2  # 1 had `borrowed` for `norm_from`
    assert found["splits"].keys() == {"val", "test"}
    for split, figures in found["splits"].items():
        assert figures.keys() == {"16px", "24px", "32px", "16+24+32px"}
        for name in ("16px", "32px"):
            expected = summary[split][name]
            for figure in ("top1", "top5", "images"):
                assert figures[name][figure] == expected[figure]
            assert figures[name]["loss"] == pytest.approx(expected["loss"], abs=1e-5)
            assert figures[name].keys() - {"intervals"} == expected.keys()
            assert figures[name]["worst_class"] == expected["worst_class"]
        assert figures["24px"]["norm_from"] == 32
        assert 0 <= figures["32px"]["ece"] <= 1


def test_each_size_has_its_cost_when_a_run_is_evaluated(whole: str):
    costs = report(whole)["costs"]
    gmacs = {name: cost["gmacs"] for name, cost in costs.items()}
    assert gmacs["16+24+32px"] == pytest.approx(gmacs["16px"] + gmacs["24px"] + gmacs["32px"])
    assert gmacs["16px"] < gmacs["24px"] < gmacs["32px"]
    for cost in costs.values():
        assert 0 < cost["latency_p50_ms"] <= cost["latency_p95_ms"]
        assert cost["images_per_s"] > 0
        assert cost["peak_memory_gb"] > 0


def test_a_cascade_is_worth_what_its_predictions_say_when_they_are_counted_by_hand(whole: str):
    found = report(whole)
    _, numbers = said(whole, "test")  # label, then class, confidence, truth at each of 16, 24, 32 and on average
    labels, small, sure, large = numbers[:, 0], numbers[:, 1], numbers[:, 2], numbers[:, 7]
    enough = sure >= found["cascade"]["confidence"]
    climb = found["cascade"]["splits"]["test"]
    assert climb["top1"] == pytest.approx(100 * np.mean(np.where(enough, small, large) == labels))
    assert climb["alone_top1"] == found["splits"]["test"]["32px"]["top1"]
    assert climb["shares"] == {"16": pytest.approx(enough.mean()), "32": pytest.approx(1 - enough.mean())}
    low, high = (found["costs"][name]["gmacs"] for name in ("16px", "32px"))
    assert climb["gmacs"] == pytest.approx(low + (1 - enough.mean()) * high)
    assert climb["times_less_compute"] == pytest.approx(high / climb["gmacs"])
    assert 0 < enough.mean() < 1  # control: both have the word


def test_what_is_left_can_be_read_by_people_when_a_run_was_evaluated(whole: str):
    text = Path(whole, "evaluation.txt").read_text()
    for words in (
        "latency p50 ms",
        "top-1 ",
        "ECE",
        "worst class ",
        "95% intervals of 1000 bootstrap samples",
        "normalization of 32 px",
        "cascade on test, confidence 0.",
    ):
        assert words in text
    told = drawn_words(whole)
    assert {"trained size", "normalization of the nearest size", "validation", "test"} <= told
    assert {"Top-1, % against image size", "Latency of one image alone, median, ms", "image size, px"} <= told
    assert "averaged 16+24+32px, test" in told
    assert "recalibrated" not in told


@pytest.mark.slow
def test_two_processes_say_the_same_of_every_image(run: Runner, finished: Path, whole: str, tmp_path: Path):
    words = ["--scales", "16,24,32", "--average", "--batch-size", "7", "--output-dir", "two"]
    done = run("recipes/evaluate.py", str(finished), *words, launcher=TORCHRUN)
    assert done.returncode == 0, done.stderr
    assert "2 process(es)" in done.stdout
    one, two = report(whole)["splits"], report("two")["splits"]
    for split, figures in one.items():
        for name, score in figures.items():
            close = {"loss": pytest.approx(score["loss"], abs=1e-5), "ece": two_ece(score)}
            intervals = score["intervals"]
            close |= {"intervals": {metric: pytest.approx(of, abs=1e-3) for metric, of in intervals.items()}}
            assert two[split][name] == {**score, **close}
        names, numbers = said(whole, split)
        assert said("two", split)[0] == names
        np.testing.assert_allclose(said("two", split)[1], numbers, atol=1e-5)


def two_ece(score: dict[str, Any]) -> Any:
    """A confidence at the border of two bins may fall into either."""
    return pytest.approx(score["ece"], abs=1e-4)


def test_a_size_without_own_normalization_gets_it_when_asked_for(capsys, finished: Path, whole: str):
    words = ["--scales", "24,32", "--recalibrate", "--split", "test", "--output-dir", "out"]
    assert evaluate(finished, *words) == 0
    assert "statistics of 24 px estimated on 256 training images" in capsys.readouterr().out
    found, before = report("out"), report(whole)["splits"]["test"]
    assert found["recalibrated"] == {"sizes": [24], "images": 256}
    assert {"trained size", "recalibrated"} <= drawn_words("out")
    assert found["splits"].keys() == {"test"}
    assert found["splits"]["test"]["32px"] == before["32px"]  # a size with its own is as it was
    assert found["splits"]["test"]["24px"]["norm_from"] is None
    assert found["splits"]["test"]["24px"]["loss"] != before["24px"]["loss"]


@pytest.mark.slow
def test_a_cascade_ends_with_the_command_that_predicts_so_when_it_is_reported(
    capsys, finished: Path, data: Path, tmp_path: Path
):
    run = Path(shutil.copytree(finished, tmp_path / "a run", ignore=shutil.ignore_patterns("checkpoints")))
    words = [run, "--cascade", "24,32", "--confidence", "0.9999999", "--flip", "--split", "val", "--output-dir", "out"]
    assert evaluate(*words) == 0
    *_, more, _, line = Path("out", "evaluation.txt").read_text().splitlines()
    assert re.search(r"an image: [1-9][\d.]*x more than 32 px alone$", more)
    command = shlex.split(line)
    assert command[:3] == ["predict", "toolkit", "predict"]
    assert command[3:] == [
        str(run),
        "PATH",
        "--cascade",
        "24,32",
        "--confidence",
        "0.9999999",
        "--flip",
    ]
    capsys.readouterr()
    there = [str(data / "val") if word == "PATH" else word for word in command[3:]]
    assert recipe("predict")([*there, "--output", "rows.csv"]) == 0
    shares = report("out")["cascade"]["splits"]["val"]["shares"]
    told = "  ".join(f"{size} px {100 * share:.1f}%" for size, share in shares.items())
    assert f"exits at {told}: " in capsys.readouterr().err
    assert evaluate(*words, "--recalibrate") == 0
    assert Path("out", "evaluation.txt").read_text().splitlines()[-1] == (
        "  predict     would differ: the statistics of 24 px that were estimated here are in no run"
    )


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose sizes share one set of statistics, trained in bfloat16 because the launcher said so."""
    folder = tmp_path_factory.mktemp("shared") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        words = ["--progressive", "--scales", "20,32", "--epochs", "2", "--output-dir", str(folder)]
        assert recipe("multiscale")([*TINY, *words]) == 0
    return folder


def test_every_size_but_the_last_gets_statistics_when_a_progressive_run_shared_them(capsys, shared: Path):
    for words in ([], ["--recalibrate"]):
        assert evaluate(shared, "--scales", "20,24,32", *words, "--output-dir", "".join(["out", *words])) == 0
    assert "statistics of 20, 24 px estimated on" in capsys.readouterr().out
    before, after = (report(folder)["splits"]["test"] for folder in ("out", "out--recalibrate"))
    assert {size for size in before if before[size]["loss"] != after[size]["loss"]} == {"20px", "24px"}
    assert evaluate(shared, "--scales", "32", "--recalibrate", "--output-dir", "out") == 2
    assert "--recalibrate would be ignored: the statistics are those of 32 px" in capsys.readouterr().err


def test_the_precision_is_that_of_training_when_the_device_has_another_and_the_launcher_wants_one(
    shared: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    copied = Path(shutil.copytree(shared, "copied", ignore=shutil.ignore_patterns("checkpoints")))
    summary = json.loads((copied / "summary.json").read_text())
    (copied / "summary.json").write_text(json.dumps({**summary, "precision": "fp16"}))
    spoken = {"bf16": "bfloat16", "fp16": "float16"}
    for run, trained_in in ((shared, "bf16"), (copied, "fp16")):  # a checkpoint tells; the summary does
        assert evaluate(run, "--scales", "20", "--split", "val", "--output-dir", "out") == 0
        expected = spoken[trained_in] if trained_in in device.precisions() else "float32"
        assert report("out")["machine"].endswith(f" {expected}")


def test_the_confidence_is_chosen_on_val_when_none_is_given(capsys, finished: Path):
    assert evaluate(finished, "--cascade", "16,32", "--max-loss", "100", "--split", "test", "--output-dir", "out") == 0
    found = report("out")["cascade"]
    assert (found["tuned_on"], found["splits"].keys()) == ("val", {"test"})
    assert found["splits"]["test"]["shares"]["16"] == 1  # any loss is allowed: the smallest size alone is cheapest
    assert "confidence 0.005, chosen on val" in capsys.readouterr().out


def test_the_mirrored_image_counts_and_costs_when_asked_for(finished: Path, whole: str):
    assert evaluate(finished, "--scales", "16", "--flip", "--split", "test", "--output-dir", "out") == 0
    found = report("out")
    assert found["costs"]["16px"]["gmacs"] == pytest.approx(2 * report(whole)["costs"]["16px"]["gmacs"])
    assert found["splits"]["test"]["16px"]["loss"] != report(whole)["splits"]["test"]["16px"]["loss"]


def test_other_data_is_evaluated_when_it_has_the_same_classes(capsys, finished: Path, data: Path, whole: str):
    words = ["--scales", "32", "--output-dir", "out"]
    assert evaluate(finished, "--data-root", data, "--split", "test", *words) == 0
    assert report("out")["splits"]["test"]["32px"] == report(whole)["splits"]["test"]["32px"]
    assert evaluate(finished, "--data-root", data / "val", *words) == 0  # a folder of class folders
    assert report("out")["splits"]["val"]["32px"] == report(whole)["splits"]["val"]["32px"]
    some = "so$me_{dir$"  # which a plot must not take for a formula
    Path(some, "disc-checks").mkdir(parents=True)
    write_image(Path(some, "disc-checks/a.png"))
    Path(some, "disc-checks/bad.png").write_text("not an image")
    assert evaluate(finished, "--data-root", some, *words) == 0
    score = report("out")["splits"][some]["32px"]
    assert (score["images"], score["unreadable"]) == (1, 1)
    assert json.loads(Path("out/unreadable.jsonl").read_text())["name"] == "disc-checks/bad.png"
    assert f"{some}, 1 images, 1 unreadable left out" in capsys.readouterr().out


def test_the_column_of_labels_can_be_chosen_when_other_data_has_several(capsys, finished: Path, data: Path):
    listed = sorted((data / "test").glob("*/*.jpg"))
    rows = "".join(f"{i}.jpg,{i},{path.parent.name}\n" for i, path in enumerate(listed))
    Path("listed").mkdir()
    for i, path in enumerate(listed):
        shutil.copy(path, f"listed/{i}.jpg")
    Path("listed/train.csv").write_text(f"file,class,category\n{rows}")
    words = ["--data-root", "listed", "--split", "train", "--output-dir", "out"]
    assert evaluate(finished, *words) == 2
    assert "--label-column names the one of labels: class or category" in capsys.readouterr().err
    assert evaluate(finished, *words, "--label-column", "category") == 0
    assert report("out")["splits"]["train"]["32px"]["images"] == len(listed)


def test_nothing_of_an_earlier_evaluation_is_left_when_another_is_written_there(finished: Path):
    Path("out/predictions").mkdir(parents=True)
    Path("out/predictions/mine.csv").write_text("all my work")
    for split in ("val", "test"):
        assert evaluate(finished, "--scales", "16", "--split", split, "--output-dir", "out") == 0
    names = sorted(path.name for path in Path("out/predictions").rglob("*.csv"))
    assert names == ["mine.csv", "test.csv", "test.csv"]
    assert [path.parent.name for path in Path("out").rglob("*.jpg")] == ["test-hardest"] * 24


@pytest.mark.parametrize("wrong", [["--data-root", "gone"], ["--split", "other"], ["--scales", "16", "--recalibrate"]])
def test_an_earlier_evaluation_is_left_as_it_is_when_another_is_refused(finished: Path, wrong: list[str]):
    assert evaluate(finished, "--scales", "16", "--output-dir", "out") == 0
    Path("out/unreadable.jsonl").write_text('{"name": "a.png"}\n')
    before = contents(Path("out"))
    assert evaluate(finished, "--output-dir", "out", *wrong) == 2
    assert contents(Path("out")) == before


def test_an_evaluation_ends_in_one_line_when_it_is_stopped_by_ctrl_c(finished: Path, monkeypatch, capsys):
    assert evaluate(finished, "--scales", "16", "--split", "test", "--output-dir", "out") == 0
    before, score = contents(Path("out")), Evaluator.evaluate

    def stopped(*words: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return score(*words)

    monkeypatch.setattr(Evaluator, "evaluate", stopped)
    capsys.readouterr()
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell without a terminal may have it ignored
    try:
        assert evaluate(finished, "--scales", "16", "--output-dir", "out") == 130
    finally:
        signal.signal(signal.SIGINT, handler)
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"
    assert contents(Path("out")) == before


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    """A run on a folder `photos` without validation images, a tenth of which it held out."""
    write_folders(tmp_path / "photos", {"train": 20})
    words = ["--data-root", "photos", "--arch", "test_resnet", "--img-size", "24", "--batch-size", "12"]
    assert recipe("single_scale")([*words, "--epochs", "1", "--log-with", "none", "--output-dir", "run"]) == 0
    return tmp_path / "run"


def test_val_is_refused_when_images_were_added_as_it_would_hold_trained_ones(capsys, held_out: Path):
    write_image(Path("photos/train/cat/00.png"), seed=77)
    told = "36 train images, now 37; as many val images, but other names, labels, sizes or order"
    for words in ((), ("--cascade", "16,24", "--data-root", "photos", "--split", "train")):
        capsys.readouterr()
        assert evaluate(held_out, *words, "--output-dir", "out") == 2
        err = capsys.readouterr().err
        assert told in err
        assert len(err.splitlines()) == 1
    assert evaluate(held_out, "--data-root", "photos", "--split", "train", "--output-dir", "out") == 0  # as other data
    assert report("out")["splits"]["train"]["24px"]["images"] == 41


def test_the_runs_own_val_is_found_when_its_data_moved(capsys, held_out: Path):
    assert evaluate(held_out, "--output-dir", "before") == 0
    Path("photos").rename("moved")
    assert evaluate(held_out, "--output-dir", "out") == 2
    assert f"photos: the data of {held_out} is not there: --data-root says where it is now" in capsys.readouterr().err
    assert evaluate(held_out, "--data-root", "moved", "--recalibrate", "--scales", "20,24", "--output-dir", "out") == 0
    found, before = (report(folder)["splits"]["val"]["24px"] for folder in ("out", "before"))
    assert found == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "nowhere: not a run directory: there is no config.yaml in it"),
        (["RUN", "--scales", "a"], "--scales a"),
        (["RUN", "--scales", "32,16"], "--scales 32,16: sizes must be positive and ascending"),
        (["RUN", "--scales", "32", "--average"], "--average would be ignored with one size"),
        (["RUN", "--scales", "32", "--cascade", "16,32", "--average"], "--average would be ignored with one size"),
        (["RUN", "--recalibrate"], "--recalibrate would be ignored: the statistics are those of 16, 32 px"),
        (["RUN", "--cascade", "32"], "--cascade 32: needs two sizes or more"),
        (["RUN", "--cascade", "32,16"], "--cascade 32,16: sizes must be positive and ascending"),
        (["RUN", "--confidence", "0.5"], "--confidence 0.5 would be ignored: it needs --cascade"),
        (["RUN", "--max-loss", "0.5"], "--max-loss 0.5 would be ignored"),
        (["RUN", "--data-root", "photos"], "'cat' is no class of the run"),
        (["RUN", "--data-root", "photos/val"], "'cat' is no class of the run"),
        (["RUN", "--data-root", "gone"], "gone: no such folder"),
        (["RUN", "--label-column", "kind"], "--label-column kind would be ignored: it needs --data-root"),
        (["RUN", "--split", "dev"], "--split dev"),
        (["RUN", "--output-dir", "RUN"], "is a run, whose own predictions/ would be overwritten"),
        (["RUN", "--output-dir", "photos/odd"], "photos/odd/predictions"),
        (["RUN", "--output-dir", "photos/file"], "--output-dir photos/file: nothing can be written there"),
    ],
)
def test_a_command_is_refused_in_one_line_when_it_cannot_work(
    capsys, finished: Path, tmp_path: Path, words: list[str], told: str
):
    write_folders(tmp_path / "photos", {"train": 1, "val": 1})
    (tmp_path / "photos/file").write_text("")
    (tmp_path / "photos/odd").mkdir()
    (tmp_path / "photos/odd/predictions").write_text("")
    where = [] if "--output-dir" in words else ["--output-dir", "out"]
    assert evaluate(*(finished if word == "RUN" else word for word in words), *where) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert told in err
    assert len(err.splitlines()) == 1
