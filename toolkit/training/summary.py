"""How a run ended, with what it cost and what it ran on."""

import contextlib
import logging
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from toolkit.config.cli import EXIT_CODES, tell
from toolkit.models.evaluator import Score, columns
from toolkit.runs import report
from toolkit.system.errors import NonFiniteError, PeerError, PreemptedError, SaveError
from toolkit.training import device
from toolkit.training.monitor import peak_memory_gb
from toolkit.training.setup import Run

log = logging.getLogger(__name__)

PACKAGES = ("toolkit", "torch", "torchvision", "accelerate", "timm")
KNOWN_TO_ALL = NonFiniteError | SaveError | PreemptedError  # ends that all processes have agreed on


def summarize(run: Run, outcome: dict[str, Any]) -> dict[str, Any]:
    """What summary.json says of a run that ended as `outcome` tells."""
    progress, accelerator = run.progress, run.accelerator
    rows, now = run.directory.metrics(), peak_memory_gb(accelerator.device)
    peaks = peaks_by_sizes(rows)
    return {
        **outcome,
        "strategy": str(run.strategy),
        "selection": run.strategy.selection().name,
        "best_epoch": progress.best.get("epoch"),
        "best_top1": progress.best_top1,
        "final": {name: _number(value) for name, value in rows[-1].items()} if rows else {},
        "steps": progress.step,
        "images_seen": progress.images_seen,
        "optimizer_updates": progress.optimizer_updates,
        "rollbacks": progress.rollbacks,
        "inexact_resumes": progress.inexact,
        "train_seconds": progress.train_seconds,
        "save_seconds": run.saver.lap() + sum(float(row.get("save_seconds") or 0) for row in rows),
        "wall_seconds": progress.wall_seconds,
        **run.cost(),
        "images_per_s": progress.images_seen / max(progress.train_seconds, 1e-9),
        "peak_memory_gb": max(now, *peaks.values()) if peaks else now,
        "peak_memory_gb_by_sizes": peaks,
        "processes": accelerator.num_processes,
        "device": str(accelerator.device.type),
        "precision": accelerator.mixed_precision,
        "cloud": str(run.cloud),
        "versions": {"python": sys.version.split()[0], **{package: _version(package) for package in PACKAGES}},
    }


def final_metrics(scores: Mapping[str, Mapping[str, Score]]) -> dict[str, float]:
    """What a dashboard is told at the end, of scores by split: the best model on val, all figures of other splits."""
    val = {
        f"best/{spec}/{metric}": value
        for spec, score in scores["val"].items()
        for metric, value in (("top1", score.top1), ("top5", score.top5))
    }
    others = {split: columns(scores[split]) for split in scores if split != "val"}
    return val | {f"{split}/{column}": value for split, found in others.items() for column, value in found.items()}


def peaks_by_sizes(rows: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """Most memory held in training epochs at each of the sizes, GB, of rows of metrics.csv."""
    peaks: dict[str, float] = {}
    for row in rows:
        if row.get("peak_memory_gb"):
            peaks[row["sizes"]] = max(float(row["peak_memory_gb"]), peaks.get(row["sizes"], 0.0))
    return peaks


def _number(value: str) -> Any:
    """A cell of metrics.csv as a number, where it is one; None where it is empty."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(value)
    return value or None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a source tree on the path, without an installation
        return "not installed"


def clear_summary(run: Run) -> None:
    """Drop what an earlier start said of its end, which is not this one's."""
    if not run.accelerator.is_main_process:
        return
    run.directory.remove_summary()
    if (run.directory.path / report.PAGE).exists():
        report.refresh(run.directory.path, at_once=True)


def record_failure(run: Run, error: Exception, cause: Exception | None) -> None:
    """Have summary.json say, once, why a run ended badly, and part from the other processes. `cause` None: by a bug."""
    known_to_all = isinstance(cause, KNOWN_TO_ALL)  # then rank 0 writes
    told = run.directory.exit_reason() if isinstance(cause, PeerError) else None
    if not told and (run.accelerator.is_main_process or not known_to_all):
        reason = str(cause or f"failed: {type(error).__name__}: {error}").partition("\n")[0]
        try:
            run.directory.write_summary(summarize(run, {"exit_reason": reason}))
        except OSError as failure:  # of the full disk that may be the cause
            log.warning("summary.json could not be written: %s: %s", failure.filename, failure.strerror)
    if cause is not None and not known_to_all:
        device.leave()  # the others notice now, and find the cause told above
    if run.accelerator.is_main_process:
        report.refresh(run.directory.path, at_once=True)
    run.tracking.finish(EXIT_CODES.get(type(cause or error), 1))
    if known_to_all:
        _leave_together(run, cause)


def _leave_together(run: Run, cause: Exception | None) -> None:
    """Wait until all have said why and rank 0 closed its records: when one leaves, the launcher ends the others."""
    if cause is not None and run.accelerator.num_processes > 1:
        tell(cause)
    if isinstance(cause, PreemptedError):
        run.preemption.saved()
    with contextlib.suppress(RuntimeError):  # another process is gone already: what there is to say is said
        run.accelerator.wait_for_everyone()
