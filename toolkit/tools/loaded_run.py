"""Load a run's best model for evaluation, prediction and export."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolkit.config.base import frozen
from toolkit.config.scales import Scales, make_scales
from toolkit.config.settings import Settings, make_settings
from toolkit.models.evaluation import chosen_task
from toolkit.models.inspection import ModelPlan
from toolkit.models.multiview import MultiView, copy_state
from toolkit.models.source import Model, ModelSource, make_source
from toolkit.runs import best_model
from toolkit.runs.directory import RunDirectory
from toolkit.strategies import AROUND, build, strategy_class
from toolkit.strategies.base import BoundTask, Metric, Strategy, Task
from toolkit.system import console
from toolkit.system.errors import InputError
from toolkit.training.parts import code_digests, selecting
from toolkit.training.tasks import make_task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedRun:
    """The best model of a run, on a device and in evaluation mode, with the settings it was trained with.

    `source` and `plan`: where the network comes from, and how it was made. `metadata`: epoch, step and metrics of the
    model. `mean` and `std`: 3 values for pixels in [0, 1]. `gmacs`: 10^9 multiply-adds of one image at each size.
    """

    directory: RunDirectory
    settings: Settings
    strategy: Strategy
    task: Task
    classes: tuple[str, ...]
    source: ModelSource
    plan: ModelPlan
    model: MultiView
    mean: Tensor
    std: Tensor
    metadata: dict[str, Any]
    gmacs: dict[int, float]

    @property
    def name(self) -> str:
        """The run as the user names it: its directory or URL."""
        return console.shown(str(self.directory.path))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes that the run reports, px, ascending."""
        return eval_sizes(self.strategy)

    @property
    def select_by(self) -> Metric:
        """The metric that selected the best model."""
        return selecting(self.settings, self.task)

    @property
    def bound_task(self) -> BoundTask:
        """The task's computations on the model's device, for evaluation: all classes weigh the same."""
        return self.task.bind(np.ones(len(self.classes)), self.mean.device)

    def manifest(self) -> dict[str, Any]:
        """Manifest of the newest checkpoint; empty if there is no checkpoint."""
        return self.directory.store.newest_manifest()

    def precision(self) -> str | None:
        """Precision of the training, set by a flag or the launcher: "no", "bf16" or "fp16"; None if not recorded."""
        return self.manifest().get("precision") or self.directory.summary().get("precision")


def eval_sizes(strategy: Strategy) -> tuple[int, ...]:
    """All sizes that a strategy reports, px, ascending."""
    return tuple(sorted({size for spec in strategy.eval_specs() for size in spec.sizes}))


def load_run(
    path: Path, sizes: Sequence[int] = (), device: torch.device | None = None, model: Model | None = None
) -> LoadedRun:
    """Load the best model of the run at `path`; `sizes`, px: further sizes that it will be used at.

    `model`: the user's own, where the run has one. Raises InputError if the folder has no run or no best model yet, if
    the model cannot take a size, or if it is the user's own and neither given nor imported.
    """
    directory = RunDirectory(path)
    config = directory.config()
    if not config:
        raise InputError(f"{path}: not a run directory: there is no config.yaml in it")
    settings, strategy = read_config(config)
    classes = directory.classes()
    if not directory.best.exists():
        raise InputError(f"{path}: there is no best model yet: its first epoch is not evaluated")
    state, metadata = best_model.load(directory.best)
    source = _source(path, settings, model)
    plan = source.plan(settings, len(classes), eval_sizes(strategy), strategy.norm(), further=sizes)
    network = source.create(settings.model_copy(update={"sync_bn": False}), plan, strategy.norm())
    try:
        copy_state(state, network)
    except RuntimeError as error:
        raise InputError(f"{directory.best}: {error}") from None
    _warn_of_changed_code(directory, plan)
    where = device or torch.device("cpu")
    mean, std = (torch.tensor(values, device=where) for values in (plan.mean, plan.std))
    network = network.to(where).eval()
    return LoadedRun(
        directory=directory,
        settings=settings,
        strategy=strategy,
        task=chosen_task(make_task(settings), metadata.get("chosen", {})),
        classes=classes,
        source=source,
        plan=plan,
        model=network,
        mean=mean,
        std=std,
        metadata=metadata,
        gmacs=dict(plan.gmacs),
    )


def _warn_of_changed_code(directory: RunDirectory, plan: ModelPlan) -> None:
    """Log which source files of the model are not those that the run was trained with, as far as it recorded them."""
    then = directory.store.newest_manifest().get("code", {}) if plan.modules else {}
    for name, digest in code_digests(plan.modules).items():
        if then.get(name, digest) != digest:
            log.warning("code of %s changed since the run was trained", name)


def _source(path: Path, settings: Settings, model: Model | None) -> ModelSource:
    """The source of a run's model, without running code that only the run names; raises InputError."""
    if model is None:
        try:
            return make_source(settings)
        except InputError as error:
            raise InputError(f"{path}: it was trained with {error}") from None
    if settings.model_from is None:
        raise InputError(f"--model-from would be ignored: {path} was trained with --arch {settings.arch}; drop it")
    return make_source(settings, model)


def read_config(config: dict[str, Any]) -> tuple[Settings, Strategy]:
    """Settings and strategy from the contents of config.yaml; raises InputError if a class is not there."""
    kind = strategy_class(config["strategy"])
    names = {"strategy", *AROUND, *(field.name for field in fields(kind))}
    flags = {name: value for name, value in config.items() if name in names & {*Scales.model_fields}}
    chosen = make_scales({name: value for name, value in flags.items() if value is not None})
    own = {name: frozen(config[name]) for name in config if name in names - {*flags}}
    rest = {name: value for name, value in config.items() if name not in names}
    return make_settings(rest), build(chosen.pop("strategy"), {**chosen, **own})
