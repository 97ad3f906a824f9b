"""The benchmark recipe, in this process: what it measures, and what it says bounds a run."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import recipe
from toolkit import Settings, SingleScale, device, roofline
from toolkit.benchmark import benchmark
from toolkit.data.jobs import Batch, TrainJob
from toolkit.models import plan_model

SMALL = ("--scales", "16,24", "--batch-sizes", "4,8", "--precisions", "float32", "--steps", "1")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("benchmark") / "out.json"
    assert recipe("benchmark")((*SMALL, "--output", str(path))) == 0
    return json.loads(path.read_text())


def test_each_scale_and_all_in_one_step_are_measured_when_batch_sizes_are_given(measured: dict[str, Any]):
    found = [(case["sizes"], case["batch_size"], case["precision"]) for case in measured["cases"]]
    sizes = ([16], [24], [16, 24])
    assert found == [(s, batch_size, "float32") for s in sizes for batch_size in (4, 8)]
    for case in measured["cases"]:
        assert case["images_per_s"] == pytest.approx(1000 * case["batch_size"] / case["step_p50_ms"])
        assert case["step_p50_ms"] <= case["step_p95_ms"]
        assert 0.05 < case["peak_memory_gb"] < 20
        assert case["loader_images_per_s"] > 0
        assert 0 < case["share_of_peak"] < 1


def test_operations_are_those_of_three_forward_passes_when_counted_by_image(measured: dict[str, Any]):
    gmacs = plan_model(Settings(), 10, (16, 24)).gmacs
    for case in measured["cases"]:
        macs = sum(gmacs[size] for size in case["sizes"])
        assert case["gflop"] == pytest.approx(2 * 3 * macs * case["batch_size"])
        reached = measured["ceilings"]["float32"]["tflops"]
        assert case["arithmetic_ms"] == pytest.approx(case["gflop"] / reached)


def test_a_tiny_step_is_bound_by_launching_when_it_has_next_to_no_arithmetic(measured: dict[str, Any]):
    case = measured["cases"][0]
    assert case["bound"] == "launch"
    assert case["fixed_share"] > 0.1
    assert "--batch-size above 4" in case["verdict"]


@pytest.mark.parametrize("delay_s", [1.0, 0.0])
def test_the_loader_is_told_as_the_bound_when_it_is_slower_than_training(
    monkeypatch: pytest.MonkeyPatch, delay_s: float
):
    close = TrainJob.close

    def slow(job: TrainJob, *words: Any) -> Batch:
        time.sleep(delay_s)
        return close(job, *words)

    monkeypatch.setattr(TrainJob, "close", slow)
    settings = Settings(synthetic_count=40, synthetic_size=16, batch_size=16, num_workers=0, log_with="none")
    report = benchmark(settings, SingleScale(16), ("float32",), steps=2)
    (case,) = report.cases
    assert (case.bound == "loader") == bool(delay_s)
    if delay_s:
        assert case.loader_images_per_s <= 16
        assert report.verdicts[0].endswith(("; more CPU cores", f"; --num-workers {report.facts['cores']}"))


def test_every_precision_of_the_device_is_measured_when_none_is_named(monkeypatch: pytest.MonkeyPatch):
    """A CPU computes in bfloat16 even where it has no instructions for it."""
    monkeypatch.setattr(device, "precisions", lambda: ("float32", "bf16"))
    monkeypatch.setattr(roofline, "MATRIX", {"cpu": 64})  # without them a large product takes a minute
    settings = Settings(synthetic_count=40, synthetic_size=16, batch_size=4, log_with="none")
    report = benchmark(settings, SingleScale(16), steps=1)
    assert [case.precision for case in report.cases] == ["float32", "bf16"]
    assert report.cases[1].traffic_ms != report.cases[0].traffic_ms
    accelerator = device.start(settings)  # the next run has its own precision
    assert accelerator.mixed_precision == "no"
    device.stop()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--precisions", "fp16"), "--precisions fp16: this device computes in float32"),
        (("--precisions", "float8"), "--precisions"),
        (("--scales", "64,32"), "--scales"),
        (("--batch-sizes", "0"), "--batch-sizes"),
        (("--output", "nowhere/out.json"), "--output nowhere/out.json: there is no folder nowhere"),
        (("--step", "3"), "there is no flag --step; did you mean --steps?"),
        (("extra",), "there is no flag extra"),
    ],
)
def test_one_line_says_what_is_wrong_when_a_flag_is(
    words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.chdir(tmp_path)
    assert recipe("benchmark")(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert message in said
    assert list(tmp_path.iterdir()) == []
