"""The one training loop: any strategy, any device, any number of processes."""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from toolkit import checkpoint, console, device
from toolkit.contract import EvalSpec, Loss, Phase, Strategy
from toolkit.data.jobs import Batch
from toolkit.data.sampler import Epoch
from toolkit.errors import NonFiniteError, PeerError, expected
from toolkit.evaluation import Score, unwrapped_state
from toolkit.learner import Learner, build_learner
from toolkit.monitor import Meter
from toolkit.prepare import describe, prepare
from toolkit.rundir import config_of
from toolkit.schedule import SHAPES
from toolkit.settings import Settings
from toolkit.setup import Run, claim_place, set_up
from toolkit.summary import summarise

log = logging.getLogger(__name__)

LOG_EVERY_STEPS = 50
PLATEAU_EPOCHS, PLATEAU_FACTOR = 2, 0.5


def train(settings: Settings, strategy: Strategy, recipe: str = "train") -> dict[str, Any]:
    """Train, evaluate and record one run; returns what its summary.json holds.

    Raises InputError on settings or data that cannot work, NonFiniteError on a loss that is not finite.
    """
    accelerator = device.start(settings)
    console.start(accelerator.is_main_process)
    try:
        machine = device.describe(settings, accelerator)
        prepared = prepare(accelerator, settings, strategy)
        settings = prepared.settings
        built = build_learner(accelerator, strategy, prepared)
        place = claim_place(accelerator, settings, recipe, config_of(settings, strategy))
        try:
            if place.finished:
                log.info("finished  nothing is left to do; give another --output-dir to train anew")
                return place.directory.summary()
            for line in (*machine, *describe(prepared, strategy)):
                log.info(line)
            return _recorded(set_up(accelerator, strategy, prepared, place, built))
        finally:
            place.directory.unlock()
    finally:
        device.stop()


def _recorded(run: Run) -> dict[str, Any]:
    """Train; however that ends, the summary says so and the dashboard is closed."""
    try:
        return _train(run)
    except Exception as error:
        cause = expected(error)
        if cause is None:
            raise
        if not (isinstance(cause, PeerError) and run.directory.exit_reason()):  # who met the cause has written it
            run.directory.write_summary(summarise(run, {"exit_reason": str(cause)}))
        device.leave()
        raise cause from None
    finally:
        run.tracking.finish()


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
        optimizer.step()
        optimizer.zero_grad()
    return loss


def _train(run: Run) -> dict[str, Any]:
    for epoch in run.plan.epochs():
        if epoch.end > run.progress.step and not run.progress.stopped_early:
            started = time.perf_counter()
            means, rate = _train_epoch(run, epoch)
            _close_epoch(run, epoch, means, rate, started)
    return _finish(run)


def _train_epoch(run: Run, epoch: Epoch) -> tuple[dict[str, float], float]:
    """The steps of one epoch; mean losses, and images per second over all processes."""
    learner, progress, main = run.learner, run.progress, run.accelerator.is_main_process
    learner.model.train()
    meter, started, images_before = Meter(), time.perf_counter(), progress.images_seen
    left = epoch.end - progress.step
    with tqdm(
        total=left, desc=f"epoch {epoch.number}", unit="step", disable=not console.bars(main), leave=False
    ) as bar:
        for batch in run.batches(epoch):
            rate = _learning_rate(run, epoch.phase, batch.number)
            run.samples.add(batch, rate)
            loss = learn(learner, batch, epoch.phase, rate)
            meter.add({"train_loss": loss.total, **{f"train_{name}": part for name, part in loss.parts.items()}})
            if run.accelerator.sync_gradients:
                progress.step = batch.number + 1
                progress.images_seen += batch.step.batch_size
                bar.update()
                due = progress.step % LOG_EVERY_STEPS == 0
                if due or learner.watch.reads_are_free:
                    _check_finite(run)
                if due:
                    now = {**meter.means(run.accelerator), "lr": rate}
                    run.tracking.log(now, progress.step, progress.step / run.plan.steps * run.settings.epochs)
    means = meter.means(run.accelerator)  # waits for the device, so the clock below is right
    seconds = time.perf_counter() - started
    progress.train_seconds += seconds
    return means, (progress.images_seen - images_before) / seconds


def _learning_rate(run: Run, phase: Phase, step: int) -> float:
    """The rate of optimizer step `step` of the run, at its middle: neither the first nor the last is 0."""
    settings = run.settings
    share = SHAPES[settings.scheduler]((step + 0.5) / run.plan.steps, settings.warmup_epochs / settings.epochs)
    return settings.learning_rate * share * phase.lr_scale * run.progress.plateau_factor


def _check_finite(run: Run) -> None:
    """Raises NonFiniteError on all processes if one met it, naming the step and the samples of its global batch."""
    step = run.learner.watch.first_bad_step(run.accelerator)
    if step is None:
        return
    epoch = next(epoch for epoch in run.plan.epochs() if epoch.start <= step < epoch.end)
    request = next(run.feed.sampler.requests(epoch, step))
    raise NonFiniteError(
        f"the loss or its gradient is not finite at step {step} (epoch {epoch.number}), samples "
        f"{' '.join(map(str, request.ids.tolist()))}; the last checkpoint is from before it; look at those images, or "
        "lower --learning-rate, or set --gradient-clip"
    )


def _evaluate(run: Run, specs: Sequence[EvalSpec]) -> dict[str, Score]:
    """Validation scores of the training model as it stands."""
    run.evaluator.load(unwrapped_state(run.accelerator, run.learner.model))
    return run.evaluator.score(run.feed.evaluated["val"], specs)


