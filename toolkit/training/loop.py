"""The training loop, for any strategy, device and number of processes."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from tqdm import tqdm

from toolkit.config.settings import Settings
from toolkit.data.loading.sampler import Epoch
from toolkit.models.source import Model
from toolkit.models.xla import end_step
from toolkit.runs.metrics_row import train_columns
from toolkit.runs.step_log import StepRow, add_steps
from toolkit.strategies.base import Strategy, Task
from toolkit.strategies.schedule import Schedule
from toolkit.system import console
from toolkit.system.errors import NonFiniteError
from toolkit.training.divergence import check_finite, roll_back
from toolkit.training.epoch_end import close_epoch, save_checkpoint
from toolkit.training.parts import Parts, make_parts
from toolkit.training.run import FinishedRun, Run
from toolkit.training.session import open_run
from toolkit.training.step import train_step
from toolkit.training.summary import conclude

log = logging.getLogger(__name__)

LOG_EVERY_STEPS = 50
SHORT_RUN, LOG_EVERY_STEPS_OF_SHORT = 5000, 10  # steps


def train(
    settings: Settings,
    strategy: Strategy,
    recipe: str = "train",
    notes: Mapping[str, Any] | None = None,
    *,
    task: Task | None = None,
    schedule: Schedule | None = None,
    model: Model | None = None,
    data: Mapping[str, Any] | None = None,
    transform: Callable[..., Any] | str | None = None,
) -> dict[str, Any]:
    """Train, evaluate and record one run; returns the contents of its summary.json.

    The keyword arguments replace what the settings name. `model`: an nn.Module, of which a copy is trained, or a
    function `make(num_classes, **model_kwargs)` that returns one, or its name, module:function. `data`: map-style data
    sets by split. `transform`: a function of one S x S x 3 uint8 image, or its name. `notes`: further JSON files for
    the run directory, by name. Raises InputError if settings or data cannot work, NonFiniteError if the loss is not
    finite, OutOfMemoryError if memory runs out, SaveError if a checkpoint cannot be written, and PreemptedError after a
    stop request, with all steps saved.
    """
    parts = make_parts(settings, strategy, task=task, schedule=schedule, model=model, data=data, transform=transform)
    return train_parts(*parts, recipe, notes or {}).summary


def train_parts(settings: Settings, parts: Parts, recipe: str, notes: Mapping[str, Any]) -> FinishedRun:
    """The same with all parts made."""
    with open_run(settings, parts, recipe, notes) as run:
        if run.finished:
            return run
        while True:
            try:
                for epoch in run.epochs():
                    close_epoch(run, epoch, train_epoch(run, epoch))
                return FinishedRun(run.records.directory.path, conclude(run), trained=True)
            except NonFiniteError as error:
                roll_back(run, error)


def train_epoch(run: Run, epoch: Epoch) -> dict[str, float]:
    """Train the remaining steps of one epoch; returns its metrics."""
    state, progress, clocks = run.state, run.state.progress, run.clocks
    main = run.accelerator.is_main_process
    run.begin(epoch)
    heartbeat = console.Heartbeat(main)
    run.control.consensus.begin()
    clocks.training.start()
    clocks.throughput.begin()
    left, points = epoch.end - progress.step, list[StepRow]()
    with tqdm(
        total=left, desc=f"epoch {epoch.number + 1}", unit="step", disable=not console.bars(main), leave=False
    ) as bar:
        for batch in run.batches(epoch):
            rate = run.learning_rate(epoch.phase, batch.number)
            run.records.samples.add(batch, rate)
            loss = train_step(state, batch, epoch.phase, rate)
            state.running_means.add({"train_loss": loss.total, **train_columns(loss.parts)})
            end_step()
            if run.accelerator.sync_gradients:
                progress.step = batch.number + 1
                progress.images_seen += batch.step.batch_size
                progress.optimizer_updates = state.weights.updates
                clocks.throughput.step(batch.step.batch_size, batch.step.sizes)
                bar.update()
                _after_step(run, epoch, rate, heartbeat, points)
    metrics = run.metrics(epoch.phase, run.learning_rate(epoch.phase, progress.step - 1))
    progress.train_seconds += clocks.training.stop()
    if main:
        add_steps(run.records.directory.steps, points)
    return metrics


def _after_step(run: Run, epoch: Epoch, rate: float, heartbeat: console.Heartbeat, points: list[StepRow]) -> None:
    """Check, log, stop and save, as due after an optimizer step; adds to `points` what steps.csv will hold."""
    settings, progress, consensus = run.settings, run.state.progress, run.control.consensus
    every = LOG_EVERY_STEPS if run.plan.steps > SHORT_RUN else LOG_EVERY_STEPS_OF_SHORT
    log_due = progress.step % every == 0 and progress.step < epoch.end  # the epoch's own row tells its last step
    save_due = settings.save_every_steps is not None and progress.step % settings.save_every_steps == 0
    decision = consensus.poll(force=log_due or save_due)
    check_finite(run, decision.first_bad)
    if log_due:
        now = run.metrics(epoch.phase, rate)
        steps = progress.step - epoch.start
        done_epochs = epoch.number + steps / epoch.steps
        points.append(StepRow(progress.step, done_epochs, rate, now["train_loss"]))
        run.records.tracking.log(now, progress.step, done_epochs)
        done = f"epoch {epoch.number + 1:3d}  step {steps} of {epoch.steps}"
        heartbeat.beat(log, f"{done}  loss {now['train_loss']:.4f}  {now['images_per_s']:.0f} images/s")
    if decision.stop:
        raise consensus.stopped()
    if (save_due or decision.save) and progress.step < epoch.end:  # `close_epoch` saves after the epoch's last step
        save_checkpoint(run, epoch)
