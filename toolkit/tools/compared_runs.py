"""Runs to compare: finished, with the same classes, and with predictions for the same images."""

import logging
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from toolkit.models.classification import Classification
from toolkit.models.cost_matrix import read_costs
from toolkit.models.metrics import COLUMNS, Predictions, PredictionTable
from toolkit.runs import saved_predictions
from toolkit.runs.directory import FINISHED, RunDirectory
from toolkit.strategies.base import Metric, at_size
from toolkit.strategies.measures import ImageValues
from toolkit.system.errors import InputError
from toolkit.tools.comparison import TITLES
from toolkit.tools.inference import InferenceOptions, start_evaluator
from toolkit.tools.loaded_run import load_run, read_config
from toolkit.tools.run_data import evaluation_data
from toolkit.training import device

log = logging.getLogger(__name__)

OF_SAVED = ("worst_class_accuracy", "ece", "expected_cost")  # metrics that saved predictions are enough for


class WantedImages(NamedTuple):
    """The images to compare on: a split of each run's own data, or of `data_root`.

    `split` None, with `data_root` only: test, or the only one there.
    """

    split: str | None
    data_root: str | None


class Predicted(NamedTuple):
    """The images of a split by name, and a run's predictions for them.

    `images`: all that an evaluation tells of those that could be read, by eval spec; empty for saved predictions.
    """

    split: str
    names: Sequence[str]
    table: PredictionTable
    images: Mapping[str, ImageValues] = {}


@dataclass(frozen=True)
class FinishedRun:
    """A run, and the predictions for the wanted images that it saved when it ended; None if there are none."""

    directory: RunDirectory
    classes: tuple[str, ...]
    saved: Predicted | None

    @property
    def path(self) -> Path:
        return self.directory.path

    def costs(self) -> np.ndarray | None:
        """The cost matrix that the run was trained with."""
        return read_costs(self.directory.costs, self.classes) if self.directory.costs.exists() else None

    def specs(self) -> tuple[str, ...]:
        """Names of the eval specs that the run reports, such as `64px`."""
        if self.saved:
            return self.saved.table.specs
        _, strategy = read_config(self.directory.config())
        return tuple(spec.name for spec in strategy.eval_specs())


def open_finished(path: Path, wanted: WantedImages) -> FinishedRun:
    """Raises InputError if there is no run, if it is not finished, or if its images do not have one class each."""
    directory = RunDirectory(path)
    if not directory.config():
        raise InputError(f"{path}: not a run directory: there is no config.yaml in it")
    if (reason := directory.exit_reason()) not in FINISHED:
        raise InputError(f"{path}: not finished ({reason or 'no summary.json'}): run the command that started it again")
    saved = None
    if wanted.split is not None and wanted.data_root is None:
        found = saved_predictions.read(directory.predictions, wanted.split)
        saved = Predicted(wanted.split, found.names, found.table) if found else None
    if saved and not saved.table.has_classes:
        raise _not_classification(path)
    return FinishedRun(directory, directory.classes(), saved)


def _not_classification(path: Path) -> InputError:
    return InputError(f"{path}: its task is not classification; compare needs images with one class each")


def check_classes(baseline: FinishedRun, other: FinishedRun) -> None:
    """Raise InputError unless class names and their order are the same."""
    if baseline.classes == other.classes:
        return
    unknown, missing = {*other.classes} - {*baseline.classes}, {*baseline.classes} - {*other.classes}
    parts = [f"{name!r} is no class of {baseline.path}" for name in sorted(unknown)[:3]]
    parts += [f"{name!r} is missing" for name in sorted(missing)[:3]]
    raise InputError(f"{other.path}: other classes than {baseline.path}: {', '.join(parts) or 'in another order'}")


def selected_by_both(baseline: FinishedRun, other: FinishedRun) -> Metric | None:
    """The metric that selected both runs' best models, if no comparison has it anyway."""
    configs = [run.directory.config() for run in (baseline, other)]
    names = {config["select_by"] for config in configs}
    if len(names) > 1 or names <= TITLES.keys() or any(config["task"] != "classification" for config in configs):
        return None
    metric = Classification.metric(names.pop())
    if not metric.costs:
        return metric
    ours, theirs = baseline.costs(), other.costs()
    return metric if ours is not None and theirs is not None and np.array_equal(ours, theirs) else None


