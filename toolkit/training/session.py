"""Open a run (checks, directory and lock, restored state, dashboards) and complete its records at the end."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from toolkit.config.settings import Settings
from toolkit.data.loading.pipeline import open_pipeline
from toolkit.models.collectives import from_main
from toolkit.models.cost_matrix import written_costs
from toolkit.models.evaluator import Evaluator
from toolkit.models.multiview import MultiView
from toolkit.runs import best_model, report
from toolkit.runs.dashboards import Tracking
from toolkit.runs.directory import FINISHED, RunDirectory
from toolkit.runs.mirror.place import Place, place_of
from toolkit.runs.progress import Progress
from toolkit.runs.quarantine import Quarantine
from toolkit.runs.resume_rules import acquire_run
from toolkit.runs.run_config import config_of, learned
from toolkit.runs.sample_log import SampleLog
from toolkit.runs.saver import Saver
from toolkit.runs.snapshot import read_snapshot
from toolkit.strategies.base import Task
from toolkit.system import clouds, console, files, host, locks, places
from toolkit.system.errors import InputError, PreemptedError, UploadError, expected
from toolkit.system.preemption import Preemption
from toolkit.training import device, memory, peers
from toolkit.training.consensus import Consensus
from toolkit.training.divergence import check_finite
from toolkit.training.epoch_end import save_checkpoint
from toolkit.training.main_work import on_main
from toolkit.training.monitor import Stopwatch, Throughput
from toolkit.training.parts import Parts
from toolkit.training.plan_text import describe_run
from toolkit.training.precision_speed import compare_precisions
from toolkit.training.resume import fingerprint_of, restore, restore_best
from toolkit.training.roofline import product_tflops
from toolkit.training.run import Clocks, Control, FinishedRun, Records, Run
from toolkit.training.run_plan import RunPlan, keep_choices, make_run_plan
from toolkit.training.shared_disk import check_shared
from toolkit.training.start import initial_weights, load_initial
from toolkit.training.summary import clear_summary, record_failure, record_loss
from toolkit.training.train_state import TrainState, build_train_state

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePoint:
    """The run directory and where to continue, on every rank.

    `start`: the checkpoint to continue from, None without one; `config`: the run's config.yaml, empty for a new run;
    `place`: where the run lives.
    """

    directory: RunDirectory
    start: Path | None
    finished: bool
    config: Mapping[str, Any]
    place: Place


@contextlib.contextmanager
def open_run(settings: Settings, parts: Parts, recipe: str, notes: Mapping[str, Any]) -> Iterator[Run | FinishedRun]:
    """Open a run, ready for its next step or finished; on exit, record how it ended.

    `notes`: further JSON files for the run directory, by name. Raises the same errors as `train`.
    """
    places.provide_home()
    take_over = settings.take_over and host.is_main_process(settings.alone)
    with Preemption() as preemption, locks.taking_over(take_over):
        place = place_of(settings, preemption.ask)
        settings = place.settings
        accelerator = device.start(settings)
        console.start(accelerator.is_main_process)
        try:
            with peers.naming(), _opened(accelerator, place, parts, recipe, notes, preemption) as run:
                yield run
        finally:
            place.close()
            device.stop()


@contextlib.contextmanager
def _opened(
    accelerator: Accelerator,
    place: Place,
    parts: Parts,
    recipe: str,
    notes: Mapping[str, Any],
    preemption: Preemption,
) -> Iterator[Run | FinishedRun]:
    """The same, once all processes have found each other."""
    machine = device.describe_machine(place.settings, accelerator)
    run_plan = make_run_plan(accelerator, place.settings, parts)
    built = build_train_state(accelerator, run_plan)
    config = config_of(run_plan.settings, parts.strategy)
    code = run_plan.own_code()
    fingerprint = fingerprint_of(accelerator, config, run_plan.splits, run_plan.steps, code)
    initial = functools.cache(functools.partial(initial_weights, run_plan))
    point = open_run_directory(accelerator, run_plan.settings, recipe, fingerprint, initial, place)
    try:
        if point.finished:
            yield _finished(point, parts.task, accelerator.is_main_process)
            _settle(accelerator, place)
            return
        run_plan = keep_choices(run_plan, point.config, point.directory.costs)
        of_weights = initial().lines if point.start is None and accelerator.is_main_process else ()
        for line in console.wrapped([*machine, *describe_run(run_plan, of_weights)]):
            log.info(line)
        compare_precisions(accelerator, run_plan)
        run = set_up(accelerator, run_plan, point, built, fingerprint, preemption)
        if point.start is None:
            load_initial(run, initial)
        initial.cache_clear()
        point.directory.add_notes(notes, accelerator.is_main_process)
        with _recorded(run):
            memory.try_largest_step(run)
            yield run
        _settle(accelerator, place)
    finally:
        point.directory.lock.release()


def _settle(accelerator: Accelerator, place: Place) -> None:
    """Bring a complete run to where it lives; raises UploadError, on all ranks, if that cannot be done now."""
    if reason := on_main(accelerator, place.settle):
        raise UploadError(f"the run is complete, but {reason}")


def _finished(point: ResumePoint, task: Task, main: bool) -> FinishedRun:
    directory = point.directory
    if main:
        _restore_lost(point)
        report.write_if_stale(directory.path)
    summary = directory.summary()
    split = "test" if "test" in summary else "val"
    metric = task.metric(summary.get("select_by", task.metrics[0].name))
    best = summary.get(split, {}).get(summary.get("selection"), {}).get(metric.name)
    reached = "" if best is None else f" ({split} {metric.title} {metric.text(best).strip()})"
    page = directory.path / report.PAGE
    log.info("finished  this run is finished%s; see %s. To train again: another --output-dir", reached, page)
    return FinishedRun(directory.path, summary)


def _restore_lost(point: ResumePoint) -> None:
    """Export the best model of a finished run again if its file is gone or damaged."""
    try:
        best_model.load(point.directory.best)
    except InputError:
        if point.start is not None:
            restore_best(point.directory, read_snapshot(point.start).progress)


@contextlib.contextmanager
def _recorded(run: Run) -> Iterator[None]:
    """Record the exit reason in the summary and close the dashboard, however training ends."""
    run.control.preemption.training_begins()
    clear_summary(run)
    run.clocks.wall.start()
    try:
        with peers.naming(), peers.last_words(functools.partial(record_loss, run)):
            try:
                yield
            except PreemptedError as error:
                _save_preempted(run, error)
                raise
    except Exception as error:
        cause = memory.explain(run, error) or expected(error)
        record_failure(run, error, cause)
        if cause is None:
            raise
        raise cause from None
    finally:
        run.records.saver.close()
        run.records.tracking.finish()


def _save_preempted(run: Run, error: PreemptedError) -> None:
    """Save the steps since the last checkpoint, and complete the error message."""
    progress, saver = run.state.progress, run.records.saver
    if saver.newest != progress.at():
        check_finite(run, run.control.consensus.poll(force=True).first_bad)
        save_checkpoint(run, next(run.epochs()))
    saver.join(progress.step)
    run.records.tracking.preempting(str(error), progress.step)
    by = error.exit_reason.removeprefix("preempted by ").replace("SIGINT", "Ctrl-C")
    error.args = (f"stopped by {by} at step {progress.step} of {run.plan.steps}, saved; the same command continues",)


def open_run_directory(
    accelerator: Accelerator,
    settings: Settings,
    recipe: str,
    fingerprint: Mapping[str, Any],
    before_new: Callable[[], Any] = lambda: None,
    place: Place | None = None,
) -> ResumePoint:
    """Choose and lock the run directory on rank 0; all ranks get the same result or raise the same error.

    `fingerprint`: of the run's data and settings, as in a manifest. `before_new`: as in `acquire_run`. `place`: where
    the run lives, None for a local directory.
    """
    place = place or Place(settings)
    on_main(accelerator, place.open)
    directory: RunDirectory | None = None
    decision: list[Any] = [None, None, False, {}, "", None]
    if accelerator.is_main_process:
        try:
            directory, start, line = acquire_run(settings, recipe, fingerprint, before_new)
            directory.metrics()  # raises on damaged metrics before anything is changed
            finished = directory.exit_reason() in FINISHED
            decision = [directory.path, start, finished, directory.config(), line, None]
        except (InputError, OSError) as error:
            decision[-1] = expected(error)
    path, start, finished, config, line, refusal = from_main(decision)
    if refusal is not None:
        raise refusal
    if not finished:
        try:
            check_shared(accelerator, path, place.to_share)
        except InputError:
            if directory is not None:
                directory.lock.release()
            raise
    if line and not finished:
        log.info("resume    %s", line)
    return ResumePoint(directory or RunDirectory(path), start, finished, config, place)


def _open_records(directory: RunDirectory, config: Mapping[str, Any], run_plan: RunPlan, progress: Progress) -> None:
    """On rank 0: create the files of a new run, or truncate those of a resumed run to the step it resumes from."""
    classes = run_plan.splits.classes
    directory.create(config, classes)
    if run_plan.costs is not None:
        files.write_text(directory.costs, written_costs(run_plan.costs, classes))
    restore_best(directory, progress)
    directory.truncate_to(progress)


def set_up(
    accelerator: Accelerator,
    run_plan: RunPlan,
    point: ResumePoint,
    built: tuple[TrainState, MultiView],
    fingerprint: Mapping[str, Any],
    preemption: Preemption,
) -> Run:
    """Open a run's data and records; restore the state of a resumed run."""
    (state, evaluated), settings, rank = built, run_plan.resolved, accelerator.process_index
    strategy, transform = run_plan.parts.strategy, run_plan.parts.transform
    data = open_pipeline(settings, strategy, run_plan.splits, run_plan.cache, run_plan.threads, transform)
    directory, config = point.directory, config_of(settings, strategy)
    fingerprint = {**fingerprint, "config": learned(config)}
    if point.start:
        restore(point.start, state, fingerprint, run_plan.steps)
    if accelerator.is_main_process:
        _open_records(directory, config, run_plan, state.progress)
    accelerator.wait_for_everyone()
    peak_tflops = product_tflops(accelerator.device, accelerator.mixed_precision)
    cloud = clouds.cloud(settings.cloud)
    preemption.watch(cloud.provider)
    consensus = Consensus(accelerator, state.non_finite, preemption, settings.save_every_minutes)
    quarantine = Quarantine(directory.quarantine, rank)
    shown = {**config, "cloud_provider": cloud.provider, "cloud_instance": cloud.instance}
    return Run(
        settings=settings,
        parts=run_plan.parts,
        accelerator=accelerator,
        plan=run_plan.steps,
        data=data,
        state=state,
        evaluator=Evaluator(
            accelerator,
            evaluated,
            run_plan.parts.task,
            run_plan.splits.classes,
            state.mean,
            state.std,
            run_plan.steps.micro_batch,
            run_plan.threads,
            settings.loader_timeout_s,
            quarantine=quarantine if settings.on_bad_sample == "quarantine" else None,
            between=consensus.raise_if_stopping,
            extra=run_plan.measured_too,
            costs=run_plan.costs,
        ),
        records=Records(
            directory=directory,
            samples=SampleLog(directory.samples if settings.record_samples else None, rank),
            quarantine=quarantine,
            tracking=Tracking.start(settings, shown, directory, strategy, state.progress, accelerator),
            place=point.place,
            saver=Saver(accelerator, directory.store, directory.best, state.progress.at() if point.start else None),
            fingerprint=fingerprint,
        ),
        control=Control(consensus, preemption, cloud),
        clocks=Clocks(
            Throughput(accelerator.device, run_plan.model.gmacs, peak_tflops), training=Stopwatch(), wall=Stopwatch()
        ),
    )
