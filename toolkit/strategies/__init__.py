"""Strategies of training at several scales: abstract `Strategy` in `base`, one strategy per file, consistency losses.

A new strategy is one file here and one line in `config/tables.py`; the contract tests then run on it. A strategy is a
pure function of its fields: it holds no model, no counter, no random state. Never: Accelerate, timm, data, optimizers.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from inspect import isabstract
from typing import Any

from toolkit.config.tables import look_up
from toolkit.strategies.base import Strategy
from toolkit.strategies.finish import Finish
from toolkit.strategies.head_first import HeadFirst
from toolkit.strategies.progressive import Progressive
from toolkit.strategies.progressive_compute import ProgressiveCompute
from toolkit.strategies.progressive_simultaneous import ProgressiveSimultaneous
from toolkit.strategies.sampled import Sampled
from toolkit.strategies.sandwich import Sandwich
from toolkit.strategies.simultaneous import Simultaneous
from toolkit.strategies.single import SingleScale
from toolkit.system.errors import InputError, first_line

AROUND = ("head_epochs", "finish_size", "finish_epochs")  # fields of what goes around any strategy
ON_BY_DEFAULT = (
    "consistency_ramp",
)  # a switch that is off says nothing to a strategy without it, unless it is usually on


def strategy_class(name: str) -> Any:
    """The class called `name`; raises InputError if there is none or it is no strategy."""
    kind = look_up("strategy", "--strategy", name)
    if not (isinstance(kind, type) and issubclass(kind, Strategy) and is_dataclass(kind)) or isabstract(kind):
        raise InputError(f"--strategy {name}: not a frozen dataclass of toolkit.Strategy with all of its methods")
    return kind


def build(name: str, choices: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> Strategy:
    """Build the strategy called `name`; raises InputError for an unknown name or a choice that it would ignore.

    `choices`: its fields by name; the key `strategy_kwargs` holds those that have no flag. `defaults`: for fields that
    it has and that are not chosen.
    """
    around = {key: choices[key] for key in AROUND if choices.get(key) is not None}
    choices = {key: value for key, value in choices.items() if key not in AROUND}
    if around:
        return _around(build(name, choices, defaults), **around)
    kind = strategy_class(name)
    known = {field.name for field in fields(kind)}
    usual = {field: value for field, value in (defaults or {}).items() if field in known}
    own = choices.get("strategy_kwargs") or {}
    if unknown := sorted({*own} - known):
        raise InputError(f"--strategy-kwargs {unknown[0]}: {name} has no such field; it has {', '.join(sorted(known))}")
    choices = {**usual, **{choice: value for choice, value in choices.items() if choice != "strategy_kwargs"}, **own}
    for choice, value in choices.items():
        if choice not in known and (value is not False or choice in ON_BY_DEFAULT):
            raise InputError(
                f"--{choice.replace('_', '-')} would be ignored by --strategy {name}: drop it or change the strategy"
            )
    try:
        return kind(**{choice: value for choice, value in choices.items() if choice in known})
    except InputError:
        raise
    except TypeError as error:
        raise InputError(f"--strategy {name}: {error}; --strategy-kwargs gives fields without a flag") from None
    except Exception as error:  # a user's class raises any type of exception
        raise InputError(f"--strategy {name}: {type(error).__name__}: {first_line(error)}") from error


def _around(strategy: Strategy, head_epochs: int = 0, **finish: Any) -> Strategy:
    """The strategy with a start in which only the classifier learns, and with a finish, as far as they are given."""
    if finish and "finish_size" not in finish:
        raise InputError("--finish-epochs would be ignored without --finish-size: give it or drop the flag")
    strategy = HeadFirst(strategy, head_epochs) if head_epochs else strategy
    return Finish(strategy, **finish) if finish else strategy


def innermost(strategy: Strategy) -> Strategy:
    """The strategy without what goes around it."""
    while isinstance(strategy, Finish | HeadFirst):
        strategy = strategy.strategy
    return strategy


__all__ = [
    "AROUND",
    "Finish",
    "HeadFirst",
    "Progressive",
    "ProgressiveCompute",
    "ProgressiveSimultaneous",
    "Sampled",
    "Sandwich",
    "Simultaneous",
    "SingleScale",
    "build",
    "innermost",
    "strategy_class",
]
