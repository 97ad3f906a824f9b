"""The records in a run directory, summarized for the page: status, metrics, time and settings."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from toolkit.config.data_roots import SYNTHETIC
from toolkit.config.scales import default_scales
from toolkit.config.settings import SECTIONS, Settings, make_settings
from toolkit.config.tables import look_up
from toolkit.models.evaluation import ByClass
from toolkit.models.metrics import calibration_error
from toolkit.runs import class_values, saved_predictions
from toolkit.runs.directory import FINISHED, RunDirectory
from toolkit.runs.metrics_row import eval_column, raw_column
from toolkit.runs.report.evaluated import Evaluated, read_evaluation
from toolkit.runs.report.history import History, read_history, size_of
from toolkit.runs.report.step_history import StepHistory, read_step_history
from toolkit.runs.saved_predictions import SavedPredictions
from toolkit.runs.step_log import read_steps
from toolkit.strategies import Simultaneous, SingleScale
from toolkit.strategies.base import Metric, Task
from toolkit.system.errors import InputError

SPLITS = ("val", "test")


@dataclass(frozen=True)
class ReportData:
    """What a run has written so far; `summary` and `predictions` are empty until it has ended."""

    directory: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    history: History
    steps: StepHistory
    classes: tuple[str, ...]
    predictions: dict[str, SavedPredictions]  # by split
    by_class: dict[str, dict[str, ByClass]]  # by split and eval spec
    evaluated: Evaluated | None  # what `toolkit evaluate` wrote
    as_of: float  # Unix time at which the newest of them was written

    @property
    def metric(self) -> Metric:
        return self.metrics[0]

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics of the table; the first selects the best model."""
        name = str(self.config.get("select_by") or "top1")
        try:
            kind = look_up("task", "--task", str(self.config.get("task") or "classification"))
        except InputError:  # a user's own task, whose module is not imported here
            kind = None
        is_task = isinstance(kind, type) and issubclass(kind, Task)
        return tuple(kind.headline(name)) if is_task else (Metric(name, name, percent=False),)

    @property
    def model(self) -> str:
        return str(self.config.get("model_from") or self.config["arch"])  # what made it, or the architecture

    @property
    def clips(self) -> bool:
        """Whether the run clips gradients."""
        return self.config.get("gradient_clip") is not None

    @property
    def target(self) -> str:
        """The eval spec that selects the best model, such as `64px`; empty if it is not known yet.

        Before the run has ended, it is inferred: only this spec is evaluated in every epoch. If every epoch so far
        ended a phase, others are too; then it is the spec of the last scale.
        """
        sizes = self.config.get("scales") or [self.config.get("img_size")]
        usual = f"{sizes[-1]}px" if sizes[-1] else ""
        columns = {name: self.history.get(eval_column(name, self.metric.name)) for name in self.history.evaluated()}
        always = [name for name, values in columns.items() if values is not None and np.isfinite(values).all()]
        return self.summary.get("selection") or (usual if usual in always or not always else always[-1])

    @property
    def scales(self) -> list[str]:
        """Everything that is trained or evaluated, in ascending size; the index determines the color."""
        found = {*self.history.evaluated(), *self.history.trained(), *self.summary.get("val", {}), self.target}
        return sorted(found - {""}, key=size_of)

    @property
    def best_row(self) -> int | None:
        """Index of the row of the best epoch; None if no epoch was evaluated."""
        if (values := self.history.selected(self.target, self.metric)) is None:
            return None
        found = np.flatnonzero(self.history.epochs - 1 == self.summary.get("best_epoch"))
        best = np.nanargmax if self.metric.higher_is_better else np.nanargmin
        return int(found[0] if len(found) else best(values))

    @property
    def best_is_raw(self) -> bool:
        """Whether the best model's weights are not averaged, in a run that also averages them."""
        return self.best_row is not None and self.history.is_raw(self.target, self.metric, self.best_row)


def read_records(directory: Path) -> ReportData:
    """Read everything that a page needs; raises InputError if there is no run or a record is damaged."""
    run = RunDirectory(directory)
    config = run.config()
    if not config:
        raise InputError(f"{directory}: not a run directory: there is no config.yaml in it")
    summary, classes = run.summary(), directory / "class_map.json"
    found = {split: saved_predictions.read(run.predictions, split) for split in SPLITS}
    rows = run.metrics()
    written = [path for name in ("config.yaml", "metrics.csv", "summary.json") if (path := directory / name).exists()]
    return ReportData(
        directory=directory if directory.name not in ("", "..") else directory.resolve(),  # the page shows its name
        config=config,
        summary=summary,
        history=read_history(rows),
        steps=read_step_history(read_steps(run.steps), rows),
        classes=run.classes() if classes.exists() else (),
        predictions={split: predictions for split, predictions in found.items() if predictions is not None and summary},
        by_class={split: class_values.read(run.predictions, split) for split in SPLITS if summary},
        evaluated=read_evaluation(directory, summary.get("best_epoch")),
        as_of=max(path.stat().st_mtime for path in written),
    )


class Status(NamedTuple):
    """`kind` is running, good, stopped or bad."""

    kind: str
    title: str
    text: str


