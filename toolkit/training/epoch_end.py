"""The end of an epoch: evaluate, select, record, save."""

import logging
from collections.abc import Mapping

from toolkit.data.loading.sampler import Epoch
from toolkit.models.evaluator import brief
from toolkit.runs import report
from toolkit.runs.metrics_row import MetricsRow, eval_columns
from toolkit.training.divergence import check_finite
from toolkit.training.early_stopping import select
from toolkit.training.resume import capture
from toolkit.training.run import Run

log = logging.getLogger(__name__)


def close_epoch(run: Run, epoch: Epoch, metrics: Mapping[str, float]) -> None:
    """Evaluate, select, record and save; raises NonFiniteError before all that if a value was not finite."""
    consensus, clocks, records = run.control.consensus, run.clocks, run.records
    check_finite(run, consensus.poll(force=True).first_bad)
    progress, strategy = run.state.progress, run.strategy
    specs = strategy.eval_specs() if epoch.closes_phase else (strategy.selection(),)
    consensus.begin()
    progress.wall_seconds += clocks.wall.lap()
    run.evaluator.load(run.state.weights.state())
    scores = run.evaluator.score(run.data.evaluated["val"], specs)
    progress.wall_seconds += (eval_seconds := clocks.wall.lap())
    score, counts = scores[strategy.selection().name], epoch.phase is run.plan.patience_phase
    improved = select(run.settings, progress, run.select_by, score[run.select_by.name], counts)
    if improved:
        progress.best = {"epoch": epoch.number, "step": progress.step, **eval_columns(scores)}
    progress.epoch = epoch.number + 1
    row = MetricsRow(
        epoch=epoch.number,
        step=progress.step,
        images_seen=progress.images_seen,
        phase=epoch.phase.index,
        sizes=epoch.phase.sizes,
        metrics={
            **metrics,
            **eval_columns(scores),
            "eval_seconds": eval_seconds,
            "save_seconds": records.saver.lap(),
            "train_seconds": progress.train_seconds,
            "wall_seconds": progress.wall_seconds,
            **run.cost(),
        },
    )
    records.tracking.log_epoch(row, {f"best_{run.select_by.name}": progress.best_score})
    if run.accelerator.is_main_process:
        records.directory.add_metrics(row)
    run.state.running_means.restart({}, run.accelerator.device)
    save_checkpoint(run, epoch, improved)
    if run.accelerator.is_main_process:
        report.refresh(records.directory.path)
    log.info(
        "epoch %3d  %s px  loss %.4f  %s %s%s%s",
        epoch.number,
        row.sizes_name,
        row.metrics["train_loss"],
        run.select_by.title,
        brief(scores, run.select_by),
        "  best" if improved else "",
        f"  {row.metrics['images_per_s']:.0f} images/s" if "images_per_s" in row.metrics else "",
    )


def save_checkpoint(run: Run, epoch: Epoch, best: bool = False) -> None:
    """Save a checkpoint in the background; every rank must call it. `best`: it holds the best model so far."""
    state, progress, clocks = run.state, run.state.progress, run.clocks
    progress.train_seconds += clocks.training.lap()
    progress.wall_seconds += clocks.wall.lap()
    metadata = {
        **run.records.fingerprint,
        "epoch": epoch.number,
        "phase": epoch.phase.index,
        "images_seen": progress.images_seen,
        "best_step": progress.best_step,
    }
    run.records.saver.save(progress, state.running_means.state(), lambda: capture(state), metadata, best)
    run.control.consensus.saved()
