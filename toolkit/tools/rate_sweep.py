"""Chooses the peak learning rate: a short training at each of several rates, all from the same start."""

import contextlib
import json
import logging
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from toolkit.config.settings import Settings
from toolkit.data.sources.index import Index, Splits
from toolkit.models.collectives import from_main
from toolkit.runs.report.rate_search import RATE_SWEEP
from toolkit.runs.resume_rules import RUNS, begun_run
from toolkit.runs.run_config import config_of
from toolkit.strategies import Finish, HeadFirst, innermost
from toolkit.strategies.base import Budget, Metric, Strategy
from toolkit.system import console, files
from toolkit.system.errors import InputError, NonFiniteError
from toolkit.system.result import Result
from toolkit.system.run_lock import run_of
from toolkit.system.stores import query
from toolkit.training import device
from toolkit.training.loop import train_parts
from toolkit.training.main_work import on_main
from toolkit.training.parts import Parts, make_parts, selecting
from toolkit.training.resume import fingerprint_of
from toolkit.training.run_plan import RunPlan, make_run_plan

log = logging.getLogger(__name__)

STEP = 10**0.5  # from one rate to the next
AROUND = 2  # rates below --learning-rate, and above
MOST_RATES = 7  # if the best is the first or the last one, further ones are tried there
SHARE, LEAST_STEPS, MOST_STEPS = 0.1, 50, 200  # of the run's steps, within these limits
LONGEST = 0.5  # share of the epochs that a training may need
MOST_VAL = 2000  # validation images


@dataclass(frozen=True)
class Trial:
    """A short training: its peak rate, and the metric and loss on validation; both None if it diverged."""

    learning_rate: float
    score: float | None
    loss: float | None


