"""The one training loop: any strategy, any device, any number of processes."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from tqdm import tqdm

from toolkit.config.settings import Settings
from toolkit.data.loading.batches import Batch
from toolkit.data.loading.sampler import Epoch
from toolkit.models.evaluator import Score, brief, columns
from toolkit.runs import best_model, report, saved_predictions
from toolkit.runs.dashboards import RowKind
from toolkit.runs.directory import config_of
from toolkit.strategies.base import EvalSpec, Loss, Phase, Strategy
from toolkit.system import console
from toolkit.system.errors import NonFiniteError, PreemptedError, expected
from toolkit.system.preemption import Preemption
from toolkit.training import device
from toolkit.training.divergence import check_finite, roll_back
from toolkit.training.early_stopping import select
from toolkit.training.resume import capture, fingerprint_of
from toolkit.training.run_plan import describe, go_on, make_run_plan
from toolkit.training.schedules import SHAPES
from toolkit.training.setup import Run, open_run_directory, set_up
from toolkit.training.summary import clear_summary, final_metrics, record_failure, summarize
from toolkit.training.train_state import TrainState, build_train_state

log = logging.getLogger(__name__)

LOG_EVERY_STEPS = 50


def train(
    settings: Settings, strategy: Strategy, recipe: str = "train", notes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Train, evaluate and record one run; returns what its summary.json holds.

    `notes`: further JSON files for the run directory, by name. Raises InputError on settings or data that cannot work,
    NonFiniteError on a loss that is not finite, SaveError where a checkpoint cannot be written, PreemptedError once it
    was asked to stop and has saved what it had.
    """
    with Preemption() as preemption:
        accelerator = device.start(settings)
        console.start(accelerator.is_main_process)
        try:
            machine = device.describe(settings, accelerator)
            run_plan = make_run_plan(accelerator, settings, strategy)
            built = build_train_state(accelerator, strategy, run_plan)
            asked = run_plan.settings.model_copy(update={"cache": settings.cache})
            fingerprint = fingerprint_of(accelerator, config_of(asked, strategy), run_plan.splits, run_plan.plan)
            place = open_run_directory(accelerator, asked, recipe, fingerprint)
            try:
                if place.finished:
                    if accelerator.is_main_process:
                        report.write_if_stale(place.directory.path)
                    log.info("finished  nothing is left to do; give another --output-dir to train anew")
                    return place.directory.summary()
                run_plan = go_on(run_plan, place.cache)
                for line in (*machine, *describe(run_plan, strategy)):
                    log.info(line)
                run = set_up(accelerator, strategy, run_plan, place, built, preemption)
                run.directory.add_notes(notes or {}, accelerator.is_main_process)
                return _recorded(run)
            finally:
                place.directory.lock.release()
        finally:
            device.stop()


def _recorded(run: Run) -> dict[str, Any]:
    """Train; however that ends, the summary says so and the dashboard is closed."""
    run.preemption.training_begins()
    clear_summary(run)
    run.wall.start()
    try:
        return _train_or_save(run)
    except Exception as error:
        cause = expected(error)
        record_failure(run, error, cause)
        if cause is None:
            raise
        raise cause from None
    finally:
        run.saver.close()
        run.tracking.finish()


def _train_or_save(run: Run) -> dict[str, Any]:
    """Train; on a preemption save what was done since the last checkpoint, before raising it."""
    try:
        return _train(run)
    except PreemptedError as error:
        if run.saver.newest != run.progress.at():
            check_finite(run, run.consensus.poll(force=True).first_bad)
            _save(run, next(run.epochs()))
        run.saver.join(run.progress.step)
        run.tracking.preempting(str(error), run.progress.step)
        raise


def train_step(train_state: TrainState, batch: Batch, phase: Phase, learning_rate: float) -> Loss:
    """One micro-batch; the optimizer moves after the last one of its step."""
    accelerator, model, optimizer = train_state.accelerator, train_state.model, train_state.optimizer
    images, targets = train_state.receive(batch)
    with accelerator.accumulate(model):
        logits = model(*train_state.views(images, batch.step.sizes))  # one forward for all scales
        loss = train_state.strategy.loss(logits, targets, train_state.criterion, phase, batch.step)
        train_state.non_finite.see_loss(batch.number, loss.total)
        accelerator.backward(loss.total)
        if accelerator.sync_gradients:
            norm = accelerator.clip_grad_norm_(model.parameters(), train_state.gradient_clip)
            train_state.non_finite.see_gradient(batch.number, norm)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            scale = train_state.gradient_scale()
        optimizer.step()
        optimizer.zero_grad()
        if accelerator.sync_gradients:
            scale_now = train_state.gradient_scale()
            train_state.non_finite.see_scale(batch.number, scale_now)
            if scale_now >= scale:
                train_state.weights.follow()
                train_state.running_means.add(
                    {"gradient_norm": norm, "clipped_share": norm > train_state.gradient_clip}
                )
    return loss


