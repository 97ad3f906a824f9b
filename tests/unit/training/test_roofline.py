"""What a machine can do at most, and what bounds a case: by hand."""

import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from toolkit.training.roofline import Case, Knobs, Traffic, ceiling, product_tflops, verdict

CASE = Case(
    sizes=(64,),
    precision="float32",
    batch_size=64,
    images_per_s=640.0,
    step_p50_ms=100.0,
    step_p95_ms=110.0,
    peak_memory_gb=1.0,
    gflop=50.0,
    arithmetic_ms=60.0,
    traffic_ms=20.0,
    fixed_share=0.1,
    loader_images_per_s=1000.0,
)
KNOBS = Knobs(workers=4, cores=4, cache="off", compile=False, size_flag="--scales")
LAUNCH = replace(CASE, fixed_share=0.7)
MEMORY = replace(CASE, traffic_ms=70.0)
LOADER = replace(CASE, loader_images_per_s=639.0)


@pytest.mark.parametrize(
    ("case", "bound"),
    [
        (CASE, "arithmetic"),
        (LAUNCH, "launch"),
        (replace(CASE, fixed_share=0.59), "arithmetic"),
        (MEMORY, "memory"),
        (replace(MEMORY, fixed_share=0.8), "launch"),
        (LOADER, "loader"),
        (replace(CASE, loader_images_per_s=641.0), "arithmetic"),
        (replace(CASE, fixed_share=None), "arithmetic"),
    ],
)
def test_the_verdict_names_what_explains_most_of_a_step_when_the_loader_keeps_up(case: Case, bound: str):
    assert case.bound == bound
    assert verdict(case, [case], KNOBS).startswith(f"bound by {bound}: ")
    stalled = replace(case, step_p50_ms=1000.0, fixed_share=(case.fixed_share or 0.0) * case.step_p50_ms / 1000)
    told = f"bound by none of these for the most part, by {bound} at most: "
    assert verdict(stalled, [stalled], KNOBS).startswith(told if bound != "loader" else "bound by loader: ")


@pytest.mark.parametrize(
    ("case", "knobs", "advice"),
    [
        (LOADER, replace(KNOBS, workers=1), "--num-workers 4"),
        (LOADER, KNOBS, "--cache ram with enough --cache-gb, or more CPU cores"),
        (LOADER, replace(KNOBS, cache="ram"), "more CPU cores"),
        (LAUNCH, KNOBS, "--batch-size above 64, or --compile"),
        (LAUNCH, replace(KNOBS, compile=True), "--batch-size above 64"),
        (MEMORY, KNOBS, "--compile, which fuses what only reads and writes"),
        (MEMORY, replace(KNOBS, compile=True), "smaller --scales, a cheaper --arch, or more devices"),
        (CASE, KNOBS, "smaller --scales, a cheaper --arch, or more devices"),
        (CASE, replace(KNOBS, size_flag="--img-size"), "smaller --img-size, a cheaper --arch, or more devices"),
    ],
)
def test_the_verdict_ends_with_the_flag_that_helps_when_it_is_not_turned_yet(case: Case, knobs: Knobs, advice: str):
    assert verdict(case, [case], knobs).endswith(f"; in training: {advice}")


def test_mixed_precision_is_advised_when_it_was_measured_to_be_faster():
    faster, slower = replace(CASE, precision="bf16", images_per_s=1280.0), replace(CASE, precision="bf16")
    elsewhere = replace(faster, sizes=(112,))
    assert verdict(CASE, [CASE, faster], KNOBS).endswith("; in training: --amp (bf16 was 2.0x as fast)")
    assert "--amp" not in verdict(CASE, [CASE, slower, elsewhere], KNOBS)
    assert "--amp" not in verdict(faster, [CASE, faster], KNOBS)


def test_traffic_is_what_each_operation_reads_and_writes_when_counted_by_hand():
    x, weight = torch.ones(10, 100), torch.ones(50, 100)
    with Traffic() as traffic:
        y = x.relu()
    assert traffic.bytes == 2 * 4000
    with Traffic() as traffic:
        z = y.view(100, 10).t()  # moves nothing
    assert traffic.bytes == 0
    with Traffic() as traffic, torch.no_grad():
        torch.mm(y, weight.t())
    assert traffic.bytes == 4 * (1000 + 5000 + 500)
    assert z.shape == (10, 100)


def test_ceilings_are_above_what_smaller_work_reaches_on_this_machine():
    reached = ceiling(torch.device("cpu"), "float32")
    assert 1e-4 < reached.tflops < 100
    assert 0.1 < reached.gb_per_s < 10_000


def test_a_run_s_peak_draws_nothing_when_training_is_to_follow():
    generators, allowed = torch.get_rng_state(), torch.get_float32_matmul_precision()
    reached = product_tflops(torch.device("cpu"), "no")  # Accelerate's word for float32
    assert 1e-4 < reached < 100
    assert torch.equal(torch.get_rng_state(), generators)
    assert torch.get_float32_matmul_precision() == allowed


@pytest.mark.parametrize(
    ("gflop_per_s", "stall_s", "sides"),
    [
        (0.5, 0.0, {128, 256}),  # as bfloat16 on a CPU without instructions for it
        (5.0, 0.02, {128, 256, 512}),  # as where two threads wait for each other and other processes have the cores
    ],
)
def test_a_peak_is_taken_with_small_products_that_are_large_enough(
    monkeypatch: pytest.MonkeyPatch, gflop_per_s: float, stall_s: float, sides: set[int]
):
    """A product takes a known time: what it computes, and a stall."""
    met = set()

    def product(left: Tensor, right: Tensor) -> Tensor:
        met.add(len(left))
        time.sleep(stall_s + 2 * len(left) ** 3 / gflop_per_s / 1e9)
        return left

    monkeypatch.setattr(torch, "mm", product)
    reached = product_tflops(torch.device("cpu"), "no")
    assert gflop_per_s / 5 < 1000 * reached <= gflop_per_s
    assert met == sides
