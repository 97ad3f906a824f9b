"""Running means, step times, peak memory and detection of non-finite values, without a host sync in a step."""

import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from toolkit.system import host
from toolkit.training.roofline import training_gflop

NEVER = torch.iinfo(torch.int64).max
# Lowest valid scale of float16 gradients. The scale starts at 2^16 and halves with each step that overflows, so it is
# below 1 after at least 17 overflows in a row. It then makes gradients smaller: they overflow even without scaling.
LEAST_SCALE = 1.0
T = TypeVar("T")


class RunningMeans:
    """Means of loss parts and gradient norms over several steps; the sums stay on the device until they are read."""

    def __init__(self, device: torch.device) -> None:
        self.zero = torch.tensor(0.0, device=device)  # all first terms are added to it: XLA compiles one graph less
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, parts: Mapping[str, Tensor]) -> None:
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, self.zero) + value.detach().float()
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over steps and ranks; every rank must call it."""
        if not self.sums:
            return {}
        means = torch.stack([total / self.counts[name] for name, total in self.sums.items()])
        return dict(zip(self.sums, accelerator.reduce(means, "mean").tolist(), strict=True))

    def state(self) -> dict[str, Tensor]:
        """Sum and count on this rank, by name, for a checkpoint."""
        pairs = {name: (float(total), self.counts[name]) for name, total in self.sums.items()}
        return {name: torch.tensor(pair, dtype=torch.float64) for name, pair in pairs.items()}

    def restart(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a saved state; an empty one resets to zero."""
        pairs = {name: pair.tolist() for name, pair in state.items()}
        self.sums = {name: torch.tensor(total, device=self.zero.device) for name, (total, _) in pairs.items()}
        self.counts = {name: round(count) for name, (_, count) in pairs.items()}


class NonFiniteMonitor:
    """Records on the device the first optimizer step with a non-finite loss or gradient norm.

    `gradients`: False with a gradient scaler (float16), which causes infinite gradients on purpose; then the scale is
    checked instead.
    """

    def __init__(self, device: torch.device, gradients: bool) -> None:
        self.first_bad = torch.tensor(NEVER, dtype=torch.int64, device=device)  # step number; NEVER: none yet
        self._gradients = gradients
        self.reads_are_free = device.type == "cpu"

    def see_loss(self, step: int, loss: Tensor) -> None:
        here = torch.where(torch.isfinite(loss.detach()), NEVER, step)
        self.first_bad = torch.minimum(self.first_bad, here)

    def see_gradient(self, step: int, norm: Tensor) -> None:
        """Check the gradient norm, which is the same on every rank: all ranks detect it in the same step."""
        if self._gradients:
            self.see_loss(step, norm)

    def see_scale(self, step: int, scale: float) -> None:
        """Check the gradient scale after the step; it is the same on every rank."""
        if scale < LEAST_SCALE:
            self.first_bad = self.first_bad.clamp(max=step)

    def forget(self) -> None:
        """Clear the record, after a rollback to an earlier step."""
        self.first_bad = torch.full_like(self.first_bad, NEVER)


class Stopwatch:
    """Elapsed seconds while it runs, read in laps."""

    def __init__(self) -> None:
        self._since: float | None = None

    @property
    def running(self) -> bool:
        return self._since is not None

    def start(self) -> None:
        self._since = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the start or the last lap; 0 while stopped."""
        if self._since is None:
            return 0.0
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        return seconds

    def stop(self) -> float:
        seconds = self.lap()
        self._since = None
        return seconds


class Throughput:
    """How this rank spends an epoch's time: waiting for batches, optimizer steps, arithmetic.

    `gmacs`: 10^9 multiply-adds of a forward pass of one image, by size; `peak_tflops`: measured peak of this device.
    """

    def __init__(self, device: torch.device, gmacs: Mapping[int, float], peak_tflops: float) -> None:
        self._device, self._gmacs, self._peak_tflops = device, gmacs, peak_tflops
        self.begin()

    def begin(self) -> None:
        """Reset all counters."""
        reset_peak_memory(self._device)
        self._began, self._waited, self._images, self._gflop = time.perf_counter(), 0.0, 0, 0.0
        self._steps: list[tuple[Any, Any]] = []  # start and end of those that are not evaluated yet
        self._step_ms = array("d")
        self._step_began: Any = None

    def waits(self, batches: Iterator[T]) -> Iterator[T]:
        """Pass batches through, timing the wait for each; a step starts with the request for its first batch."""
        while True:
            requested = time.perf_counter()
            self._step_began = self._step_began or _mark(self._device)
            batch = next(batches, None)
            self._waited += time.perf_counter() - requested
            if batch is None:
                return
            yield batch

    def step(self, images: int, sizes: Sequence[int]) -> None:
        """Count an optimizer step: `images` over all processes, each at every one of `sizes` px."""
        self._steps.append((self._step_began, _mark(self._device)))
        self._step_began = None
        self._images += images
        self._gflop += images * training_gflop(self._gmacs, sizes)

    def metrics(self, accelerator: Accelerator) -> dict[str, float]:
        """Metrics since `begin`; every rank must call it, after waiting for the device.

        Waiting time, step times and memory are the largest over ranks. Before the first step only memory is returned.
        """
        seconds = time.perf_counter() - self._began
        self._step_ms.extend(_milliseconds(*marks) for marks in self._steps)
        self._steps.clear()
        own = {"peak_memory_gb": peak_memory_gb(self._device)}
        if self._step_ms:
            own["data_wait_share"] = self._waited / seconds
            own["step_p50_ms"], own["step_p95_ms"] = np.percentile(self._step_ms, (50, 95)).tolist()
        largest = accelerator.gather(torch.tensor([[*own.values()]], device=self._device)).amax(0).tolist()
        if not self._step_ms:  # resumed in an epoch that was trained but not evaluated
            return dict(zip(own, largest, strict=True))
        rate, tflops = self._images / seconds, self._gflop / 1000 / seconds / accelerator.num_processes
        return {
            "images_per_s": rate,
            "images_per_s_per_device": rate / accelerator.num_processes,
            "tflops": tflops,
            "share_of_peak": tflops / self._peak_tflops,
            **dict(zip(own, largest, strict=True)),
        }


def _mark(device: torch.device) -> Any:
    """A time stamp: a CUDA event, which the device records when it reaches it, or the host's clock."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _milliseconds(start: Any, end: Any) -> float:
    return 1000 * (end - start) if isinstance(start, float) else start.elapsed_time(end)


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak, on CUDA devices and, for the host, on Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        host.reset_peak_memory()


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory since the last reset, GB: allocated on a CUDA device, else resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return host.peak_memory_gb()
