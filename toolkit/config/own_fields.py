"""Fields of a strategy, task or schedule, given as KEY=VALUE or in a file: as the types that its class declares."""

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from toolkit.config.base import frozen, split_pairs
from toolkit.config.settings import Settings
from toolkit.config.tables import Seam, look_up
from toolkit.config.yaml_values import fit

OWNERS: dict[str, tuple[Seam, str]] = {  # setting of such fields -> the seam, and the setting that names the class
    "strategy_kwargs": ("strategy", "strategy"),
    "task_kwargs": ("task", "task"),
    "scheduler_kwargs": ("schedule", "scheduler"),
}


def move_own_fields(values: dict[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The values of a config.yaml, with the fields of its strategy that have no flag moved to `strategy_kwargs`."""
    strange = {name for name in values if name not in known}
    if not strange or not values.get("strategy"):
        return values
    kind = look_up("strategy", "--strategy", values["strategy"])
    names = {field.name for field in fields(kind)} if is_dataclass(kind) else set()
    own = {name: values[name] for name in strange & names}
    rest = {name: value for name, value in values.items() if name not in own}
    return {**rest, "strategy_kwargs": own}


def fit_own_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with own fields as their classes declare them; what is no KEY=VALUE is left to the settings."""
    fitted = dict(values)
    for name, (seam, setting) in OWNERS.items():
        default = Settings.model_fields[setting].default if setting in Settings.model_fields else None
        entry, given = values.get(setting, default), values.get(name)
        pairs: Mapping[str, Any] = {}
        with contextlib.suppress(ValueError):
            pairs = split_pairs(given or {})
        if pairs and entry:
            hints = _hints(look_up(seam, f"--{setting}", entry))
            fitted[name] = {field: frozen(fit(value, hints.get(field, Any))) for field, value in pairs.items()}
    return fitted


def _hints(kind: Any) -> dict[str, Any]:
    """The declared types of a class's fields; empty if they cannot be resolved."""
    try:
        return get_type_hints(kind)
    except (NameError, TypeError, AttributeError):
        return {}
