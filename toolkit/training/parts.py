"""What a run is made of besides its settings: the strategy and the entries of the other seams, checked and resolved.

An object that was passed from Python is also named in the settings, so that config.yaml records it.
"""

import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from toolkit.config.base import frozen
from toolkit.config.data_roots import PYTHON_DATA
from toolkit.config.scales import Scales, make_scales
from toolkit.config.settings import Settings, default_of, make_settings, named_weights
from toolkit.config.tables import entry_name
from toolkit.data.images.transform import Transform, make_transform
from toolkit.data.sources.index import Splits
from toolkit.data.sources.python_data import data_modules, data_name
from toolkit.models.hub import resolved_arch
from toolkit.models.source import Model, ModelSource, make_source
from toolkit.runs.dashboards import dashboard_class
from toolkit.strategies import AROUND, innermost
from toolkit.strategies.base import Metric, Strategy, Task
from toolkit.strategies.schedule import Schedule
from toolkit.system.errors import InputError
from toolkit.training.schedules import make_schedule
from toolkit.training.tasks import OF_TASK, OURS, make_task

PLAIN = str | int | float | bool | None


@dataclass(frozen=True)
class Parts:
    """The replaceable parts of a run.

    `data`: data sets passed from Python, None: what `--data-root` names. `splits`: the data, if it is open already.
    """

    strategy: Strategy
    task: Task
    schedule: Schedule
    model: ModelSource
    data: Mapping[str, Any] | None = None
    transform: Transform | None = None
    splits: Splits | None = None

    def own_code(self, modules: Iterable[str] = ()) -> dict[str, str]:
        """SHA-256 of the source file of each part that is not the toolkit's, by module; part of a run's fingerprint.

        `modules`: further ones, which define the model.
        """
        kinds = {type(part).__module__ for part in (innermost(self.strategy), self.task, self.schedule)}
        kinds |= data_modules(self.data) | ({self.transform.module} if self.transform else set())
        return code_digests(name for name in kinds | {*modules} if not name.startswith("toolkit."))


def make_parts(
    settings: Settings,
    strategy: Strategy,
    *,
    task: Task | None = None,
    schedule: Schedule | None = None,
    model: Model | None = None,
    data: Mapping[str, Any] | None = None,
    transform: Callable[..., Any] | str | None = None,
) -> tuple[Settings, Parts]:
    """The parts of a run, and the settings that name them; raises InputError if one of them does not fit."""
    _check_fields(strategy)
    settings = resolved_arch(settings)
    named = named_weights(settings.model_dump())
    settings = settings.model_copy(update={**named, "weights": Path(named["weights"])} if named else {})
    settings = settings if data is None else _with_data(settings, data)
    names: dict[str, Any] = {}
    if task is None:
        task = make_task(settings)
        names |= {name: getattr(task, name) for name in OF_TASK if isinstance(task, OURS)}
    else:
        names |= _task_names(task)
        _check_named(settings, names, "task")
    names["task"] = entry_name("task", type(task))
    names["select_by"] = _checked_metric(settings, task).name
    if schedule is None:
        schedule = make_schedule(settings)
    else:
        own = {name: value for name, value in field_values(schedule).items() if name != "warmup"}
        passed: dict[str, Any] = {"scheduler": entry_name("schedule", type(schedule)), "scheduler_kwargs": own}
        passed["warmup_epochs"] = schedule.warmup * settings.epochs
        _check_named(settings, passed, "schedule")
        names |= passed
    names["scheduler"] = entry_name("schedule", type(schedule))
    if dashboard := dashboard_class(settings.log_with):
        names["log_with"] = entry_name("dashboard", dashboard)
    source = make_source(settings, model)
    if model is not None:
        _check_named(settings, {"model_from": source.recorded().get("model_from")}, "model")
    names |= source.recorded()
    made = make_transform(settings.transform, transform)
    names["transform"] = made and made.name
    return settings.model_copy(update=names), Parts(strategy, task, schedule, source, data, made)


