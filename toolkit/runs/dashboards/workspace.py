"""The layout of a project's workspace on wandb, made offline."""

from wandb_workspaces.reports.v2 import CustomChart, LinePlot, WeavePanelSummaryTable
from wandb_workspaces.workspaces import Section, Workspace

from toolkit.runs.dashboards.names import AXES, SECTIONS

QUALITY = {  # title of a chart -> regex of its metrics
    "Training loss, nats": "^quality/train_[^/]+$",
    "Training loss by size, nats": "^quality/train_.+/",
    "Validation loss by size, nats": "^quality/[^/]+/loss$",
    "Top-1 by size, and without averaging (raw), %": "^quality/(raw/)?[^/]+/top1$",
    "Top-5 by size, %": "^quality/[^/]+/top5$",
    "Balanced accuracy by size, %": "^quality/(raw/)?[^/]+/balanced_accuracy$",
    "Macro F1 by size, %": "^quality/(raw/)?[^/]+/macro_f1$",
    "Not readable, images": "/unreadable$",
    "Best of the selecting metric so far, %": "^quality/best_[^/]+$",
    "At the end: best model, top-1, %": "^quality/(best|test)/.+/top1$",
    "At the end: best model, balanced accuracy, %": "^quality/(best|test)/.+/balanced_accuracy$",
    "At the end: best model, macro F1, %": "^quality/(best|test)/.+/macro_f1$",
}
TITLES = {  # metric outside `quality` -> title of its chart
    "lr": "Learning rate",
    "gradient_norm": "Norm of the gradient before it is clipped",
    "clipped_share": "Steps that were clipped, 0 to 1",
    "gradient_scale": "Scale of the float16 loss",
    "skipped_steps": "Skipped in float16, steps",
    "images_per_s": "Training, images/s",
    "images_per_s_per_device": "Training per device, images/s",
    "tflops": "Operations of a device, 10^12/s",
    "share_of_peak": "Operations over the device's peak, 0 to 1",
    "data_wait_share": "Time spent waiting for images, 0 to 1",
    "step_p50_ms": "Step, median, ms",
    "step_p95_ms": "Step, 95th percentile, ms",
    "peak_memory_gb": "Peak memory, GB",
    "train_seconds": "Training since the run began, s",
    "eval_seconds": "Evaluation in each epoch, s",
    "save_seconds": "Waiting for checkpoints in each epoch, s",
    "wall_seconds": "Everything since the run began, s",
    "balanced_accuracy": "Balanced accuracy, %",
    "worst_class_accuracy": "Accuracy of the worst class, %",
    "calibration_error": "Expected calibration error, 0 to 1",
    "phase": "Phase, index",
    "largest_size_px": "Largest size trained, px",
    "regularization": "Regularization (share of the run's), 0 to 1",
    "images_seen": "Seen since the run began, images",
    "cost": "Cost, currency",
    "preemptions": "Stopped early and continued, times",
}
CELLS = ("Actual", "Predicted", "nPredictions")


def workspace(entity: str, project: str) -> Workspace:
    """A view named toolkit, not saved yet."""
    panels = {"quality": [_plot(title, metrics) for title, metrics in QUALITY.items()]}
    for section, names in SECTIONS.items():
        panels[section] = [_plot(TITLES[name], f"^{section}/{name}(/|$)") for name in names]
    confusion = CustomChart.from_table("errors/confusion_table", {name: name for name in CELLS}, {})
    confusion.chart_name = "wandb/confusion_matrix/v1"
    tables = [WeavePanelSummaryTable(table_name=f"errors/{name}") for name in ("class_accuracy", "hardest")]
    panels["errors"] += [confusion, *tables]
    sections = [Section(name=name.capitalize(), panels=shown, is_open=True) for name, shown in panels.items()]
    return Workspace(entity, project, "toolkit", sections)


def _plot(title: str, metrics: str) -> LinePlot:
    return LinePlot(title=title, x=AXES[0], metric_regex=metrics)
