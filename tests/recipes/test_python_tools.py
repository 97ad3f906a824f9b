"""Every tool from Python: plain arguments, results that read well, errors of ours, nothing of the command line."""

import csv
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import toolkit
from tests.conftest import recipe
from toolkit import InputError, Settings, SingleScale, compare, evaluate, export, load, plan, predict, report, scan

TOOLS = ("train", "evaluate", "predict", "export", "scan", "report", "benchmark", "plan", "load")
IMPORTS = f"""
import sys
from toolkit import {", ".join(TOOLS)}
heavy = [name for name in ("tyro", "toolkit.config.cli", "toolkit.commands") if name in sys.modules]
sys.exit(", ".join(heavy) or 0)
"""


def test_all_tools_are_named_by_the_package():
    assert {*TOOLS} <= {*dir(toolkit)}
    assert all(callable(getattr(toolkit, name)) for name in TOOLS)


def test_no_tool_imports_the_command_line():
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(scope="module")
def images(data: Path) -> list[Path]:
    """Twenty test images of the run's data."""
    return sorted((data / "test").rglob("*.jpg"))[:20]


def test_results_read_as_the_commands_print_them_and_hold_the_figures(finished: Path, tmp_path: Path, capsys):
    result = evaluate(str(finished), split="val", output_dir=tmp_path / "evaluation")
    assert capsys.readouterr().out == ""  # the caller decides what is printed
    assert repr(result) == (tmp_path / "evaluation/evaluation.txt").read_text().rstrip("\n")
    assert result._repr_html_().startswith("<pre>run  ")
    assert "EvaluationReport" not in repr(result)
    assert result.evaluations["val"].scores["32px"].images == 50

    page = report(finished)
    assert page.path == finished / "report.html"
    assert repr(page) == f"wrote     {page.path}"


def test_a_scan_from_python_says_what_it_found(data: Path, tmp_path: Path):
    result = scan(str(data), output_dir=tmp_path / "scan", contact_sheets=False)
    assert repr(result) == (tmp_path / "scan/scan.txt").read_text().rstrip("\n")
    assert result.serious() == []


def test_an_export_says_what_was_written(finished: Path, tmp_path: Path):
    result = export(str(finished), formats=("safetensors",), output_dir=tmp_path / "export")
    assert repr(result).startswith(f"export      {tmp_path / 'export'}: 32 px, ")
    assert "safetensors logits differ by " in repr(result)
    assert result.differences["safetensors"] < 1e-4


def test_predictions_come_as_rows_where_no_file_is_named(finished: Path, images: list[Path], tmp_path: Path, capsys):
    result = predict(finished, [str(path) for path in images])
    assert capsys.readouterr().out == ""
    assert [row.path for row in result.rows] == [str(path) for path in images]
    output = tmp_path / "rows.csv"
    assert recipe("predict")([str(finished), *map(str, images), "--output", str(output)]) == 0
    with output.open(newline="") as file:
        told = [(row["path"], row["label"], row["size"]) for row in csv.DictReader(file)]
    assert [(row.path, row.label, row.size) for row in result.rows] == told
    assert repr(result) == "images    20 predicted"


@pytest.mark.parametrize("size", [None, 16])
def test_a_predictor_says_what_prediction_says(finished: Path, images: list[Path], size: int | None):
    predictor = load(finished, size=size, device="cpu")
    probabilities = predictor(images)
    assert probabilities.shape == (20, 10)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(20))
    rows = predict(finished, [str(path) for path in images], scales=size and (size,), amp=False).rows
    for row, expected in zip(probabilities, rows, strict=True):
        assert predictor.classes[int(row.argmax())] == expected.label
        assert float(row.max()) == pytest.approx(expected.confidence, abs=1e-5)
    assert repr(predictor) == f"predictor of {finished} at {size or 32} px on cpu; 10 classes: " + ", ".join(
        [*predictor.classes[:5], "..."]
    )


