"""Load a run's best model for evaluation, prediction and export."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor

from toolkit.config.base import frozen
from toolkit.config.scales import Scales, make_scales
from toolkit.config.settings import Settings, make_settings
from toolkit.config.tables import look_up
from toolkit.models.create import create
from toolkit.models.inspection import plan_model
from toolkit.models.multiview import MultiView, copy_state
from toolkit.runs import best_model, checkpoint
from toolkit.runs.directory import RunDirectory
from toolkit.strategies import build
from toolkit.strategies.base import Metric, Strategy, Task
from toolkit.system.errors import InputError
from toolkit.training.tasks import make_task


@dataclass(frozen=True)
class LoadedRun:
    """The best model of a run, on a device and in evaluation mode, with the settings it was trained with.

    `metadata`: epoch, step and metrics of the model. `mean` and `std`: 3 values for pixels in [0, 1]. `gmacs`: 10^9
    multiply-adds of one image at each size. `arguments`: those passed to `timm.create_model`.
    """

    directory: RunDirectory
    settings: Settings
    strategy: Strategy
    task: Task
    classes: tuple[str, ...]
    model: MultiView
    mean: Tensor
    std: Tensor
    metadata: dict[str, Any]
    gmacs: dict[int, float]
    arguments: dict[str, Any]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes that the run reports, px, ascending."""
        return eval_sizes(self.strategy)

    @property
    def select_by(self) -> Metric:
        """The metric that selected the best model."""
        return self.task.metric(self.settings.select_by or self.task.metrics[0].name)

    def manifest(self) -> dict[str, Any]:
        """Manifest of the newest checkpoint; empty if there is no checkpoint."""
        newest = self.directory.store.newest()
        return checkpoint.read_manifest(newest) if newest else {}

    def precision(self) -> str | None:
        """Precision of the training, set by a flag or the launcher: "no", "bf16" or "fp16"; None if not recorded."""
        return self.manifest().get("precision") or self.directory.summary().get("precision")


def eval_sizes(strategy: Strategy) -> tuple[int, ...]:
    """All sizes that a strategy reports, px, ascending."""
    return tuple(sorted({size for spec in strategy.eval_specs() for size in spec.sizes}))


def load_run(path: Path, sizes: Sequence[int] = (), device: torch.device | None = None) -> LoadedRun:
    """Load the best model of the run at `path`; `sizes`, px: further sizes that it will be used at.

    Raises InputError if the folder has no run or no best model yet, or if the architecture cannot take a size.
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
    own = eval_sizes(strategy)
    plan = plan_model(settings, len(classes), own)
    if not {*sizes} <= {*own}:  # further sizes must not change the size of position tables
        made = {name: value for name, value in plan.arguments.items() if name == "img_size"}
        further = settings.model_copy(update={"model_kwargs": {**settings.model_kwargs, **made}})
        plan = plan_model(further, len(classes), sorted({*own, *sizes}))
    fresh = settings.model_copy(update={"pretrained": False, "sync_bn": False})  # all weights are loaded from the run
    model = create(fresh, plan.arguments, strategy.norm())
    try:
        copy_state(state, model)
    except RuntimeError as error:
        raise InputError(f"{directory.best}: {error}") from None
    where = device or torch.device("cpu")
    known = resolve_model_data_config(model.model)
    mean, std = (torch.tensor(known[name], device=where) for name in ("mean", "std"))
    return LoadedRun(
        directory,
        settings,
        strategy,
        make_task(settings),
        classes,
        model.to(where).eval(),
        mean,
        std,
        metadata,
        dict(plan.gmacs),
        dict(plan.arguments),
    )


def read_config(config: dict[str, Any]) -> tuple[Settings, Strategy]:
    """Settings and strategy from the contents of config.yaml; raises InputError if a class is not there."""
    kind = look_up("strategy", "--strategy", config["strategy"])
    names = {"strategy", *(field.name for field in fields(kind))}
    flags = {name: value for name, value in config.items() if name in names & {*Scales.model_fields}}
    chosen = make_scales({name: value for name, value in flags.items() if value is not None})
    own = {name: frozen(config[name]) for name in config if name in names - {*flags}}
    rest = {name: value for name, value in config.items() if name not in names}
    return make_settings(rest), build(chosen.pop("strategy"), {**chosen, **own})
