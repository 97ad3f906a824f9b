"""The task that the settings name."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from inspect import isabstract
from typing import Any, TypeVar

import numpy as np

from toolkit.config.base import frozen
from toolkit.config.settings import Settings, default_of
from toolkit.config.tables import TABLES, look_up
from toolkit.models.classification import Classification
from toolkit.models.multilabel import MultiLabel
from toolkit.strategies.base import Task
from toolkit.system.errors import InputError, first_line, nearest

T = TypeVar("T")
OURS = (Classification, MultiLabel)  # and tasks derived from them

OF_TASK = (
    "loss",
    "label_smoothing",
    "class_weights",
    "class_weights_power",
)  # settings that are fields of the tasks of the toolkit


def build_own(flag: str, name: str, kind: Callable[..., T], arguments: Mapping[str, Any]) -> T:
    """Make a frozen value of its fields; raises InputError, whatever its class raises, if they do not fit."""
    try:
        return kind(**{field: frozen(value) for field, value in arguments.items()})
    except InputError:
        raise
    except TypeError as error:
        raise InputError(f"{flag} do not fit {name}: {error}") from None
    except Exception as error:  # a user's class raises any type of exception
        raise InputError(f"{flag} do not fit {name}: {type(error).__name__}: {first_line(error)}") from error


def make_task(settings: Settings) -> Task:
    """The task of the settings; raises InputError if its arguments do not fit or a setting would be ignored."""
    kind = look_up("task", "--task", settings.task)
    if not (isinstance(kind, type) and issubclass(kind, Task)) or isabstract(kind):
        raise InputError(f"--task {settings.task}: not a subclass of toolkit.Task with all of its methods")
    given = {name: getattr(settings, name) for name in OF_TASK}
    if not issubclass(kind, OURS):
        for name, value in given.items():
            if value != default_of(name, dict(settings)):
                flag = f"--{name.replace('_', '-')} {value}"
                raise InputError(f"{flag} would be ignored by --task {settings.task}: drop it")
        given = {}
    if issubclass(kind, MultiLabel):  # a subclass has its own default of the loss
        given = {name: value for name, value in given.items() if value != default_of(name, dict(settings))}
    clash = [name for name in settings.task_kwargs if name in OF_TASK and issubclass(kind, OURS)]
    if clash:
        raise InputError(f"--task-kwargs {clash[0]}: has a flag of its own, --{clash[0].replace('_', '-')}")
    if kind in OURS:
        _check_arguments(settings, kind)
    return build_own("--task-kwargs", settings.task, kind, {**given, **settings.task_kwargs})


def _check_arguments(settings: Settings, kind: type[Task]) -> None:
    """Raise InputError for an argument that the task does not have; names the nearest, or the task that has it."""
    own = [field.name for field in fields(kind) if field.name not in OF_TASK]
    for name in settings.task_kwargs:
        if name not in own:
            others = [entry for entry in TABLES["task"] if name in _fields(look_up("task", "--task", entry))]
            hint = nearest(name, own) or (f"; --task {others[0]} does" if others else "")
            raise InputError(f"--task-kwargs {name}: --task {settings.task} does not take it{hint}")


def _fields(kind: Any) -> list[str]:
    return [field.name for field in fields(kind)] if is_dataclass(kind) else []


def check_weighing(settings: Settings, task: Task, counts: np.ndarray, classes: int) -> None:
    """Raise InputError if the classes are to be weighed by numbers of images that there are not."""
    usable = counts.shape == (classes,) and bool(np.isfinite(counts).all() and (counts >= 0).all() and counts.sum() > 0)
    if settings.class_weights != "none" and not usable:
        raise InputError(
            f"--class-weights {settings.class_weights}: {type(task).__name__}.class_counts gives no number of images "
            f"for each of {classes} classes; drop the flag"
        )
