"""Accuracy and cost of a run's best model at any size, on labeled images."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from toolkit.config.arguments import checked
from toolkit.config.checks import check_columns, check_evaluate
from toolkit.config.choices import Split
from toolkit.models import recalibration
from toolkit.models.cost_matrix import read_costs
from toolkit.models.evaluation import Evaluation
from toolkit.models.evaluator import Evaluator
from toolkit.models.intervals import RESAMPLES, intervals
from toolkit.models.metrics import COLUMNS
from toolkit.models.source import Model
from toolkit.runs import class_values, saved_predictions
from toolkit.runs.mirror.copies import find_run, results_folder
from toolkit.strategies.base import EvalSpec, at_size
from toolkit.system import files, host
from toolkit.system.errors import InputError
from toolkit.system.places import expanded
from toolkit.tools.cascade_report import CascadeOptions, CascadeReport, report_cascade
from toolkit.tools.evaluate_outputs import write_files
from toolkit.tools.evaluation_report import EvaluationReport, Intervals, Recalibration
from toolkit.tools.inference import InferenceOptions, start_evaluator
from toolkit.tools.inference_cost import InferenceCost, measure_cost
from toolkit.tools.loaded_run import LoadedRun, load_run
from toolkit.tools.run_data import EvaluationData, evaluation_data
from toolkit.training import device

log = logging.getLogger(__name__)

UNREADABLE, PREDICTIONS = "unreadable.jsonl", "predictions"
LARGE = 10**6  # images x classes, from which on intervals take more than a moment


@checked("Evaluate")
def evaluate(
    run: str | Path,
    *,
    scales: Sequence[int] | None = None,
    average: bool = False,
    flip: bool = False,
    recalibrate: bool = False,
    cascade: Sequence[int] | None = None,
    confidence: float | None = None,
    max_loss: float | None = None,
    data_root: str | None = None,
    split: Split | None = None,
    label_column: str | None = None,
    hf_config: str | None = None,
    batch_size: int = 64,
    num_workers: int | None = None,
    amp: bool | None = None,
    alone: bool = False,
    model: Model | None = None,
    output_dir: str | Path | None = None,
    data: Mapping[str, Any] | None = None,
    bootstrap: int = RESAMPLES,
    cost_matrix: str | Path | None = None,
) -> EvaluationReport:
    """Measure the run's best model. The flags of `toolkit evaluate` describe the arguments.

    `model`: as in `train`, for a run that was trained with a model of the user's own. `data`: map-style data sets by
    split, in place of `data_root`; the run's own if they hold its images. Writes evaluation.txt, .json, .svg and
    predictions/ to `output_dir` (None: RUN/evaluation; NAME-evaluation here for a run at a URL). Raises InputError.
    """
    check_evaluate(scales, cascade, confidence, max_loss)
    columns = check_columns(data_root, label_column, hf_config)
    options = InferenceOptions(batch_size, num_workers, amp, flip, alone)
    cascaded = CascadeOptions(tuple(cascade or ()), confidence, max_loss)
    directory = find_run(run)
    folder = results_folder(run, directory, "evaluation") if output_dir is None else expanded(output_dir)
    loaded = load_run(directory, [*(scales or ()), *cascaded.sizes], model=model)
    _check_cascade(cascaded, loaded)
    specs, costs_of_errors = _specs(loaded, scales, cascaded.sizes, average), _cost_matrix(loaded, cost_matrix)
    _make_folder(folder)
    evaluator = start_evaluator(loaded, options, folder / UNREADABLE)
    try:
        images = evaluation_data(loaded, data_root, split, data, columns, needs_own=recalibrate or cascaded.needs_val)
        untrained = _untrained(loaded, evaluator, specs) if recalibrate else ()
        _start_writing(evaluator.accelerator, folder)
        recalibrated = _recalibrate(loaded, evaluator, images, untrained)
        costs = {spec.name: measure_cost(evaluator, spec, loaded.gmacs) for spec in specs}
        largest = max(len(of_split.index) for of_split in images.images.values())
        whole = replace(evaluator, costs=costs_of_errors).measuring_all(largest, len(specs), keep=bootstrap > 0)
        evaluations, made = _evaluate_all(whole, specs, images, bootstrap)
        cascades = _cascade(cascaded, evaluator, specs, images, costs, evaluations)
        if evaluator.accelerator.is_main_process:
            _write_predictions(folder / PREDICTIONS, images, evaluations, loaded.classes)
        machine = _machine(evaluator.accelerator)
    finally:
        device.stop()
    report = EvaluationReport(
        loaded,
        options,
        folder,
        machine,
        specs,
        costs,
        evaluations,
        recalibrated,
        cascades,
        whole.extra,
        made,
        bootstrap,
    )
    if host.is_main_process(alone):
        write_files(report)
    return report


def _check_cascade(cascaded: CascadeOptions, loaded: LoadedRun) -> None:
    if cascaded.sizes and loaded.task.columns(loaded.classes) != COLUMNS:
        raise InputError(f"--cascade: evaluate measures its top-1, which {type(loaded.task).__name__} does not have")


def _make_folder(folder: Path) -> None:
    """Make the folder of the results; raises InputError if it is a run's own."""
    if (folder / "config.yaml").exists():
        raise InputError(f"--output-dir {folder} is a run, whose own predictions/ would be overwritten: give another")
    files.make_folder(folder)