def status(records: ReportData) -> Status:
    """The status of the run: running, finished, stopped or failed."""
    reason, done = records.summary.get("exit_reason"), len(records.history)
    progress = f"{done} of {records.config.get('epochs')} epochs done"
    if reason is None:
        return Status("running", "Running", f"{progress} when this page was written")
    if reason == "early stop":
        return Status("good", "Stopped early", f"{progress}: no improvement for --patience epochs")
    if reason in FINISHED:
        return Status("good", "Done", progress)
    if str(reason).startswith("preempted"):
        return Status(
            "stopped",
            "Preempted",
            f"{str(reason).removeprefix('preempted ')}; {progress}. The same command continues from there.",
        )
    return Status("bad", "Failed", f"{reason} ({progress})")


@dataclass(frozen=True)
class SizeResult:
    """Metrics of the best model at one size.

    `splits` holds, per split, the task's metrics, ece from 0 to 1, and `unreadable`, the number of images left out, if
    any. `place` is the index of the scale, which determines its color.
    """

    name: str
    place: int
    splits: dict[str, dict[str, float]]
    latency_ms: float | None
    norm_from: int | None


def rows(records: ReportData) -> list[SizeResult]:
    """A row for each size at which the best model was evaluated."""
    best, history, found = records.best_row, records.history, []
    for place, name in enumerate(records.scales):
        splits = {split: _known(records.summary.get(split, {}).get(name, {})) for split in SPLITS}
        if not splits["val"] and best is not None:  # not evaluated at the end, or not yet
            wanted = (*(metric.name for metric in records.metrics), "unreadable")
            weights = raw_column if records.best_is_raw else str
            columns = {metric: history.get(weights(eval_column(name, metric))) for metric in wanted}
            now = {metric: float(values[best]) for metric, values in columns.items() if values is not None}
            splits["val"] = {metric: value for metric, value in now.items() if np.isfinite(value)}
        for split, predictions in records.predictions.items():
            if splits[split] and predictions.table.has_classes and name in predictions.table.specs:
                splits[split].setdefault("ece", calibration_error(predictions.table.of(name)))  # of an earlier version
        splits = {split: metrics for split, metrics in splits.items() if metrics}
        if splits:
            latency = records.summary.get("latency_ms", {}).get(name)
            norm_from = splits["val"].get("norm_from")
            found.append(SizeResult(name, place, splits, latency, norm_from and int(norm_from)))
    return found


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without those that are undefined on these images."""
    return {name: value for name, value in values.items() if value is not None}


class TimePart(NamedTuple):
    """The time of one activity; `share` is its part of the wall time, 0 to 1."""

    name: str
    seconds: float
    share: float


def time_parts(history: History) -> list[TimePart]:
    """Wall time by activity, as detailed as it was recorded."""
    wall, train = history.get("wall_seconds"), history.per_epoch("train_seconds")
    if wall is None or train is None or not wall[-1] > 0:
        return []
    waiting = history.get("data_wait_share")
    waited = float(np.nansum(waiting * train)) if waiting is not None else None
    parts = [("waiting for data", waited)] if waited is not None else []
    parts.append(
        ("forward and backward" if waited is not None else "training", float(np.nansum(train)) - (waited or 0))
    )
    for name, column in (("evaluation", "eval_seconds"), ("checkpoints", "save_seconds")):
        spent = history.get(column)
        if spent is not None:
            parts.append((name, float(np.nansum(spent))))
    total = max(float(wall[-1]), sum(seconds for _, seconds in parts))
    rest = total - sum(seconds for _, seconds in parts)
    parts.append(("the rest" if len(parts) > 1 else "evaluation, checkpoints and the rest", rest))
    return [TimePart(name, seconds, seconds / total) for name, seconds in parts if seconds > 0.001 * total]


class Value(NamedTuple):
    """One setting; `changed`: it differs from the default."""

    name: str
    text: str
    changed: bool


def settings_of(config: dict[str, Any]) -> list[tuple[str, list[Value]]]:
    """Every setting by section, those of the strategy first."""
    defaults = _defaults(config)
    sections = [(section.__name__, tuple(section.__annotations__)) for section in SECTIONS]
    known = {name for _, names in sections for name in names}
    strategy = tuple(name for name in config if name not in known)
    return [
        (title, values)
        for title, names in (("Scales", strategy), *sections)
        if (
            values := [
                Value(name, _plain(config[name]), name in defaults and config[name] != defaults[name])
                for name in names
                if name in config
            ]
        )
    ]


# Settings that a run fills in if unset: config.yaml does not show whether the user set them.
FILLED_IN = ("amp", "cache", "img_size", "select_by", "synthetic_count", "synthetic_size")


def _defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The default of each setting, given the others; settings without a known default are left out."""
    chosen = make_settings({name: value for name, value in config.items() if name in Settings.model_fields})
    of_settings = {
        name: field.get_default(call_default_factory=True, validated_data=dict(chosen))
        for name, field in Settings.model_fields.items()
        if name not in FILLED_IN
    }
    try:
        kind = look_up("strategy", "--strategy", str(config.get("strategy")))
    except InputError:  # a user's own strategy: only its class holds its defaults
        return of_settings
    of_strategy = {field.name: field.default for field in fields(kind) if field.default is not MISSING}
    usual = SingleScale if kind is SingleScale else Simultaneous  # the recipe's default
    scales = list(default_scales(config.get("data_root", SYNTHETIC)))
    return {**of_settings, **of_strategy, "strategy": usual.name, "scales": scales}


def _plain(value: Any) -> str:
    if value is None or value in ({}, []):
        return "unset"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, dict):
        return " ".join(f"{key}={part}" for key, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
