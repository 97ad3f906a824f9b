"""Every part of one's own in one run, from files beside the data: killed, continued bit for bit, evaluated, predicted,
exported. Once with a model that a function makes, once with one that timm knows by name.
"""

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, SLOW, TORCHRUN, recipe, write_folders

HERE = Path(__file__).parent
FILES = ("own_strategy.py", "own_source.py", "own_transform.py", "own_dashboard.py", "own_model.py")
IMPORTS = ("--import", "own_strategy", "own_source", "own_model")
NAMED = (
    *(*IMPORTS, "--data-root", "table:photos/table.csv", "--transform", "own_transform:blocks"),
    *("--strategy", "own_strategy:Alternating", "--strategy-kwargs", "small=16", "large=24"),
    *("--scheduler", "steps", "--log-with", "own_dashboard:Lines", "--select-by", "macro_f1"),
    *("--epochs", "3", "--batch-size", "8", "--num-workers", "1", "--ema-decay", "0.9", "--warmup-epochs", "0"),
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the user's, with images, a table of them, and the parts."""
    root = write_folders(tmp_path / "photos", {"train": 24, "val": 4, "test": 4}, size=(40, 36))
    with (root / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "class", "image"])
        for path in sorted(root.rglob("*.png"), key=str):
            split, name, image = path.relative_to(root).parts
            writer.writerow([split, name, f"{split}/{name}/{image}"])
    for name in FILES:
        shutil.copy(HERE / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "launcher"),
    [
        pytest.param(("--model-from", "own_model:make"), (sys.executable,), marks=SLOW),
        (("--arch", "small_net_of_ones_own"), (sys.executable,)),
        (("--model-from", "own_model:make"), TORCHRUN),
    ],
    ids=["function", "timm's registry", "two processes"],
)
def test_a_run_of_own_parts_is_killed_continued_and_used(
    folder: Path, model: tuple[str, ...], launcher: tuple[str, ...]
):
    script = str(ROOT / "recipes" / "multiscale.py")
    trial = ["--steps", "18", "--kills", "2", "--save-every-steps", "3", "--output-dir", "kept", "--"]
    command = [*launcher, script, *NAMED, *model]
    dashboard = command.index("--log-with")
    del command[dashboard : dashboard + 2]  # the verification sets its own
    assert recipe("verify_resume")([*trial, *command]) == 0

    assert recipe("multiscale")([*NAMED, *model, "--output-dir", "run"]) == 0
    rows = [json.loads(line) for line in (folder / "run" / "rows.jsonl").read_text().splitlines()]
    assert any("quality/best_macro_f1" in row for row in rows)

    opened = (*IMPORTS, *(model if model[0] == "--model-from" else ()))
    assert recipe("evaluate")(["run", *opened, "--split", "test", "--no-amp"]) == 0
    found = json.loads((folder / "run" / "evaluation" / "evaluation.json").read_text())["splits"]["test"]["24px"]
    expected = json.loads((folder / "run" / "summary.json").read_text())["test"]["24px"]
    assert found["macro_f1"] == pytest.approx(expected["macro_f1"])
    assert recipe("predict")(["run", "photos/test", "--output", "rows.csv", *opened]) == 0
    with (folder / "rows.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(list((folder / "photos" / "test").rglob("*.png")))
    assert recipe("export")(["run", "--formats", "safetensors", *opened]) == 0
    assert (folder / "run" / "export" / "model.safetensors").exists()