def _specs(
    loaded: LoadedRun, scales: Sequence[int] | None, cascade: Sequence[int], average: bool
) -> tuple[EvalSpec, ...]:
    """The specs to evaluate: each size, and averages over several. Raises InputError if --average has only one size."""
    sizes = tuple(sorted({*(scales or loaded.sizes)}))
    specs = [at_size(size) for size in sorted({*sizes, *cascade})]
    if scales is None:
        specs += [spec for spec in loaded.strategy.eval_specs() if spec not in specs]
    if average:
        if len(sizes) == 1:
            raise InputError(f"--average would be ignored with one size, {sizes[0]} px: give more --scales or drop it")
        averaged = EvalSpec(f"{'+'.join(map(str, sizes))}px", sizes)
        specs += [averaged] if averaged not in specs else []
    return tuple(specs)


def _cost_matrix(loaded: LoadedRun, given: str | Path | None) -> np.ndarray | None:
    """The costs in the given file, else those that the run was trained with; raises InputError."""
    if given is None:
        return read_costs(loaded.directory.costs, loaded.classes) if loaded.settings.cost_matrix else None
    if not any(metric.costs for metric in loaded.task.extra_metrics):
        raise InputError(
            f"--cost-matrix {given} would be ignored: {loaded.directory.path} has the task {loaded.settings.task}, "
            "which has no single class an image: drop it"
        )
    return read_costs(expanded(given), loaded.classes)


def _evaluate_all(
    evaluator: Evaluator, specs: Sequence[EvalSpec], data: EvaluationData, resamples: int
) -> tuple[dict[str, Evaluation], Intervals]:
    """The evaluation of each split, and intervals of its metrics (on the main process)."""
    metrics, evaluations = (*evaluator.task.metrics, *evaluator.extra), dict[str, Evaluation]()
    found: Intervals = {}
    for split, images in data.images.items():
        evaluation = evaluator.evaluate(images, specs)
        if len(images.index) * len(evaluator.classes) > LARGE and evaluation.images:
            log.info("intervals %s: %d bootstrap samples of %d images", split, resamples, len(images.index))
        found[split] = {
            spec: intervals(evaluator.task, metrics, evaluation.scores[spec].values, values, resamples)
            for spec, values in evaluation.images.items()
        }
        evaluations[split] = replace(evaluation, images={})  # which may be large
    return evaluations, found


def _untrained(loaded: LoadedRun, evaluator: Evaluator, specs: Sequence[EvalSpec]) -> tuple[int, ...]:
    """Sizes without their own normalization, which --recalibrate estimates; raises InputError if there are none."""
    sizes = recalibration.unseen(evaluator, sorted({size for spec in specs for size in spec.sizes}))
    if not sizes:
        known = ", ".join(map(str, evaluator.model.policy.scales))
        raise InputError(
            f"--recalibrate would be ignored: the statistics are those of {known} px, and no other size is asked for, "
            f"or {loaded.settings.model_name} has no BatchNorm; drop it"
        )
    return tuple(sizes)


def _start_writing(accelerator: Accelerator, folder: Path) -> None:
    """Delete the list of unreadable images of an earlier evaluation; called once all checks have passed."""
    if accelerator.is_main_process:
        (folder / UNREADABLE).unlink(missing_ok=True)
    accelerator.wait_for_everyone()


def _recalibrate(
    loaded: LoadedRun, evaluator: Evaluator, data: EvaluationData, sizes: tuple[int, ...]
) -> Recalibration:
    if not sizes:
        return Recalibration()
    images = recalibration.recalibrate(evaluator, data.own["train"], sizes, loaded.settings.seed)
    return Recalibration(sizes, images)


def _cascade(
    options: CascadeOptions,
    evaluator: Evaluator,
    specs: Sequence[EvalSpec],
    data: EvaluationData,
    costs: Mapping[str, InferenceCost],
    evaluations: Mapping[str, Evaluation],
) -> CascadeReport | None:
    def evaluate_val() -> Evaluation:
        if data.is_own and "val" in evaluations:
            return evaluations["val"]
        return evaluator.evaluate(data.own["val"], specs)

    gmacs = {name: cost.gmacs for name, cost in costs.items()}
    return report_cascade(options, gmacs, evaluations, evaluate_val) if options.sizes else None


def _write_predictions(
    folder: Path, data: EvaluationData, evaluations: dict[str, Evaluation], classes: Sequence[str]
) -> None:
    saved_predictions.clear(folder)
    for split, evaluation in evaluations.items():
        saved_predictions.write(folder, split, evaluation.predictions, data.images[split])
        class_values.write(folder, split, evaluation.by_class, classes)


def _machine(accelerator: Accelerator) -> str:
    precision = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[accelerator.mixed_precision]
    threads = torch.get_num_threads()
    return f"{accelerator.device.type}, {accelerator.num_processes} process(es), {threads} threads each, {precision}"