def selecting(settings: Settings, task: Task) -> Metric:
    """The metric that selects the best model."""
    return task.metric(settings.select_by or task.metrics[0].name)


def _checked_metric(settings: Settings, task: Task) -> Metric:
    """The metric that selects; raises InputError if it lacks the cost matrix, or if the task would ignore that."""
    metric = selecting(settings, task)
    if settings.cost_matrix and not any(known.costs for known in (*task.metrics, *task.extra_metrics)):
        raise InputError(
            f"--cost-matrix {settings.cost_matrix} would be ignored by --task {entry_name('task', type(task))}, which "
            "has no single class an image: drop it"
        )
    if metric.costs and not settings.cost_matrix:
        raise InputError(f"--select-by {settings.select_by} needs --cost-matrix: give its file, or another metric")
    return metric


def _task_names(task: Task) -> dict[str, Any]:
    """How settings name a task that was passed."""
    values = field_values(task)
    shared = {name: values.pop(name) for name in OF_TASK} if isinstance(task, OURS) else {}
    if type(task) in OURS:  # as if named by flags
        usual_fields = {field.name: field.default for field in fields(task)}
        values = {name: value for name, value in values.items() if value != usual_fields[name]}
    usual = {name: default_of(name, {}) for name in OF_TASK}
    return {**usual, **shared, "task": entry_name("task", type(task)), "task_kwargs": values}


def _check_named(settings: Settings, names: Mapping[str, Any], what: str) -> None:
    """Raise InputError if a setting that was given contradicts `what` was passed, which `names` describes."""
    for name in settings.model_fields_set & names.keys():
        given = getattr(settings, name)
        if given != names[name] and frozen(given) != frozen(names[name]):
            flag = f"--{name.replace('_', '-')} {given}"
            raise InputError(f"{flag} would be ignored: a {what} was passed from Python; drop one of them")


def _with_data(settings: Settings, data: Mapping[str, Any]) -> Settings:
    """The settings that name data sets, with the defaults of data that is not built in."""
    given, name = {key: getattr(settings, key) for key in settings.model_fields_set}, data_name(data)
    root = given.get("data_root", name)
    if not root.startswith(PYTHON_DATA):
        raise InputError(f"--data-root {root} would be ignored: data sets were passed from Python; drop one of them")
    return make_settings({**given, "data_root": name})


def field_values(part: Any) -> dict[str, Any]:
    """The fields of a frozen value by name; raises InputError unless config.yaml can hold them."""
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    for name, value in values.items():
        if not _is_plain(value):
            raise InputError(
                f"{type(part).__name__}.{name} = {value!r}: must be a number, a text, or a tuple or mapping of such, "
                "because config.yaml holds it"
            )
    return values


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(part) for key, part in value.items())
    return all(map(_is_plain, value)) if isinstance(value, tuple | list) else isinstance(value, PLAIN)


def _check_fields(strategy: Strategy) -> None:
    """Raise InputError if config.yaml would take a strategy's field for a setting, or cannot hold it."""
    values = field_values(innermost(strategy))
    clash = sorted({*values} & {*Settings.model_fields, "strategy", "strategy_kwargs", *AROUND})
    try:
        make_scales({name: values[name] for name in values.keys() & Scales.model_fields.keys() - {*clash}})
    except InputError as error:
        name = type(strategy).__name__
        raise InputError(
            f"{name}: a flag has the name of a field and takes other values ({error}): rename it"
        ) from None
    if clash:
        raise InputError(
            f"{type(strategy).__name__}.{clash[0]}: there is a setting of that name, and config.yaml holds both: "
            "rename the field"
        )


def code_digests(modules: Iterable[str]) -> dict[str, str]:
    """SHA-256 of the source files of imported modules, by name."""
    return {name: _digest(name) for name in sorted(modules)}


def _digest(module: str) -> str:
    """SHA-256 of the file of an imported module; empty if there is none, as in a notebook."""
    try:
        return hashlib.sha256(Path(str(sys.modules[module].__file__)).read_bytes()).hexdigest()
    except (AttributeError, KeyError, OSError):
        return ""
