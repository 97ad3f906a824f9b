"""The task that the settings name."""

from dataclasses import fields
from inspect import isabstract

from toolkit.config.settings import Settings
from toolkit.config.tables import look_up
from toolkit.strategies.base import Task
from toolkit.system.errors import InputError

OF_TASK = ("loss", "label_smoothing", "class_weights")  # settings that a task takes if it has a field of that name


def make_task(settings: Settings) -> Task:
    """The task of the settings; raises InputError if its arguments do not fit or a setting would be ignored."""
    kind = look_up("task", "--task", settings.task)
    if not (isinstance(kind, type) and issubclass(kind, Task)) or isabstract(kind):
        raise InputError(f"--task {settings.task}: not a subclass of toolkit.Task with all of its methods")
    known = {field.name for field in fields(kind)}
    given = {name: getattr(settings, name) for name in OF_TASK}
    for name, value in given.items():
        if name not in known and value != Settings.model_fields[name].default:
            raise InputError(f"--{name.replace('_', '-')} {value} would be ignored by --task {settings.task}: drop it")
    shared = {name: value for name, value in given.items() if name in known}
    clash = [name for name in settings.task_kwargs if name in shared]
    if clash:
        raise InputError(f"--task-kwargs {clash[0]}: has a flag of its own, --{clash[0].replace('_', '-')}")
    try:
        return kind(**shared, **settings.task_kwargs)
    except TypeError as error:
        raise InputError(f"--task-kwargs do not fit {settings.task}: {error}") from None
