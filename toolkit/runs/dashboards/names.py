"""Names of metrics on a dashboard: the section, then the name in metrics.csv."""

from collections.abc import Mapping
from typing import Any

from toolkit.runs.metrics_row import MetricsRow

SECTIONS = {
    "optimization": ("lr", "gradient_norm", "clipped_share", "gradient_scale", "skipped_steps"),
    "throughput": (
        "images_per_s",
        "images_per_s_per_device",
        "tflops",
        "share_of_peak",
        "data_wait_share",
        "step_p50_ms",
        "step_p95_ms",
        "peak_memory_gb",
        "train_seconds",
        "eval_seconds",
        "save_seconds",
        "wall_seconds",
    ),
    "errors": ("balanced_accuracy", "worst_class_accuracy", "calibration_error"),
    "run": ("phase", "largest_size_px", "regularization", "images_seen", "cost", "preemptions"),
}
AXES = ("global_step", "epoch")
# Section `quality` holds all other metrics: losses and accuracies, named after the trained sizes and eval specs.


def named(values: Mapping[str, Any]) -> dict[str, float]:
    """Numbers by their names on a dashboard; values that are not numbers, such as empty cells, are left out."""
    return {
        f"{_section(name)}/{name}": value
        for name, value in values.items()
        if isinstance(value, int | float) and name not in ("step", *AXES)
    }


def _section(name: str) -> str:
    first = name.split("/")[0]
    return next((section for section, names in SECTIONS.items() if first in names), "quality")


def of_epoch(row: MetricsRow) -> dict[str, Any]:
    """The metrics of an epoch, and those that only dashboards show."""
    more: dict[str, Any] = {"largest_size_px": row.sizes[-1]}
    if "peak_memory_gb" in row.metrics:
        more[f"peak_memory_gb/{row.sizes_name}px"] = row.metrics["peak_memory_gb"]
    return {**row.columns(), **more}
