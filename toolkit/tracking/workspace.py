"""The layout of a project's workspace on wandb, made offline."""

from wandb_workspaces.reports.v2 import CustomChart, LinePlot, WeavePanelSummaryTable
from wandb_workspaces.workspaces import Section, Workspace

from toolkit.tracking.sections import AXES, SECTIONS

QUALITY = {  # panel -> the metrics in it
    "Training loss, nats": "^quality/train_[^/]+$",
    "Training loss by size, nats": "^quality/train_.+/",
    "Validation loss by size, nats": "^quality/[^/]+/loss$",
    "Top-1 by size, %": "^quality/[^/]+/top1$",
    "Top-5 by size, %": "^quality/[^/]+/top5$",
    "Best top-1 so far, %": "^quality/best_top1$",
    "At the end: best model, top-1, %": "^quality/(best|test)/.+/top1$",
    "At the end: last weights without averaging, top-1, %": "^quality/raw/.+/top1$",
}
CELLS = ("Actual", "Predicted", "nPredictions")


def workspace(entity: str, project: str) -> Workspace:
    """A view named toolkit, not saved yet."""
    panels = {"quality": [_plot(title, metrics) for title, metrics in QUALITY.items()]}
    for section, names in SECTIONS.items():
        panels[section] = [_plot(name, f"^{section}/{name}(/|$)") for name in names]
    confusion = CustomChart.from_table("errors/confusion_table", {name: name for name in CELLS}, {})
    confusion.chart_name = "wandb/confusion_matrix/v1"
    tables = [WeavePanelSummaryTable(table_name=f"errors/{name}") for name in ("class_accuracy", "hardest")]
    panels["errors"] += [confusion, *tables]
    sections = [Section(name=name.capitalize(), panels=shown, is_open=True) for name, shown in panels.items()]
    return Workspace(entity, project, "toolkit", sections)


def _plot(title: str, metrics: str) -> LinePlot:
    return LinePlot(title=title, x=AXES[0], metric_regex=metrics)