def test_a_predictor_takes_an_image_in_any_form(finished: Path, images: list[Path]):
    predictor = load(finished, device="cpu")
    with Image.open(images[0]) as image:
        forms = [images[0], str(images[0]), images[0].read_bytes(), image.copy(), np.asarray(image)]
    expected = predictor.transform(images[0])
    assert expected.shape == (3, 32, 32)
    for form in forms:
        torch.testing.assert_close(predictor.transform(form), expected, atol=0.02, rtol=0)  # PIL decodes a level apart
        assert predictor(form).shape == (1, 10)
    assert predictor([]).shape == (0, 10)
    logits = predictor.model(expected[None])
    torch.testing.assert_close(logits.softmax(1), predictor(images[0]))


def test_a_predictor_turns_an_image_as_its_exif_says(finished: Path, images: list[Path], tmp_path: Path):
    with Image.open(images[0]) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(tmp_path / "turned.png", exif=exif)
    predictor = load(finished, device="cpu")
    with Image.open(tmp_path / "turned.png") as turned:
        torch.testing.assert_close(predictor.transform(turned), predictor.transform(tmp_path / "turned.png"))


@pytest.mark.parametrize(
    ("image", "told"),
    [
        ("nowhere.jpg", "nowhere.jpg cannot be read as an image: .*No such file"),
        (b"no image", "a bytes cannot be read as an image: "),
        (np.zeros((4, 4, 3)), r"a ndarray of shape \(4, 4, 3\) and type float64 is no image: give a path"),
        (7, "a int is no image: give a path, bytes, a PIL image or an H x W x 3 uint8 array"),
    ],
)
def test_a_predictor_refuses_what_is_no_image(finished: Path, image: object, told: str):
    with pytest.raises(InputError, match=f"^{told}"):
        load(finished, device="cpu")(image)


def test_errors_are_ours_with_one_line(finished: Path, tmp_path: Path):
    for call in (
        lambda: load(tmp_path),
        lambda: evaluate(tmp_path),
        lambda: predict(tmp_path, ["a.png"]),
        lambda: export(tmp_path),
        lambda: report(tmp_path),
        lambda: scan(str(tmp_path / "nowhere")),
        lambda: load(finished, size=17),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda run: predict(run, "a.png", num_workers=-1), "num_workers -1: must be 0 or more"),
        (lambda run: predict(run, "a.png", batch_size=0), "batch_size 0: must be above 0"),
        (lambda run: evaluate(run, scales="a"), "scales a: must be a whole number"),
        (lambda run: evaluate(run, split="all"), "split all: must be one of 'train', 'val' or 'test'"),
        (lambda run: export(run, formats=["torch"]), "formats torch: must be one of 'safetensors', 'onnx' or 'pt2'"),
        (lambda run: export(run, onnx_input="int8"), "onnx_input int8: must be one of 'float32' or 'uint8'"),
        (lambda run: export(run, tolerance=-1), "tolerance -1: must be 0 or more"),
        (lambda run: report(run, errors_on="all"), "errors_on all: must be one of 'val' or 'test'"),
        (lambda run: compare(run, run, split="all"), "split all: must be one of 'train', 'val' or 'test'"),
        (lambda run: load(run, size=0), "size 0: this run's sizes are 16, 32 px"),
        (lambda run: load(run, device="gpu"), "device gpu: "),
        (lambda run: plan(Settings(), SingleScale(16), goal="best"), "goal best: must be one of one-size, every-size"),
    ],
)
def test_an_argument_is_checked_as_its_flag_is(finished: Path, call: Callable[[Path], object], told: str):
    with pytest.raises(InputError, match=f"^{re.escape(told)}"):
        call(finished)


def test_one_path_is_no_list_of_letters(finished: Path, images: list[Path]):
    for one in (str(images[0]), images[0]):
        assert [row.path for row in predict(finished, one).rows] == [str(images[0])]
    assert len(predict(finished, images[0].parent).rows) > 1


def test_tools_say_what_they_take_and_give():
    for tool in (evaluate, predict, export, scan, report, load, plan):
        signature = inspect.signature(tool)
        assert signature.return_annotation is not inspect.Signature.empty
        assert inspect.getdoc(tool)
