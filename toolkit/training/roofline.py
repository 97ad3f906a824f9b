"""Roofline analysis: peak rates of a machine, memory traffic of a forward pass, the bound of a training step."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TRAINING = 3  # forward passes that a training step costs: backward computes gradients of inputs and of weights
SMALLEST_SIDE, LONG_ENOUGH_S = 128, 0.0015  # first matrix side, and shortest product to time
VECTOR = 2**25  # float32 values in the timed copy, more than any cache holds
TRIALS = 4


@dataclass(frozen=True)
class Ceiling:
    """Measured peak rates in one precision: 10^12 operations and 10^9 bytes per second."""

    tflops: float
    gb_per_s: float


@dataclass(frozen=True)
class Case:
    """Measured training steps of `batch_size` images over all processes at `sizes` px.

    `arithmetic_ms`, `traffic_ms`: time for the step's operations, and for its reads and writes, at the peak rates;
    `fixed_share`: share of the step's time that does not depend on the number of images, None if unknown;
    `loader_images_per_s`: throughput of the loader alone, over all processes; `gflop`: 10^9 operations per step.
    """

    sizes: tuple[int, ...]
    precision: str
    batch_size: int
    images_per_s: float
    step_p50_ms: float
    step_p95_ms: float
    peak_memory_gb: float
    gflop: float
    arithmetic_ms: float
    traffic_ms: float
    fixed_share: float | None
    loader_images_per_s: float

    @property
    def share_of_peak(self) -> float:
        return self.arithmetic_ms / self.step_p50_ms

    @property
    def fixed_ms(self) -> float:
        return self.step_p50_ms * (self.fixed_share or 0.0)

    @property
    def bound(self) -> str:
        """ "loader" if it delivers fewer images per second than training takes, else the largest part of a step's time.

        launch: the time that is the same for half as many images: launching kernels, Python, the optimizer;
        memory: reads and writes at the speed of a large copy, counted for each operation on its own and three times
        those of the forward pass; operations that are fused or read from a cache take less;
        arithmetic: operations at the speed of a large matrix product.
        """
        if self.loader_images_per_s < self.images_per_s:
            return "loader"
        return max(self.explained, key=lambda name: self.explained[name])

    @property
    def explained(self) -> dict[str, float]:
        """Milliseconds of a step, by possible bound."""
        return {"launch": self.fixed_ms, "memory": self.traffic_ms, "arithmetic": self.arithmetic_ms}


@dataclass(frozen=True)
class Knobs:
    """Current values of the flags that a verdict may advise to change."""

    workers: int
    cores: int  # available to one process
    cache: str
    compile: bool
    size_flag: str  # the flag that sets the training sizes


def verdict(case: Case, others: Sequence[Case], knobs: Knobs) -> str:
    """One line: what bounds a case, by which numbers, and which flag to change; `others`: all measured cases."""
    reason = (
        f"the loader delivers {case.loader_images_per_s:.0f} images/s, training takes {case.images_per_s:.0f}"
        if case.bound == "loader"
        else f"of {case.step_p50_ms:.1f} ms a step {case.fixed_ms:.1f} do not depend on the images, arithmetic takes "
        f"at least {case.arithmetic_ms:.1f}, reads and writes about {case.traffic_ms:.1f}"
    )
    known = case.bound == "loader" or case.explained[case.bound] >= case.step_p50_ms / 2
    head = f"bound by {case.bound}" if known else f"bound by none of these for the most part, by {case.bound} at most"
    return f"{head}: {reason}; in training: {_advice(case, others, knobs)}"


def _advice(case: Case, others: Sequence[Case], knobs: Knobs) -> str:
    if case.bound == "loader":
        if knobs.workers < knobs.cores:
            return f"--num-workers {knobs.cores}"
        return "more CPU cores" if knobs.cache == "ram" else "--cache ram with enough --cache-gb, or more CPU cores"
    faster = max(_alike(case, others), key=lambda other: other.images_per_s, default=case)
    if case.precision == "float32" and faster.images_per_s > 1.1 * case.images_per_s:
        return f"--amp ({faster.precision} was {faster.images_per_s / case.images_per_s:.1f}x as fast)"
    larger = f"--batch-size above {case.batch_size}"
    if case.bound == "launch":
        return larger if knobs.compile else f"{larger}, or --compile"
    if case.bound == "memory" and not knobs.compile:
        return "--compile, which fuses what only reads and writes"
    return f"smaller {knobs.size_flag}, a cheaper --arch, or more devices"


def _alike(case: Case, others: Sequence[Case]) -> list[Case]:
    """The cases of the same sizes and batch size, in all precisions."""
    return [other for other in others if (other.sizes, other.batch_size) == (case.sizes, case.batch_size)]


def training_gflop(gmacs: Mapping[int, float], sizes: Sequence[int]) -> float:
    """10^9 operations to train on one image at `sizes` px; `gmacs`: 10^9 multiply-adds of a forward pass, by size."""
    return 2 * TRAINING * sum(gmacs[size] for size in sizes)


def ceiling(device: torch.device, precision: str) -> Ceiling:
    """Measure the peak rates: a large matrix product in a precision, and a large copy."""
    vector = torch.ones(VECTOR, device=device)
    target = torch.empty_like(vector)
    copy = _best_seconds(lambda: target.copy_(vector))
    return Ceiling(product_tflops(device, precision), 2 * vector.nbytes / copy / 1e9)


def product_tflops(device: torch.device, precision: str) -> float:
    """10^12 operations per second of a large matrix product; quick, draws no random numbers and keeps no memory.

    Doubles the side until a product takes long enough to time, so that slow hardware stops at small matrices; returns
    the best rate. The last product must also take twice as long as the one before: while products wait for busy cores,
    a larger one takes no longer. On a GPU, float32 products may use TF32, as convolutions do. `precision`: one of
    `TYPES`, else float32.
    """
    allowed = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    side, before, seconds, best = SMALLEST_SIDE // 2, 0.0, 0.0, 0.0
    try:
        while not before or seconds < max(LONG_ENOUGH_S, 2 * before):
            side, before = 2 * side, seconds
            matrix = torch.ones(side, side, device=device, dtype=TYPES.get(precision, torch.float32))
            seconds = _best_seconds(partial(torch.mm, matrix, matrix))
            best = max(best, 2 * side**3 / seconds / 1e12)
    finally:
        torch.set_float32_matmul_precision(allowed)
    del matrix
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return best


def _best_seconds(work: Callable[[], Tensor]) -> float:
    """Time of the fastest of several trials after a warm-up; each trial waits for its result."""
    times = []
    for _ in range(1 + TRIALS):
        started = time.perf_counter()
        work().flatten()[0].item()
        times.append(time.perf_counter() - started)
    return min(times[1:])


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations inside the context read and write, each operation on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result