def _columns(scores: dict[str, Score]) -> dict[str, float]:
    return {f"{name}/{figure}": value for name, score in scores.items() for figure, value in score.figures().items()}


def _close_epoch(run: Run, epoch: Epoch, means: dict[str, float], rate: float, started: float) -> None:
    """Evaluate, select, record and save; nothing that is not finite gets past the first line."""
    _check_finite(run)
    progress, strategy = run.progress, run.strategy
    specs = strategy.panel() if epoch.closes_phase else (strategy.selection(),)
    scores = _evaluate(run, specs)
    learning_rate = _learning_rate(run, epoch.phase, progress.step - 1)
    improved = _select(run, epoch, scores[strategy.selection().name].top1)
    progress.wall_seconds += time.perf_counter() - started
    values = {
        **means,
        "lr": learning_rate,
        **_columns(scores),
        "images_per_s": rate,
    }
    run.tracking.log(
        {**values, f"best/{strategy.selection().name}/top1": progress.best_top1 or 0.0}, progress.step, epoch.number + 1
    )
    sizes = "+".join(map(str, epoch.phase.sizes))
    if run.accelerator.is_main_process:
        run.directory.add_metrics(
            {
                "epoch": epoch.number,
                "step": progress.step,
                "images_seen": progress.images_seen,
                "phase": epoch.phase.index,
                "sizes": sizes,
                **values,
                "train_seconds": progress.train_seconds,
                "wall_seconds": progress.wall_seconds,
            }
        )
        if improved:
            state = unwrapped_state(run.accelerator, run.learner.model)
            facts = {"epoch": epoch.number, "step": progress.step, **_columns(scores)}
            checkpoint.save_best(run.directory.best, state, facts)
    shown = "  ".join(f"{name} {score.brief()}" for name, score in scores.items())
    log.info(
        "epoch %3d  %s px  loss %.4f  top-1 %s%s  %.0f images/s",
        epoch.number,
        sizes,
        means["train_loss"],
        shown,
        "  best" if improved else "",
        rate,
    )
    _save(run)


def _select(run: Run, epoch: Epoch, top1: float) -> bool:
    """Whether this epoch is the best so far at the selection size; counts patience and plateau in the last phase."""
    settings, progress = run.settings, run.progress
    best = progress.best_top1 is None or top1 > progress.best_top1
    if best:
        progress.best_top1, progress.best_epoch = top1, epoch.number
    if epoch.phase is not run.plan.phases[-1]:
        return best
    if progress.reference_top1 is None or top1 > progress.reference_top1 + settings.min_delta:
        progress.reference_top1, progress.stale_epochs, progress.plateau_epochs = top1, 0, 0
        return best
    progress.stale_epochs += 1
    progress.plateau_epochs += 1
    progress.stopped_early = settings.patience is not None and progress.stale_epochs >= settings.patience
    if settings.scheduler == "plateau" and progress.plateau_epochs >= PLATEAU_EPOCHS:
        progress.plateau_factor *= PLATEAU_FACTOR
        progress.plateau_epochs = 0
    return best


def _save(run: Run) -> None:
    """Commit a checkpoint; every process writes its generators, rank 0 the rest."""
    accelerator, root, step = run.accelerator, run.directory.checkpoints, run.progress.step
    if accelerator.is_main_process:
        staging = checkpoint.stage(root, step)
        state = unwrapped_state(accelerator, run.learner.model)
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
        checkpoint.save(staging, state, run.learner.optimizer.state_dict(), run.progress, scaler, run.fingerprint)
    accelerator.wait_for_everyone()
    checkpoint.save_generators(checkpoint.staging_path(root, step), accelerator.process_index)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        checkpoint.commit(checkpoint.staging_path(root, step), step)
    accelerator.wait_for_everyone()


def _finish(run: Run) -> dict[str, Any]:
    """Evaluate the best model at every scale, on the test images where there are any, and write the summary."""
    started, progress, panel = time.perf_counter(), run.progress, run.strategy.panel()
    state, facts = checkpoint.load_best(run.directory.best)
    progress.best_epoch, progress.best_top1 = facts["epoch"], facts[f"{run.strategy.selection().name}/top1"]
    run.evaluator.load(state)
    scores = {name: run.evaluator.score(images, panel) for name, images in run.feed.evaluated.items()}
    for name, of_split in scores.items():
        log.info("%s, best model (epoch %s)", name, progress.best_epoch)
        for spec, score in of_split.items():
            log.info("  %6s  %s", spec, score)
    progress.wall_seconds += time.perf_counter() - started
    final = {
        f"best/{spec}/{figure}": value
        for spec, score in scores["val"].items()
        for figure, value in (("top1", score.top1), ("top5", score.top5))
    }
    final |= {f"test/{column}": value for column, value in _columns(scores.get("test", {})).items()}
    run.tracking.log(final, progress.step, progress.step / run.plan.steps * run.settings.epochs)
    summary = summarise(
        run,
        {
            "exit_reason": "early stop" if progress.stopped_early else "done",
            **{name: {spec: asdict(score) for spec, score in of_split.items()} for name, of_split in scores.items()},
        },
    )
    if run.accelerator.is_main_process:
        run.directory.write_summary(summary)
    log.info("wrote     %s: config.yaml, metrics.csv, summary.json, best/, checkpoints/", run.directory.path)
    return summary