def _train(run: Run) -> dict[str, Any]:
    while True:
        try:
            for epoch in run.epochs():
                _close_epoch(run, epoch, _train_epoch(run, epoch))
            return _finish(run)
        except NonFiniteError as error:
            run.tracking.alert("Diverged", str(error), run.progress.step)
            roll_back(run, error)


def _train_epoch(run: Run, epoch: Epoch) -> dict[str, float]:
    """The steps of one epoch; returns its figures."""
    train_state, progress, main = run.train_state, run.progress, run.accelerator.is_main_process
    train_state.model.train()
    heartbeat = console.Heartbeat(main)
    run.consensus.begin()
    run.training.start()
    run.throughput.begin()
    left = epoch.end - progress.step
    with tqdm(
        total=left, desc=f"epoch {epoch.number}", unit="step", disable=not console.bars(main), leave=False
    ) as bar:
        for batch in run.batches(epoch):
            rate = _learning_rate(run, epoch.phase, batch.number)
            run.samples.add(batch, rate)
            loss = train_step(train_state, batch, epoch.phase, rate)
            run.running_means.add(
                {"train_loss": loss.total, **{f"train_{name}": part for name, part in loss.parts.items()}}
            )
            if run.accelerator.sync_gradients:
                progress.step = batch.number + 1
                progress.images_seen += batch.step.batch_size
                progress.optimizer_updates = train_state.weights.updates
                run.throughput.step(batch.step.batch_size, batch.step.sizes)
                bar.update()
                _after_step(run, epoch, rate, heartbeat)
    metrics = run.metrics(epoch.phase, _learning_rate(run, epoch.phase, progress.step - 1))
    progress.train_seconds += run.training.stop()
    return metrics


def _after_step(run: Run, epoch: Epoch, rate: float, heartbeat: console.Heartbeat) -> None:
    """What is due after an optimizer step: look, log, save, stop."""
    settings, progress = run.settings, run.progress
    log_due = progress.step % LOG_EVERY_STEPS == 0
    save_due = settings.save_every_steps is not None and progress.step % settings.save_every_steps == 0
    decision = run.consensus.poll(force=log_due or save_due)
    check_finite(run, decision.first_bad)
    if log_due:
        now = run.metrics(epoch.phase, rate)
        run.tracking.log(now, progress.step, progress.step / run.plan.steps * settings.epochs)
        done = f"step {progress.step - epoch.start} of {epoch.steps}"
        heartbeat.beat(
            log, f"epoch {epoch.number:3d}  {done}  loss {now['train_loss']:.4f}  {now['images_per_s']:.0f} images/s"
        )
    if decision.stop:
        raise run.consensus.stopped()
    if (save_due or decision.save) and progress.step < epoch.end:  # at its end an epoch is saved once it is evaluated
        _save(run, epoch)


def _learning_rate(run: Run, phase: Phase, step: int) -> float:
    """The rate of optimizer step `step` of the run, at its middle: neither the first nor the last is 0."""
    settings = run.settings
    share = SHAPES[settings.scheduler]((step + 0.5) / run.plan.steps, settings.warmup_epochs / settings.epochs)
    return settings.learning_rate * share * phase.lr_scale * run.progress.plateau_factor


def _evaluate(run: Run, specs: Sequence[EvalSpec]) -> dict[str, Score]:
    """Validation scores of the weights as they stand."""
    run.evaluator.load(run.train_state.weights.state())
    return run.evaluator.score(run.pipeline.evaluated["val"], specs)