def needs_all(metric: Metric) -> bool:
    """Whether saved predictions are not enough to compute it."""
    return metric.name not in OF_SAVED


def values_at(run: FinishedRun, predicted: Predicted, spec: str, positions: np.ndarray) -> ImageValues:
    """What metrics are computed from, of the images at `positions`."""
    table = predicted.table
    if spec in predicted.images:
        return predicted.images[spec].at(np.cumsum(table.readable)[positions] - 1)
    record = table.values[table.specs.index(spec)][:, positions]
    return ImageValues(table.labels[positions], record, len(run.classes), costs=run.costs())


def predictions(run: FinishedRun, specs: Sequence[str], wanted: WantedImages, whole: bool = False) -> Predicted:
    """The saved predictions if they hold all `specs`; else, or for the `whole`, those of an evaluation of the model."""
    if run.saved and not whole and {*specs} <= {*run.saved.table.specs}:
        return run.saved
    _, strategy = read_config(run.directory.config())
    own = {spec.name: spec for spec in strategy.eval_specs()}
    chosen = [own.get(name) or at_size(int(name.removesuffix("px"))) for name in specs]
    loaded = load_run(run.path, [size for spec in chosen for size in spec.sizes])
    if loaded.task.columns(loaded.classes) != COLUMNS:
        raise _not_classification(run.path)
    with tempfile.TemporaryDirectory() as folder:
        evaluator = start_evaluator(loaded, InferenceOptions(alone=True), Path(folder, "unreadable.jsonl"))
        log.info("evaluating %s at %s", run.path, ", ".join(specs))
        try:
            split = wanted.split
            found = evaluation_data(loaded, wanted.data_root, split, None, {}, needs_own=False).images  # type: ignore[arg-type]
            name = "test" if "test" in found else next(iter(found))
            if whole:
                evaluator = replace(evaluator, costs=run.costs())
                evaluator = evaluator.measuring_all(len(found[name].index), len(chosen), keep=True)
            evaluation = evaluator.evaluate(found[name], chosen)
        finally:
            device.stop()
    return Predicted(name, tuple(found[name].index.names), evaluation.predictions, evaluation.images)


class Pair(NamedTuple):
    """Positions of the same images in two tables, of those that both runs could read; `left_out`: of the others."""

    first: np.ndarray
    second: np.ndarray
    left_out: int


def pair_images(baseline: FinishedRun, first: Predicted, other: FinishedRun, second: Predicted) -> Pair:
    """Find the same images; raises InputError unless both runs have exactly the same, with the same labels."""
    shared = (Counter(first.names) & Counter(second.names)).total()
    different = f"{other.path}: other {second.split} images than {baseline.path}"
    if {len(first.names), len(second.names)} != {shared}:
        raise InputError(
            f"{different}: {shared} are in both, of {len(second.names)} and {len(first.names)}; "
            "--data-root DATA evaluates both on the same"
        )
    # By name; images of one name keep their order.
    one, two = (np.array(sorted(range(shared), key=names.__getitem__)) for names in (first.names, second.names))
    if changed := int((first.table.labels[one] != second.table.labels[two]).sum()):
        raise InputError(
            f"{different}: {changed} of {shared} have another label; --data-root DATA evaluates both on it"
        )
    digests = [run.directory.summary().get("data", {}).get(first.split) for run in (baseline, other)]
    if baseline.saved and other.saved and all(digests) and digests[0] != digests[1]:
        raise InputError(
            f"{different}: the same names, but other sizes or order; --data-root DATA evaluates both on it"
        )
    readable = first.table.readable[one] & second.table.readable[two]
    if not readable.any():
        raise InputError(f"{different}: no image could be read by both")
    return Pair(one[readable], two[readable], int((~readable).sum()))


def at_positions(table: PredictionTable, spec: str, positions: np.ndarray) -> Predictions:
    """The predictions of one eval spec for the images at `positions`."""
    row = table.specs.index(spec)
    return Predictions(table.labels[positions], table.predicted[row, positions], table.confidence[row, positions])
