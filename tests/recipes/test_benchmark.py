"""The benchmark recipe, in this process: what it measures, and what it says bounds a run."""

import itertools
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import recipe
from toolkit import InputError, Settings, SingleScale
from toolkit.data.loading import pipeline
from toolkit.data.loading.batches import Batch, TrainBatchBuilder
from toolkit.models.inspection import plan_model
from toolkit.tools.benchmark import benchmark
from toolkit.training import device
from toolkit.training.roofline import Case, Knobs, verdict

SMALL = ("--scales", "16,24", "--batch-sizes", "4,8", "--precisions", "float32", "--steps", "1")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("benchmark") / "out.json"
    assert recipe("benchmark")((*SMALL, "--output", str(path))) == 0
    return json.loads(path.read_text())


@pytest.mark.slow
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


def test_each_case_says_what_bounds_it_by_the_numbers_that_were_measured(measured: dict[str, Any]):
    """What bounds a tiny step depends on what else the machine does; fixed cases are in test_roofline.py."""
    for case in measured["cases"]:
        assert case["bound"] in ("launch", "memory", "arithmetic", "loader")
        assert case["verdict"].startswith("bound by ")
        assert f"by {case['bound']}" in case["verdict"].partition(":")[0]
        assert case["fixed_share"] is None or 0 <= case["fixed_share"] <= 1


def every_verdict(case: Case, others: Sequence[Case], knobs: Knobs) -> str:
    """All that could be said of a case, whatever bounds it and however the knobs stand."""
    fed = replace(case, loader_images_per_s=float("inf"), fixed_share=0.0, precision="float32")
    bounds = [replace(case, loader_images_per_s=0.0), replace(fed, traffic_ms=1e9), replace(fed, arithmetic_ms=1e9)]
    bounds.append(replace(fed, fixed_share=1.0, traffic_ms=0.0, arithmetic_ms=0.0))
    faster = [replace(other, precision="bf16", images_per_s=10 * case.images_per_s) for other in bounds]
    turned = itertools.product((0, knobs.cores), ("off", "ram"), (False, True))
    stands = [replace(knobs, workers=workers, cache=cache, compile=on) for workers, cache, on in turned]
    said = itertools.product(bounds, ([], faster), stands)
    return " ".join(verdict(bound, [bound, *others], stand) for bound, others, stand in said)


@pytest.mark.parametrize(
    ("name", "words", "trains"),
    [
        ("single_scale", ("--img-size", "16"), "single_scale"),
        ("benchmark", ("--scales", "16"), "single_scale"),
        ("benchmark", ("--scales", "8,16"), "multiscale"),
    ],
)
def test_every_flag_that_is_advised_is_one_of_the_training_recipe(
    name: str, words: tuple[str, ...], trains: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("toolkit.tools.benchmark.verdict", every_verdict)
    monkeypatch.setattr("toolkit.tools.benchmark.LOADER_S", 0.0)
    monkeypatch.setattr(device, "precisions", lambda: ("float32",))
    with pytest.raises(SystemExit, match="0"):
        recipe(trains)(["--help"])
    known = {*re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)}
    training = ("--synthetic-count", "40", "--batch-size", "16", "--epochs", "2", "--log-with", "none", "--benchmark")
    timed = ("--batch-sizes", "4", "--steps", "1", "--precisions", "float32")
    assert recipe(name)([*words, *(timed if name == "benchmark" else training)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("verdict ")]
    advised = {flag for line in lines for flag in re.findall(r"--[a-z][a-z-]+", line)}
    assert {"--amp", "--batch-size", "--cache", "--cache-gb", "--compile", "--num-workers"} < advised  # control
    assert advised <= known


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0.2, 0.0])
def test_the_loader_is_told_as_the_bound_when_it_is_slower_than_training(
    monkeypatch: pytest.MonkeyPatch, delay_s: float
):
    close = TrainBatchBuilder.close

    def slow(builder: TrainBatchBuilder, *words: Any) -> Batch:
        time.sleep(delay_s)
        return close(builder, *words)

    monkeypatch.setattr(TrainBatchBuilder, "close", slow)
    settings = Settings(synthetic_count=40, synthetic_size=16, batch_size=16, num_workers=0, log_with="none")
    report = benchmark(settings, SingleScale(16), precisions=("float32",), steps=2)
    (case,) = report.cases
    assert (case.bound == "loader") == bool(delay_s)
    if delay_s:
        assert case.loader_images_per_s <= 16 / delay_s
        assert report.verdicts[0].endswith(
            ("; in training: more CPU cores", f"; in training: --num-workers {report.conditions['cores']}")
        )


