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
from toolkit.runs.dashboards import Row
from toolkit.runs.directory import config_of
from toolkit.strategies.base import EvalSpec, Loss, Phase, Strategy
from toolkit.system import console
from toolkit.system.errors import NonFiniteError, PreemptedError, expected
from toolkit.system.preemption import Preemption
from toolkit.training import device
from toolkit.training.divergence import check_finite, roll_back
from toolkit.training.early_stopping import select
from toolkit.training.resume import capture, facts_of
from toolkit.training.run_plan import describe, go_on, prepare
from toolkit.training.schedules import SHAPES
from toolkit.training.setup import Run, claim_place, set_up
from toolkit.training.summary import final_figures, forget_end, note_end, summarise
from toolkit.training.train_state import Learner, build_learner

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
            prepared = prepare(accelerator, settings, strategy)
            built = build_learner(accelerator, strategy, prepared)
            asked = prepared.settings.model_copy(update={"cache": settings.cache})
            facts = facts_of(accelerator, config_of(asked, strategy), prepared.splits, prepared.plan)
            place = claim_place(accelerator, asked, recipe, facts)
            try:
                if place.finished:
                    if accelerator.is_main_process:
                        report.make_up_for(place.directory.path)
                    log.info("finished  nothing is left to do; give another --output-dir to train anew")
                    return place.directory.summary()
                prepared = go_on(prepared, place.cache)
                for line in (*machine, *describe(prepared, strategy)):
                    log.info(line)
                run = set_up(accelerator, strategy, prepared, place, built, preemption)
                run.directory.add_notes(notes or {}, accelerator.is_main_process)
                return _recorded(run)
            finally:
                place.directory.ownership.release()
        finally:
            device.stop()


def _recorded(run: Run) -> dict[str, Any]:
    """Train; however that ends, the summary says so and the dashboard is closed."""
    run.preemption.training_begins()
    forget_end(run)
    run.wall.start()
    try:
        return _train_or_save(run)
    except Exception as error:
        cause = expected(error)
        note_end(run, error, cause)
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
            check_finite(run, run.agreement.ask(force=True).first_bad)
            _save(run, next(run.epochs()))
        run.saver.join(run.progress.step)
        run.tracking.preempting(str(error), run.progress.step)
        raise


def learn(learner: Learner, batch: Batch, phase: Phase, learning_rate: float) -> Loss:
    """One micro-batch; the optimizer moves after the last one of its step."""
    accelerator, model, optimizer = learner.accelerator, learner.model, learner.optimizer
    images, targets = learner.receive(batch)
    with accelerator.accumulate(model):
        logits = model(*learner.views(images, batch.step.sizes))  # one forward for all scales
        loss = learner.strategy.loss(logits, targets, learner.criterion, phase, batch.step)
        learner.watch.see_loss(batch.number, loss.total)
        accelerator.backward(loss.total)
        if accelerator.sync_gradients:
            norm = accelerator.clip_grad_norm_(model.parameters(), learner.gradient_clip)
            learner.watch.see_gradient(batch.number, norm)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            scale = learner.gradient_scale()
        optimizer.step()
        optimizer.zero_grad()
        if accelerator.sync_gradients:
            scale_now = learner.gradient_scale()
            learner.watch.see_scale(batch.number, scale_now)
            if scale_now >= scale:
                learner.weights.follow()
                learner.meter.add({"gradient_norm": norm, "clipped_share": norm > learner.gradient_clip})
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
    learner, progress, main = run.learner, run.progress, run.accelerator.is_main_process
    learner.model.train()
    life_sign = console.LifeSign(main)
    run.agreement.begin()
    run.training.start()
    run.pace.begin()
    left = epoch.end - progress.step
    with tqdm(
        total=left, desc=f"epoch {epoch.number}", unit="step", disable=not console.bars(main), leave=False
    ) as bar:
        for batch in run.batches(epoch):
            rate = _learning_rate(run, epoch.phase, batch.number)
            run.samples.add(batch, rate)
            loss = learn(learner, batch, epoch.phase, rate)
            run.meter.add({"train_loss": loss.total, **{f"train_{name}": part for name, part in loss.parts.items()}})
            if run.accelerator.sync_gradients:
                progress.step = batch.number + 1
                progress.images_seen += batch.step.batch_size
                progress.optimizer_updates = learner.weights.updates
                run.pace.step(batch.step.batch_size, batch.step.sizes)
                bar.update()
                _after_step(run, epoch, rate, life_sign)
    figures = run.figures(epoch.phase, _learning_rate(run, epoch.phase, progress.step - 1))
    progress.train_seconds += run.training.stop()
    return figures