def _close_epoch(run: Run, epoch: Epoch, metrics: dict[str, float]) -> None:
    """Evaluate, select, record and save; nothing that is not finite gets past the first line."""
    check_finite(run, run.consensus.poll(force=True).first_bad)
    progress, strategy = run.progress, run.strategy
    specs = strategy.eval_specs() if epoch.closes_phase else (strategy.selection(),)
    run.consensus.begin()
    progress.wall_seconds += run.wall.lap()
    scores = _evaluate(run, specs)
    progress.wall_seconds += (eval_seconds := run.wall.lap())
    top1, in_last_phase = scores[strategy.selection().name].top1, epoch.phase is run.plan.phases[-1]
    improved = select(run.settings, progress, top1, in_last_phase)
    if improved:
        progress.best = {"epoch": epoch.number, "step": progress.step, **columns(scores)}
    progress.epoch = epoch.number + 1
    values = {**metrics, **columns(scores), "eval_seconds": eval_seconds, "save_seconds": run.saver.lap()}
    sizes = "+".join(map(str, epoch.phase.sizes))
    row = {
        "epoch": epoch.number,
        "step": progress.step,
        "images_seen": progress.images_seen,
        "phase": epoch.phase.index,
        "sizes": sizes,
        **values,
        "train_seconds": progress.train_seconds,
        "wall_seconds": progress.wall_seconds,
        **run.cost(),
    }
    run.tracking.log({**row, "best_top1": progress.best_top1}, progress.step, epoch.number + 1, RowKind.EPOCH)
    if run.accelerator.is_main_process:
        run.directory.add_metrics(row)
    run.running_means.restart({}, run.accelerator.device)
    _save(run, epoch, improved)
    if run.accelerator.is_main_process:
        report.refresh(run.directory.path)
    log.info(
        "epoch %3d  %s px  loss %.4f  top-1 %s%s%s",
        epoch.number,
        sizes,
        values["train_loss"],
        brief(scores),
        "  best" if improved else "",
        f"  {values['images_per_s']:.0f} images/s" if "images_per_s" in values else "",
    )


def _save(run: Run, epoch: Epoch, best: bool = False) -> None:
    """Have a checkpoint committed in the background; every process must ask. `best`: it is the best model so far."""
    progress = run.progress
    progress.train_seconds += run.training.lap()
    progress.wall_seconds += run.wall.lap()
    fingerprint = {
        **run.fingerprint,
        "epoch": epoch.number,
        "phase": epoch.phase.index,
        "images_seen": progress.images_seen,
        "best_step": progress.best_step,
    }
    run.saver.save(progress, run.running_means.state(), lambda: capture(run.train_state, progress), fingerprint, best)
    run.consensus.saved()


def _finish(run: Run) -> dict[str, Any]:
    """Evaluate the best model at every scale, on the test images where there are any, and write the summary."""
    progress, eval_specs = run.progress, run.strategy.eval_specs()
    if not progress.optimizer_updates:
        log.warning("none of the %d steps moved the weights: all overflowed in float16; give --no-amp", progress.step)
    run.saver.join(progress.step)
    run.consensus.begin()
    state, fingerprint = best_model.load(run.directory.best)
    run.evaluator.load(state)
    scores = {}
    for name, images in run.pipeline.evaluated.items():
        evaluation = run.evaluator.evaluate(images, eval_specs)
        scores[name] = evaluation.scores
        if run.accelerator.is_main_process:
            saved_predictions.keep(run.directory.predictions, name, evaluation.predictions, images)
    for name, of_split in scores.items():
        log.info("%s, best model (epoch %s)", name, fingerprint["epoch"])
        for spec, score in of_split.items():
            log.info("  %6s  %s", spec, score)
    latency_ms = run.evaluator.latency_ms(eval_specs) if run.accelerator.is_main_process else {}
    for name, raw in run.train_state.weights.raw().items():
        run.evaluator.load(raw)
        scores[name] = run.evaluator.score(run.pipeline.evaluated["val"], eval_specs)
        log.info("val, weights of the last step without averaging: %s", brief(scores[name]))
    run.preemption.training_ends()
    progress.wall_seconds += run.wall.lap()
    run.tracking.conclude(
        final_metrics(scores), progress, partial(saved_predictions.read, run.directory.predictions, "val")
    )
    summary = summarize(
        run,
        {
            "exit_reason": "early stop" if progress.stopped_early else "done",
            "latency_ms": latency_ms,
            **{name: {spec: asdict(score) for spec, score in of_split.items()} for name, of_split in scores.items()},
        },
    )
    if run.accelerator.is_main_process:
        run.directory.write_summary(summary)
        report.refresh(run.directory.path, at_once=True)
    log.info(
        "wrote     %s: report.html, config.yaml, metrics.csv, summary.json, best/, checkpoints/", run.directory.path
    )
    return summary