def test_the_loader_s_rate_is_that_of_several_batches_after_the_start_when_an_epoch_has_few(
    monkeypatch: pytest.MonkeyPatch,
):
    """Two batches of 16 images an epoch, 1000 s each and the first of all 15 times that, by a clock put forward."""
    close, seen, ahead_s = TrainBatchBuilder.close, [], 0.0

    def slow_to_start(builder: TrainBatchBuilder, *words: Any) -> Batch:
        nonlocal ahead_s
        ahead_s += 1000.0 if seen else 15_000.0
        seen.append(builder)
        return close(builder, *words)

    monkeypatch.setattr(TrainBatchBuilder, "close", slow_to_start)
    clock = SimpleNamespace(perf_counter=lambda: time.perf_counter() + ahead_s)
    monkeypatch.setattr("toolkit.tools.benchmark.time", clock)
    settings = Settings(
        synthetic_count=40, synthetic_size=16, batch_size=16, num_workers=0, log_with="none", cache="off"
    )
    report = benchmark(settings, SingleScale(16), precisions=("float32",), steps=1)
    assert len(seen) == 1 + 5
    assert report.cases[0].loader_images_per_s == pytest.approx(16 / 1000, rel=0.05)  # with the start: 96 in 20 000 s


@pytest.mark.parametrize(("by", "magnitude"), [("by_processes", 5.0), ("by_threads", 0.0)])
def test_workers_start_once_when_an_epoch_has_fewer_batches_than_are_timed(
    monkeypatch: pytest.MonkeyPatch, by: str, magnitude: float
):
    """Two batches of 16 images an epoch; their start would be timed as loading."""
    start, starts = getattr(pipeline, by), []

    def counted(*words: Any) -> Iterator[Batch]:
        starts.append(words)
        return start(*words)

    monkeypatch.setattr(pipeline, by, counted)
    monkeypatch.setattr("toolkit.tools.benchmark.LOADER_S", 0.0)
    settings = Settings(
        synthetic_count=40,
        synthetic_size=16,
        batch_size=16,
        num_workers=2,
        rand_augment=magnitude,
        log_with="none",
        cache="off",
    )
    report = benchmark(settings, SingleScale(16), precisions=("float32",), steps=1)
    assert len(starts) == 1
    assert report.cases[0].loader_images_per_s > 0


def test_every_precision_of_the_device_is_measured_when_none_is_named(monkeypatch: pytest.MonkeyPatch):
    """A CPU computes in bfloat16 even where it has no instructions for it."""
    monkeypatch.setattr(device, "precisions", lambda: ("float32", "bf16"))
    settings = Settings(synthetic_count=40, synthetic_size=20, batch_size=4, log_with="none")
    report = benchmark(settings, SingleScale(20), steps=1)
    assert [case.precision for case in report.cases] == ["float32", "bf16"]
    assert report.cases[1].traffic_ms != report.cases[0].traffic_ms
    accelerator = device.start(settings)  # the next run has its own precision
    assert accelerator.mixed_precision == "no"
    device.stop()


def test_what_could_not_be_trained_is_left_out_when_a_precision_spoils_gradients(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(device, "has_accelerator", lambda: False)
    monkeypatch.setattr(device, "precisions", lambda: ("float32", "bf16"))
    settings = Settings(synthetic_count=40, synthetic_size=16, batch_size=4, log_with="none")
    report = benchmark(settings, SingleScale(16), steps=1)
    assert [case.precision for case in report.cases] == ["float32"]
    assert "--amp" not in report.verdicts[0]
    with pytest.raises(InputError, match="nothing is left to measure: take larger sizes or another of --precisions"):
        benchmark(settings, SingleScale(16), precisions=("bf16",), steps=1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--precisions", "fp16"), "--precisions fp16: this device computes in float32"),
        (("--precisions", "float8"), "--precisions"),
        (("--scales", "64,32"), "--scales"),
        (("--batch-sizes", "0"), "--batch-sizes"),
        (("--output", "nowhere/out.json"), "--output nowhere/out.json: No such file or directory"),
        (("--output", "."), "--output .: is a folder: give the name of a file in it"),
        (("--output", "/proc/out.json"), "--output /proc/out.json: "),  # which nobody may write to
        (("--step", "3"), "there is no flag --step; did you mean --steps?"),
        (("extra",), "extra belongs to no flag"),
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
