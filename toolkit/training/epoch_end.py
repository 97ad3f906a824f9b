"""The end of an epoch: evaluate, select, record, save."""

import logging
from collections.abc import Mapping, Sequence

from toolkit.data.loading.sampler import Epoch
from toolkit.models.evaluation import Evaluation, Score, brief
from toolkit.runs import report
from toolkit.runs.metrics_row import MetricsRow, all_eval_columns, eval_column, eval_columns
from toolkit.strategies.base import EvalSpec, Metric
from toolkit.system.console import duration
from toolkit.training.divergence import check_finite
from toolkit.training.early_stopping import better, select
from toolkit.training.resume import capture
from toolkit.training.run import Run

log = logging.getLogger(__name__)

OTHER_PIXELS = 40**2  # what an image costs besides its pixels, in pixels: small layers, decoding


def close_epoch(run: Run, epoch: Epoch, metrics: Mapping[str, float]) -> None:
    """Evaluate, select, record and save; raises NonFiniteError before all that if a value was not finite."""
    consensus, clocks, records = run.control.consensus, run.clocks, run.records
    check_finite(run, consensus.poll(force=True).first_bad)
    progress, strategy = run.state.progress, run.strategy
    specs = strategy.eval_specs() if epoch.closes_phase else (strategy.selection(),)
    consensus.begin()
    progress.wall_seconds += clocks.wall.lap()
    run.inherit_norms(epoch.phase)
    evaluations = _evaluate_all(run, specs)
    scores = {name: evaluation.scores for name, evaluation in evaluations.items()}
    progress.wall_seconds += (eval_seconds := clocks.wall.lap())
    values = {name: found[strategy.selection().name][run.select_by.name] for name, found in scores.items()}
    weights, counts = better(run.select_by, values), epoch.phase is run.plan.patience_phase
    improved = select(run.settings, progress, run.select_by, values[weights], counts)
    if improved:
        progress.best = {"epoch": epoch.number, "step": progress.step, **eval_columns(scores[weights])}
        progress.best |= {"weights": weights} if len(scores) > 1 else {}
        progress.best |= {"chosen": dict(chosen)} if (chosen := evaluations[weights].chosen) else {}
    progress.epoch = epoch.number + 1
    row = MetricsRow(
        epoch=epoch.number,
        step=progress.step,
        images_seen=progress.images_seen,
        phase=epoch.phase.index,
        sizes=epoch.phase.sizes,
        metrics={
            **metrics,
            **all_eval_columns(scores),
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
    run.state.running_means.restart({})
    save_checkpoint(run, epoch, improved)
    if run.accelerator.is_main_process:
        report.refresh(records.directory.path)
    log.info(
        "epoch %3d  %s px  loss %.4f%s  %s %s%s%s%s",
        epoch.number + 1,
        row.sizes_name,
        row.metrics["train_loss"],
        _validation_loss(row, strategy.selection().name),
        run.select_by.title,
        _told(scores, run.select_by),
        "  best" if improved else "",
        f"  {row.metrics['images_per_s']:.0f} images/s" if "images_per_s" in row.metrics else "",
        _time_left(run, epoch),
    )


def _validation_loss(row: MetricsRow, spec: str) -> str:
    """The validation loss at the selection size; empty if the task has none."""
    loss = row.metrics.get(eval_column(spec, "loss"))
    return "" if loss is None else f"  val loss {loss:.4f}"


def _time_left(run: Run, epoch: Epoch) -> str:
    """The time that the rest of the run takes if a pixel costs as much as so far; empty after the last epoch."""
    costs = [
        other.steps * other.phase.batch_size * sum(size**2 + OTHER_PIXELS for size in other.phase.sizes)
        for other in run.plan.epochs()
    ]
    done, left = sum(costs[: epoch.number + 1]), sum(costs[epoch.number + 1 :])
    if not left or run.state.progress.stopped_early:
        return ""
    return f"  {duration(run.state.progress.wall_seconds * left / done)} left"


def _evaluate_all(run: Run, specs: Sequence[EvalSpec]) -> dict[str, Evaluation]:
    """The evaluation on validation images of each of the weights to evaluate."""
    evaluations = {}
    for name, state in run.state.weights.states().items():
        run.evaluator.load(state)
        evaluations[name] = run.evaluator.evaluate(run.data.evaluated["val"], specs, run.strategy.selection())
    return evaluations


def _told(scores: Mapping[str, Mapping[str, Score]], metric: Metric) -> str:
    """One metric at each eval spec, of the first weights and, with their name, of further ones."""
    first, *others = scores
    return brief(scores[first], metric) + "".join(f"  {name} {brief(scores[name], metric)}" for name in others)


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
