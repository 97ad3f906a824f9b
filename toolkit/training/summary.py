"""The end of a run, after success or failure: final evaluation, and summary.json with cost and environment."""

import contextlib
import logging
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from toolkit.models.evaluation import Score, brief
from toolkit.runs import best_model, class_values, report, saved_predictions
from toolkit.runs.metrics_row import MetricsRow, eval_columns, number
from toolkit.strategies.base import Metric
from toolkit.system import storage
from toolkit.system.errors import NonFiniteError, PeerError, PreemptedError, SaveError
from toolkit.system.exit_codes import exit_code_of, report_once
from toolkit.training import device
from toolkit.training.main_work import on_main
from toolkit.training.monitor import peak_memory_gb
from toolkit.training.run import Run

log = logging.getLogger(__name__)

PACKAGES = ("toolkit", "torch", "torchvision", "accelerate", "timm")
SHOWN = 3
KNOWN_TO_ALL = NonFiniteError | SaveError | PreemptedError  # errors that all ranks have agreed on


def conclude(run: Run) -> dict[str, Any]:
    """Evaluate the best model at every scale on val and, if there is one, test; write and return the summary."""
    progress, records, specs = run.state.progress, run.records, run.strategy.eval_specs()
    main, directory = run.accelerator.is_main_process, run.records.directory
    if not progress.optimizer_updates:
        log.warning("none of the %d steps moved the weights: all overflowed in float16; give --no-amp", progress.step)
    records.saver.join(progress.step)
    run.control.consensus.begin()
    weights, metadata = best_model.load(directory.best)
    largest = max(len(images.index) for images in run.data.evaluated.values())
    evaluator = run.evaluator.choosing(metadata.get("chosen", {})).measuring_all(largest, len(specs))
    evaluator.load(weights)
    averaging = f", {metadata['weights']} weights" if "weights" in metadata else ""
    evaluations = {}
    for split, images in run.data.evaluated.items():
        evaluations[split] = evaluator.evaluate(images, specs)
        if main:
            saved_predictions.keep(directory.predictions, split, evaluations[split].predictions, images)
            class_values.keep(directory.predictions, split, evaluations[split].by_class, evaluator.classes)
    for split, evaluation in evaluations.items():
        log.info("%s, best model (epoch %s)%s", split, metadata["epoch"] + 1, averaging)
        for spec, score in evaluation.scores.items():
            log.info("  %6s  %s", spec, score.line(shown(run)))
    latency_ms = evaluator.latency_ms(specs) if main else {}
    for name, raw in [*run.state.weights.states().items()][1:]:
        evaluator = run.evaluator.choosing(metadata.get("chosen", {}))
        evaluator.load(raw)
        evaluations[name] = evaluator.evaluate(run.data.evaluated["val"], specs)
        log.info("val, weights of the last step without averaging: %s", brief(evaluations[name].scores, run.select_by))
    run.control.preemption.training_ends()
    progress.wall_seconds += run.clocks.wall.lap()
    records.tracking.conclude(
        final_metrics({name: evaluation.scores for name, evaluation in evaluations.items()}),
        progress,
        partial(saved_predictions.read, directory.predictions, "val"),
    )
    summary = summarize(
        run,
        {
            "exit_reason": "early stop" if progress.stopped_early else "done",
            "latency_ms": latency_ms,
            "data": data_digests(run),
            **{name: evaluation.to_json(run.evaluator.classes) for name, evaluation in evaluations.items()},
        },
    )
    if main:
        directory.write_summary(summary)
        report.refresh(directory.path, at_once=True)
    log.info("wrote     %s: report.html, config.yaml, metrics.csv, summary.json, best/, checkpoints/", directory.path)
    return summary


def data_digests(run: Run) -> dict[str, dict[str, Any]]:
    """Number and hash of the images of each evaluated split, so that runs on the same images can be found."""
    return {
        split: {"images": len(images.index), "sha256": images.index.digest()}
        for split, images in run.data.evaluated.items()
    }


