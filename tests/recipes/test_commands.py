"""The README's commands as a user types them: real processes, real launchers, small counts."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import ACCELERATE, Runner, write_folders

FEW = ("--synthetic-count", "60", "--batch-size", "12")
THREE = ("--scales", "64,112,224")
DEAD_PROXY = "http://127.0.0.1:9"  # nobody listens there: any attempt to reach a network fails


def summary_of(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def only_run(folder: Path, pattern: str) -> Path:
    """The one run under `runs/`, named as promised."""
    found = list((folder / "runs").iterdir())
    assert len(found) == 1
    assert re.fullmatch(pattern + r"-\d{8}-\d{6}", found[0].name)
    return found[0]


@pytest.mark.slow
def test_simultaneous_trains_and_wandb_goes_offline_when_there_is_neither_key_nor_network(run: Runner, tmp_path: Path):
    home = tmp_path / "home"
    home.mkdir()
    alone = {"HOME": str(home), "WANDB_API_KEY": "", "HTTPS_PROXY": DEAD_PROXY, "HTTP_PROXY": DEAD_PROXY}
    words = (*FEW, *THREE, "--consistency-weight", "0.1", "--epochs", "2")
    done = run("recipes/multiscale.py", *words, launcher=ACCELERATE, **alone)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "wandb" not in done.stderr
    assert "simultaneous 64/112/224 px, kl consistency x 0.1" in done.stdout
    folder = only_run(tmp_path, "multiscale-test_resnet")
    told = [line for line in done.stdout.splitlines() if "wandb" in line and not line.startswith("wrote")]
    assert len(told) == 1
    assert "offline: no API key was found" in told[0]

    offline = list((folder / "wandb").glob("offline-run-*"))
    assert len(offline) == 1
    reader = (str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(offline[0]))
    records = [json.loads(line) for line in subprocess.check_output(reader, text=True, cwd=tmp_path).splitlines()]
    defined = [record["metric"] for record in records if record["type"] == "metric"]
    assert {metric["name"] for metric in defined if "name" in metric} == {"global_step", "epoch"}  # hidden
    axes = {metric["glob_name"]: metric["step_metric"] for metric in defined if "glob_name" in metric}
    assert axes == {"*": "global_step", **{f"quality/{size}px/*": "epoch" for size in (64, 112, 224)}}
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [(row["global_step"], row["epoch"]) for row in history if "epoch" in row] == [(5, 1), (10, 2), (10, 2)]
    summary = {
        k: v for record in records if record["type"] == "summary" for k, v in record["summary"]["update"].items()
    }
    final = summary_of(folder)
    for size in ("64px", "112px", "224px"):
        assert summary[f"quality/best/{size}/top1"] == pytest.approx(final["val"][size]["top1"])
        assert summary[f"quality/test/{size}/top1"] == pytest.approx(final["test"][size]["top1"])
    assert set(final["test"]) == {"64px", "112px", "224px"}


@pytest.mark.slow
def test_progressive_goes_through_its_scales_and_tensorboard_has_the_curves_when_asked_for(run: Runner, tmp_path: Path):
    words = (*FEW, *THREE, "--progressive", "--scale-epochs", "2", "--epochs", "6", "--log-with", "tensorboard")
    done = run("recipes/multiscale.py", *words, launcher=ACCELERATE)
    assert done.returncode == 0, done.stderr
    folder = only_run(tmp_path, "multiscale-test_resnet")
    table = rows(folder)
    assert [row["sizes"] for row in table] == ["64", "64", "112", "112", "224", "224"]
    assert [row["phase"] for row in table] == ["0", "0", "1", "1", "2", "2"]
    assert summary_of(folder)["exit_reason"] == "done"

    events = EventAccumulator(str(next(folder.rglob("events.out.tfevents.*")).parent))
    events.Reload()
    quality = {"quality/train_loss", "quality/224px/top1", "quality/64px/top1", "quality/best/224px/top1"}
    assert quality | {"optimization/lr"} <= set(events.Tags()["scalars"])
    curve = events.Scalars("quality/train_loss")
    assert [point.step for point in curve] == [5, 10, 15, 20, 25, 30]
    assert [point.value for point in curve] == pytest.approx([float(row["train_loss"]) for row in table], rel=1e-6)
    whole_panel = [point.step for point in events.Scalars("quality/64px/top1")]
    assert whole_panel == [10, 20, 30]  # at the ends of phases


@pytest.mark.slow
def test_every_scale_is_measured_and_the_run_follows_when_a_benchmark_is_asked_for(run: Runner, tmp_path: Path):
    flags = ("--amp", "--cloud", "aws", "--gradient-clip", "1.0", "--benchmark")
    small = ("--scales", "20,32")
    words = (*FEW, *small, "--progressive", *flags, "--epochs", "2", "--log-with", "none")
    done = run("recipes/multiscale.py", *words, launcher=ACCELERATE)
    assert done.returncode == 0, done.stderr
    table = [line.split() for line in done.stdout.splitlines() if re.match(r"\s+\d+ +(float32|bf16|fp16) ", line)]
    assert [line[0] for line in table if line[1] == "float32"] == ["20", "32"]
    folder = only_run(tmp_path, "multiscale-test_resnet")
    cases = json.loads((folder / "benchmark.json").read_text())["cases"]
    assert [["+".join(map(str, case["sizes"])), case["precision"]] for case in cases] == [line[:2] for line in table]
    for case in cases:
        assert case["images_per_s"] * case["step_p50_ms"] / 1000 == pytest.approx(12)
        assert case["peak_memory_gb"] > 0
        assert case["verdict"] in done.stdout
    summary = summary_of(folder)
    assert summary["exit_reason"] == "done"
    assert summary["cloud"].split()[0] == "aws"
    assert summary["precision"] in ("bf16", "fp16", "no")
    plan = done.stdout.splitlines()
    assert sum("(--amp)" in line for line in plan) == 1  # told once
    assert sum("gradient norm clipped at 1" in line for line in plan) == 1


@pytest.mark.slow
def test_single_scale_trains_on_ones_own_folder_when_it_is_given(run: Runner, tmp_path: Path):
    write_folders(tmp_path / "photos", {"train": 10, "test": 3})
    words = ("--arch", "resnet18", "--img-size", "64", "--amp", "--cloud", "gcp", "--data-root", "photos")
    few = ("--batch-size", "6", "--epochs", "2", "--log-with", "none")
    done = run("recipes/single_scale.py", *words, *few, launcher=ACCELERATE)
    assert done.returncode == 0, done.stderr
    folder = only_run(tmp_path, "single_scale-resnet18")
    summary = summary_of(folder)
    assert (summary["cloud"], summary["val"]["64px"]["images"], summary["test"]["64px"]["images"]) == ("gcp", 2, 6)
    assert json.loads((folder / "class_map.json").read_text()) == {"0": "cat", "1": "dog"}


def test_a_ramp_trains_when_plain_python_starts_the_recipe(run: Runner, tmp_path: Path):
    words = (*FEW, "--scales", "16,32", "--progressive", "--ramp", "--epochs", "10", "--log-with", "none")
    done = run("recipes/multiscale.py", *words, "--output-dir", "out")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no warning of any library either
    sizes = [int(row["sizes"]) for row in rows(tmp_path / "out")]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (16, 32)
    assert set(sizes) & {20, 24, 28}
    assert "progressive ramp 16 -> 32 px" in done.stdout


@pytest.mark.slow
def test_the_toolkit_trains_from_python_when_imported(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "import sys\n"
        "from toolkit import train, Settings, Progressive\n"
        "assert 'torch' in sys.modules\n"
        "settings = Settings(synthetic_count=60, batch_size=12, epochs=4, log_with='none', output_dir='out')\n"
        "summary = train(settings, Progressive(scales=(16, 24, 32), scale_epochs=(1,)))\n"
        "print([phase for phase in summary['test']], summary['exit_reason'])\n"
    )
    done = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['16px', '24px', '32px'] done"
    assert [row["sizes"] for row in rows(tmp_path / "out")] == ["16", "24", "32", "32"]


def test_torch_is_not_imported_when_only_the_package_is():
    code = "import sys, toolkit; assert 'torch' not in sys.modules; toolkit.Settings; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


def test_the_exit_code_is_2_when_a_process_is_given_a_wrong_flag(run: Runner, tmp_path: Path):
    done = run("recipes/multiscale.py", "--epohcs", "3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: there is no flag --epohcs; did you mean --epochs?\n"
    assert list(tmp_path.iterdir()) == []