def _after_step(run: Run, epoch: Epoch, rate: float, life_sign: console.LifeSign) -> None:
    """What is due after an optimizer step: look, log, save, stop."""
    settings, progress = run.settings, run.progress
    log_due = progress.step % LOG_EVERY_STEPS == 0
    save_due = settings.save_every_steps is not None and progress.step % settings.save_every_steps == 0
    decision = run.agreement.ask(force=log_due or save_due)
    check_finite(run, decision.first_bad)
    if log_due:
        now = run.figures(epoch.phase, rate)
        run.tracking.log(now, progress.step, progress.step / run.plan.steps * settings.epochs)
        done = f"step {progress.step - epoch.start} of {epoch.steps}"
        life_sign.give(
            log, f"epoch {epoch.number:3d}  {done}  loss {now['train_loss']:.4f}  {now['images_per_s']:.0f} images/s"
        )
    if decision.stop:
        raise run.agreement.stopped()
    if (save_due or decision.save) and progress.step < epoch.end:  # at its end an epoch is saved once it is evaluated
        _save(run, epoch)


def _learning_rate(run: Run, phase: Phase, step: int) -> float:
    """The rate of optimizer step `step` of the run, at its middle: neither the first nor the last is 0."""
    settings = run.settings
    share = SHAPES[settings.scheduler]((step + 0.5) / run.plan.steps, settings.warmup_epochs / settings.epochs)
    return settings.learning_rate * share * phase.lr_scale * run.progress.plateau_factor


def _evaluate(run: Run, specs: Sequence[EvalSpec]) -> dict[str, Score]:
    """Validation scores of the weights as they stand."""
    run.evaluator.load(run.learner.weights.state())
    return run.evaluator.score(run.feed.evaluated["val"], specs)


def _close_epoch(run: Run, epoch: Epoch, figures: dict[str, float]) -> None:
    """Evaluate, select, record and save; nothing that is not finite gets past the first line."""
    check_finite(run, run.agreement.ask(force=True).first_bad)
    progress, strategy = run.progress, run.strategy
    specs = strategy.panel() if epoch.closes_phase else (strategy.selection(),)
    run.agreement.begin()
    progress.wall_seconds += run.wall.lap()
    scores = _evaluate(run, specs)
    progress.wall_seconds += (eval_seconds := run.wall.lap())
    top1, in_last_phase = scores[strategy.selection().name].top1, epoch.phase is run.plan.phases[-1]
    improved = select(run.settings, progress, top1, in_last_phase)
    if improved:
        progress.best = {"epoch": epoch.number, "step": progress.step, **columns(scores)}
    progress.epoch = epoch.number + 1
    values = {**figures, **columns(scores), "eval_seconds": eval_seconds, "save_seconds": run.saver.lap()}
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
    run.tracking.log({**row, "best_top1": progress.best_top1}, progress.step, epoch.number + 1, Row.EPOCH)
    if run.accelerator.is_main_process:
        run.directory.add_metrics(row)
    run.meter.restart({}, run.accelerator.device)
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
    facts = {
        **run.facts,
        "epoch": epoch.number,
        "phase": epoch.phase.index,
        "images_seen": progress.images_seen,
        "best_step": progress.best_step,
    }
    run.saver.save(progress, run.meter.state(), lambda: capture(run.learner, progress), facts, best)
    run.agreement.saved()


def _finish(run: Run) -> dict[str, Any]:
    """Evaluate the best model at every scale, on the test images where there are any, and write the summary."""
    progress, panel = run.progress, run.strategy.panel()
    if not progress.optimizer_updates:
        log.warning("none of the %d steps moved the weights: all overflowed in float16; give --no-amp", progress.step)
    run.saver.join(progress.step)
    run.agreement.begin()
    state, facts = best_model.load(run.directory.best)
    run.evaluator.load(state)
    scores = {}
    for name, images in run.feed.evaluated.items():
        evaluation = run.evaluator.evaluate(images, panel)
        scores[name] = evaluation.scores
        if run.accelerator.is_main_process:
            saved_predictions.keep(run.directory.predictions, name, evaluation.predictions, images)
    for name, of_split in scores.items():
        log.info("%s, best model (epoch %s)", name, facts["epoch"])
        for spec, score in of_split.items():
            log.info("  %6s  %s", spec, score)
    latency_ms = run.evaluator.latency_ms(panel) if run.accelerator.is_main_process else {}
    for name, raw in run.learner.weights.raw().items():
        run.evaluator.load(raw)
        scores[name] = run.evaluator.score(run.feed.evaluated["val"], panel)
        log.info("val, weights of the last step without averaging: %s", brief(scores[name]))
    run.preemption.training_ends()
    progress.wall_seconds += run.wall.lap()
    run.tracking.conclude(
        final_figures(scores), progress, partial(saved_predictions.read, run.directory.predictions, "val")
    )
    summary = summarise(
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
