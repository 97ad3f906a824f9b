"""Cost of a prediction: multiply-adds, latency, throughput and peak memory, measured on the current device."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from toolkit.models.evaluator import Evaluator
from toolkit.strategies.base import EvalSpec
from toolkit.training.monitor import peak_memory_gb, reset_peak_memory

TIMED_S = 1.0  # duration of each timing


@dataclass(frozen=True)
class InferenceCost:
    """Cost of one image, from pixels on the host to the prediction on the host; `gmacs`: 10^9 multiply-adds.

    `images_per_s`: one process, in batches. `peak_memory_gb`: with such a batch; on a CPU the process's peak so far.
    """

    gmacs: float
    latency_p50_ms: float
    latency_p95_ms: float
    images_per_s: float
    peak_memory_gb: float


def measure_cost(evaluator: Evaluator, spec: EvalSpec, gmacs: Mapping[int, float]) -> InferenceCost:
    """Measure on the main process while the others wait; `gmacs` of one image by size."""
    evaluator.accelerator.wait_for_everyone()
    place, passes = evaluator.accelerator.device, 1 + evaluator.flip
    reset_peak_memory(place)
    one, many = [0.0], [1.0]
    if evaluator.accelerator.is_main_process:
        one, many = (evaluator.seconds(spec, count, TIMED_S) for count in (1, evaluator.batch_size))
    evaluator.accelerator.wait_for_everyone()
    return InferenceCost(
        gmacs=passes * sum(gmacs[size] for size in spec.sizes),
        latency_p50_ms=1000 * statistics.median(one),
        latency_p95_ms=1000 * float(np.percentile(one, 95)),
        images_per_s=evaluator.batch_size / statistics.median(many),
        peak_memory_gb=peak_memory_gb(place),
    )
