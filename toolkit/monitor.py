"""Memory, running losses and the watch over non-finite values; no host sync in a step on a device."""

import time
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

SAVED = "mean "  # before the names of sums in a checkpoint
NEVER = torch.iinfo(torch.int64).max
# Of float16 gradients; it starts at 2^16 and halves with each step that overflows. A scale below 1 makes them smaller
# than they are: they overflow as they stand, 17 steps running at the least.
LEAST_SCALE = 1.0


class Meter:
    """Means of the loss parts over a stretch of steps; sums stay on the device until asked for."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, parts: Mapping[str, Tensor]) -> None:
        for name, value in parts.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over steps and processes; every process must ask."""
        if not self.sums:
            return {}
        means = torch.stack([total / self.counts[name] for name, total in self.sums.items()])
        return dict(zip(self.sums, accelerator.reduce(means, "mean").tolist(), strict=True))

    def state(self) -> dict[str, Tensor]:
        """Sum and count of this process, by name, for a checkpoint."""
        pairs = {name: (float(total), self.counts[name]) for name, total in self.sums.items()}
        return {f"{SAVED}{name}": torch.tensor(pair, dtype=torch.float64) for name, pair in pairs.items()}

    def restart(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Go on from a saved state, among other tensors, or from nothing."""
        pairs = {name.removeprefix(SAVED): pair.tolist() for name, pair in state.items() if name.startswith(SAVED)}
        self.sums = {name: torch.tensor(total, device=device) for name, (total, _) in pairs.items()}
        self.counts = {name: round(count) for name, (_, count) in pairs.items()}


class FiniteWatch:
    """Remembers on the device the first optimizer step whose loss or gradient norm was not finite.

    `gradients` False where a gradient scaler provokes infinite ones on purpose (float16): then its scale tells.
    """

    def __init__(self, device: torch.device, gradients: bool) -> None:
        self.first_bad = torch.tensor(NEVER, dtype=torch.int64, device=device)  # a step; NEVER: none yet
        self._gradients = gradients
        self.reads_are_free = device.type == "cpu"

    def see_loss(self, step: int, loss: Tensor) -> None:
        here = torch.where(torch.isfinite(loss.detach()), NEVER, step)
        self.first_bad = torch.minimum(self.first_bad, here)

    def see_gradient(self, step: int, norm: Tensor) -> None:
        """The norm is the same on every process, so all of them notice in the same step."""
        if self._gradients:
            self.see_loss(step, norm)

    def see_scale(self, step: int, scale: float) -> None:
        """The gradient scale after the step; it is the same on every process."""
        if scale < LEAST_SCALE:
            self.first_bad = self.first_bad.clamp(max=step)

    def forget(self) -> None:
        """Begin anew, after the run went back to a step before."""
        self.first_bad = torch.full_like(self.first_bad, NEVER)


class Stopwatch:
    """Seconds while it runs, taken in laps."""

    def __init__(self) -> None:
        self._since: float | None = None

    def start(self) -> None:
        self._since = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the start or the last lap; 0 while it stands."""
        if self._since is None:
            return 0.0
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        return seconds

    def stop(self) -> float:
        seconds = self.lap()
        self._since = None
        return seconds


def reset_peak_memory(device: torch.device) -> None:
    """Forget the peak so far, where the device keeps count; the host's cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_gb(device: torch.device) -> float:
    """Most memory held so far: on the accelerator where it keeps count, else resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