def summarize(run: Run, outcome: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of summary.json; `outcome`: its first entries, including the exit reason."""
    progress, accelerator = run.state.progress, run.accelerator
    rows, now = run.records.directory.metrics(), peak_memory_gb(accelerator.device)
    peaks = peaks_by_sizes(rows)
    return {
        **outcome,
        "strategy": str(run.strategy),
        "selection": run.strategy.selection().name,
        "best_epoch": progress.best.get("epoch"),
        "best_weights": progress.best_weights,
        **({"chosen": progress.best["chosen"]} if "chosen" in progress.best else {}),
        "select_by": run.select_by.name,
        f"best_{run.select_by.name}": progress.best_score,
        "final": final_row(rows),
        "steps": progress.step,
        "images_seen": progress.images_seen,
        "optimizer_updates": progress.optimizer_updates,
        "rollbacks": progress.rollbacks,
        "inexact_resumes": progress.inexact,
        "train_seconds": progress.train_seconds,
        "save_seconds": run.records.saver.lap() + sum(row.metrics.get("save_seconds", 0.0) for row in rows),
        "wall_seconds": progress.wall_seconds,
        **run.cost(),
        "images_per_s": progress.images_seen / max(progress.train_seconds, 1e-9),
        "peak_memory_gb": max(now, *peaks.values()) if peaks else now,
        "peak_memory_gb_by_sizes": peaks,
        "processes": accelerator.num_processes,
        "device": str(accelerator.device.type),
        "threads": torch.get_num_threads(),
        "precision": accelerator.mixed_precision,
        "cloud": str(run.control.cloud),
        "versions": {"python": sys.version.split()[0], **{package: _version(package) for package in PACKAGES}},
    }


def final_row(rows: Sequence[MetricsRow]) -> dict[str, Any]:
    """The last epoch's values by column; None in columns that only earlier epochs have."""
    if not rows:
        return {}
    last = rows[-1]
    sizes = number(last.sizes_name) or last.sizes_name
    return {**{name: None for row in rows for name in row.columns()}, **last.columns(), "sizes": sizes}


def shown(run: Run) -> list[Metric]:
    """The metrics of the console: the task's first three, and the one that selects."""
    first = [*run.parts.task.metrics[:SHOWN]]
    return first if run.select_by in first else [*first, run.select_by]


def final_metrics(scores: Mapping[str, Mapping[str, Score]]) -> dict[str, float]:
    """Final metrics for the dashboard: all but the loss of the best model on val, all metrics on other splits."""
    val = {
        f"best/{spec}/{metric}": value
        for spec, score in scores["val"].items()
        for metric, value in score.values.items()
        if metric != "loss"
    }
    others = {split: eval_columns(scores[split]) for split in scores if split != "val"}
    return val | {f"{split}/{column}": value for split, found in others.items() for column, value in found.items()}


def peaks_by_sizes(rows: Sequence[MetricsRow]) -> dict[str, float]:
    """Peak memory of training epochs, GB, by their sizes."""
    peaks: dict[str, float] = {}
    for row in rows:
        if "peak_memory_gb" in row.metrics:
            peaks[row.sizes_name] = max(float(row.metrics["peak_memory_gb"]), peaks.get(row.sizes_name, 0.0))
    return peaks


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # imported from a source tree that is not installed
        return "not installed"


def clear_summary(run: Run) -> None:
    """Remove the summary of an earlier start of this run, whose exit reason no longer holds."""
    if not run.accelerator.is_main_process:
        return
    run.records.directory.remove_summary()
    if (run.records.directory.path / report.PAGE).exists():
        report.refresh(run.records.directory.path, at_once=True)


def record_failure(run: Run, error: Exception, cause: Exception | None) -> None:
    """Write why the run failed into summary.json, once, and disconnect from the other ranks.

    `cause`: the expected error; None for a bug.
    """
    known_to_all = isinstance(cause, KNOWN_TO_ALL)  # then rank 0 writes the summary
    if run.accelerator.is_main_process or not known_to_all:
        _write_reason(run, error, cause)
    if cause is not None and not known_to_all:
        device.leave()  # the other ranks notice only now, and find the reason written above
    if run.accelerator.is_main_process:
        report.refresh(run.records.directory.path, at_once=True)
    run.records.tracking.finish(exit_code_of(cause or error))
    run.records.saver.close()
    if known_to_all:
        _leave_together(run, cause)
    elif run.accelerator.is_main_process:
        _warn(run.records.place.settle())


def _warn(reason: str) -> None:
    if reason:
        log.warning("%s", reason)


def record_loss(run: Run, cause: Exception) -> None:
    """The same where another process is gone, and the main thread may be waiting for it; called in another thread."""
    run.records.saver.close()
    _write_reason(run, cause, cause)
    if run.accelerator.is_main_process:
        report.refresh(run.records.directory.path, at_once=True)
    run.records.tracking.finish(exit_code_of(cause))
    if run.accelerator.is_main_process:
        _warn(run.records.place.settle())
    run.records.directory.lock.release()


def _write_reason(run: Run, error: Exception, cause: Exception | None) -> None:
    """Write summary.json, unless another process is the reason and has written it."""
    if isinstance(cause, PeerError) and run.records.directory.exit_reason():
        return
    stopped = cause.exit_reason if isinstance(cause, PreemptedError) else None
    reason = str(stopped or cause or f"failed: {type(error).__name__}: {error}").partition("\n")[0]
    try:
        run.records.directory.write_summary(summarize(run, {"exit_reason": reason}))
    except OSError as failure:  # the cause may be a full disk
        log.warning("summary.json could not be written: %s", storage.line(failure))


def _leave_together(run: Run, cause: Exception | None) -> None:
    """Wait until all ranks printed the error and rank 0 closed its records: the launcher kills the rest on an exit."""
    if cause is not None and run.accelerator.num_processes > 1:
        report_once(cause)
    with contextlib.suppress(RuntimeError):
        _warn(on_main(run.accelerator, run.records.place.settle))
    if isinstance(cause, PreemptedError):
        run.control.preemption.saved()
    with contextlib.suppress(RuntimeError):  # another rank is gone already: everything is reported
        run.accelerator.wait_for_everyone()