@dataclass(frozen=True, repr=False)
class RateSweep(Result):
    """What was tried, in the order of the rates. `steps`: optimizer steps of each. `metric`: that of `score`."""

    metric: str
    percent: bool
    epochs: int
    steps: int
    trials: tuple[Trial, ...]
    learning_rate: float

    @property
    def text(self) -> str:
        """One line, for the plan."""
        return (
            f"lr-find   chosen {self.learning_rate:g}, the best of {len(self.trials)} after {self.steps} steps each; "
            f"val {self.metric}: {', '.join(map(_told, self.trials))}"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "RateSweep":
        return cls(**{**values, "trials": tuple(Trial(**trial) for trial in values["trials"])})


def _told(trial: Trial) -> str:
    return f"{trial.learning_rate:g} {'diverged' if trial.score is None else f'{trial.score:.4g}'}"


def find_rate(settings: Settings, strategy: Strategy, **seams: Any) -> RateSweep:
    """Train a tenth of the steps, 50 to 200, at rates around `learning_rate`, a factor of 10^0.5 apart.

    Each training is a run of its own: the same strategy and schedule from the same weights, on as many random images
    as it has steps for. Of those whose metric of `select_by` is the best, up to its standard error on at most 2,000
    validation images, the one with the smallest loss is chosen. The result is kept beside the run, in `.lr_find`, and
    found there again.

    `seams`: as those of `train`. Raises the same errors, and InputError if the strategy cannot be shortened, or if
    all rates diverge.
    """
    accelerator = device.start(settings)
    console.start(accelerator.is_main_process)
    try:
        run_plan = make_run_plan(accelerator, *make_parts(settings, strategy, **seams))
        folder = _folder(accelerator, run_plan)
        known = _known(accelerator, settings, folder)
        if known is None and not settings.run_url:
            on_main(accelerator, lambda: _check_new(settings))
    finally:
        device.stop()
    if known is not None:
        return known
    sweep = _sweep(run_plan, folder)
    if accelerator.is_main_process:
        files.write_json(folder.with_suffix(".json"), {"of": folder.name, **sweep.to_json()})
        shutil.rmtree(folder, ignore_errors=True)
    return sweep


def _folder(accelerator: Accelerator, run_plan: RunPlan) -> Path:
    """Where the trainings are written: beside the run, because there all machines can read them."""
    config = config_of(run_plan.settings, run_plan.parts.strategy)
    told = fingerprint_of(accelerator, config, run_plan.splits, run_plan.steps, run_plan.own_code())
    output = run_plan.settings.output_dir
    parent = output.resolve().parent if isinstance(output, Path) else RUNS
    return parent / ".lr_find" / files.key(json.dumps(told, sort_keys=True, default=str))


def _check_new(settings: Settings) -> None:
    """Raise InputError if the search would be for a run that has begun without one."""
    if (run := begun_run(settings)) is not None:
        raise InputError(
            f"{run} was begun without --lr-find, and a run keeps its rate: drop the flag, or take another --output-dir"
        )


def _known(accelerator: Accelerator, settings: Settings, folder: Path) -> RateSweep | None:
    """What was found before for the same training, there or in the run that is continued."""
    resumed = None if settings.resume in ("auto", "never") else run_of(Path(settings.resume))
    runs = [path for path in (settings.output_dir, resumed) if isinstance(path, Path)]
    found: dict[str, Any] | None = None
    for path in [folder.with_suffix(".json"), *(run / RATE_SWEEP for run in runs)]:
        if accelerator.is_main_process and found is None and path.exists():
            with contextlib.suppress(ValueError, OSError):
                found = json.loads(path.read_text())
    if accelerator.is_main_process and found is None and settings.run_url:
        with contextlib.suppress(FileNotFoundError, InputError, ValueError):  # opening the run will tell of a bad store
            found = json.loads(query(f"{settings.run_url}/{RATE_SWEEP}", lambda store, name: store.cat_file(name)))
    values = from_main(found)
    if values is None:
        return None
    return RateSweep.from_json({name: value for name, value in values.items() if name != "of"})


def _sweep(run_plan: RunPlan, folder: Path) -> RateSweep:
    strategy, epochs, splits = _shortened(run_plan)
    parts = replace(run_plan.parts, strategy=strategy, splits=splits)
    metric = selecting(run_plan.settings, parts.task)
    batch, middle = run_plan.settings.batch_size, run_plan.settings.learning_rate
    images = len(splits.val)
    found: dict[int, Trial] = {}
    while (exponent := _next(found, metric, images)) is not None:
        rate = float(f"{middle * STEP**exponent:.2g}") if exponent else middle
        log.info("lr-find   %g: %d epoch(s) of %d steps", rate, epochs, len(splits.train) // batch)
        settings = _short(run_plan.settings, rate, epochs, folder / f"{rate:g}")
        found[exponent] = _trial(settings, parts, metric)
    trials = tuple(found[exponent] for exponent in sorted(found))
    best = found[_best(found, metric, images)]
    if best.score is None:
        told = ", ".join(f"{trial.learning_rate:g}" for trial in trials)
        raise InputError(f"--lr-find: training diverges at all of {told}: look at the data, or give --learning-rate")
    steps = sum(phase.steps for phase in strategy.phases(_budget(epochs, splits, batch)))
    return RateSweep(metric.title, metric.percent, epochs, steps, trials, best.learning_rate)


def _next(found: Mapping[int, Trial], metric: Metric, images: int) -> int | None:
    """The power of STEP to try next: those around the middle first, then beyond the best while it is at an end."""
    for exponent in range(-AROUND, AROUND + 1):
        if exponent not in found:
            return exponent
    best = _best(found, metric, images)
    if len(found) >= MOST_RATES or found[best].score is None:
        return None
    return {min(found): best - 1, max(found): best + 1}.get(best)


def _best(found: Mapping[int, Trial], metric: Metric, images: int) -> int:
    """Of the trials whose metric is the best, up to its standard error on so many images, that of least loss."""
    scores = {exponent: trial.score for exponent, trial in found.items() if trial.score is not None}
    if not scores:
        return min(found)
    top = max(scores.values(), key=lambda score: metric.gain(score, 0.0))
    error = math.sqrt(max(0.0, top * (100 - top)) / images) if metric.percent else 0.0
    near = [exponent for exponent, score in scores.items() if metric.gain(top, score) <= error]
    return min(near, key=lambda exponent: found[exponent].loss or 0.0)


def _trial(settings: Settings, parts: Parts, metric: Metric) -> Trial:
    try:
        with console.warnings_only():
            summary = train_parts(settings, parts, "lr_find", {}).summary
    except NonFiniteError:
        return Trial(settings.learning_rate, None, None)
    of = summary["val"][summary["selection"]]
    return Trial(settings.learning_rate, of[metric.name], of.get("loss", 0.0))


def _short(settings: Settings, rate: float, epochs: int, output: Path) -> Settings:
    """The settings of a training of `epochs` at a rate, without what only a whole run needs."""
    return settings.model_copy(
        update={
            "learning_rate": rate,
            "epochs": epochs,
            "warmup_epochs": settings.warmup_epochs * epochs / settings.epochs,
            "output_dir": output,
            "resume": "auto",
            "ema_decay": None,
            "ema_warmup": False,
            "patience": None,
            "on_divergence": "stop",
            "keep": 2,
            "log_with": "none",
            "record_samples": False,
            "save_every_steps": None,
        }
    )


def _shortened(run_plan: RunPlan) -> tuple[Strategy, int, Splits]:
    """The strategy, the epochs and the images of the short trainings."""
    settings, plan = run_plan.settings, run_plan.steps
    batch = settings.batch_size
    splits = _fewer(run_plan.splits, MOST_STEPS * batch, settings.seed)
    steps = len(splits.train) // batch
    most = max(1, int(LONGEST * settings.epochs))
    wanted = round(min(max(SHARE * plan.steps, LEAST_STEPS), MOST_STEPS) / steps)
    for epochs in range(min(max(1, wanted), most), most + 1):
        strategy = _of_epochs(run_plan.parts.strategy, epochs / settings.epochs)
        with contextlib.suppress(InputError):
            strategy.phases(_budget(epochs, splits, batch))
            return strategy, epochs, splits
    raise InputError(
        f"--lr-find: {run_plan.parts.strategy} has no training of at most {most} of {settings.epochs} epochs, and a "
        "longer one at each rate would not be short: give --learning-rate instead"
    )


def _of_epochs(strategy: Strategy, share: float) -> Strategy:
    """The strategy for a share of the epochs; without a finish, whose rate is a tenth of the peak."""
    if isinstance(strategy, Finish):
        return _of_epochs(strategy.strategy, share)
    if isinstance(strategy, HeadFirst) and (head_epochs := round(share * strategy.head_epochs)):
        return replace(strategy, head_epochs=head_epochs)
    return innermost(strategy)


def _budget(epochs: int, splits: Splits, batch: int) -> Budget:
    return Budget(epochs, len(splits.train) // batch * batch, batch)


def _fewer(splits: Splits, train: int, seed: int) -> Splits:
    """At most `train` and MOST_VAL random images; none to test."""

    def some(index: Index, most: int) -> Index:
        if len(index) <= most:
            return index
        return index.take(np.sort(np.random.default_rng((seed, most)).permutation(len(index))[:most]))

    return replace(splits, train=some(splits.train, train), val=some(splits.val, MOST_VAL), test=None)
