"""The strategies that the planner compares, by goal, and the commands that train them."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from toolkit.config.data_roots import SYNTHETIC
from toolkit.config.planning import Goal
from toolkit.config.scales import Scales
from toolkit.config.settings import Settings, make_settings
from toolkit.config.yaml_values import write_value
from toolkit.strategies import (
    Progressive,
    ProgressiveCompute,
    ProgressiveSimultaneous,
    Sampled,
    Sandwich,
    Simultaneous,
    SingleScale,
    innermost,
)
from toolkit.strategies.base import Strategy
from toolkit.system import host

Sizes = tuple[int, ...]
Runs = tuple[Strategy, ...]


@dataclass(frozen=True)
class Candidate:
    """A way to reach a goal: one run, or several that train a model each. `build`: from ascending scales, px."""

    name: str
    title: str
    goal: Goal
    build: Callable[[Sizes], Runs]


# A strategy joins the comparison by a line here. The first of a goal is the one that the others are compared with.
CANDIDATES = (
    Candidate("single", "single scale", "one-size", lambda scales: (SingleScale(scales[-1]),)),
    Candidate("staged", "progressive, staged", "one-size", lambda scales: (Progressive(scales),)),
    Candidate("compute", "progressive-compute", "one-size", lambda scales: (ProgressiveCompute(scales),)),
    Candidate("ramp", "progressive --ramp", "one-size", lambda scales: (Progressive(scales, ramp=True),)),
    Candidate("separate", "a model per size", "every-size", lambda scales: tuple(SingleScale(size) for size in scales)),
    Candidate("simultaneous", "simultaneous", "every-size", lambda scales: (Simultaneous(scales),)),
    Candidate("together", "progressive-simultaneous", "every-size", lambda scales: (ProgressiveSimultaneous(scales),)),
    Candidate("sampled", "sampled", "every-size", lambda scales: (Sampled(scales),)),
    Candidate("sandwich", "sandwich", "every-size", lambda scales: (Sandwich(scales),)),
)

# The order of preference says what docs/strategies.md measured, not what this machine did: at its own size single-scale
# training is best if it has the time for all epochs, and --ramp comes close in less; one model for all sizes takes less
# time than many, and less than that if the small sizes come first.
PREFERRED: Mapping[Goal, tuple[str, ...]] = {"one-size": ("single", "ramp"), "every-size": ("simultaneous", "together")}


def scales_of(strategy: Strategy) -> Sizes:
    """The sizes that a strategy is meant for, px: its `scales`; else its own size, and half of it to start from."""
    strategy = innermost(strategy)
    scales = getattr(strategy, "scales", None)
    target = strategy.selection().sizes[-1]
    return tuple(scales) if scales else (max(1, target // 2), target)


def command(settings: Settings, strategy: Strategy, epochs: int, processes: int) -> str:
    """The command that trains `strategy` with these settings for `epochs`."""
    values = strategy.to_dict()
    name = values.pop("strategy")
    own_fields = fields(innermost(strategy))  # type: ignore[arg-type]
    usual = {field.name: _plain(field.default) for field in own_fields if field.default is not MISSING}
    chosen = {key: value for key, value in values.items() if key not in usual or usual[key] != value}
    flags = [word for key, value in chosen.items() if key in Scales.model_fields for word in _flag(key, value)]
    own = {key: value for key, value in chosen.items() if key not in Scales.model_fields}
    flags += _flag("strategy_kwargs", own) if own else []
    if ":" in name:
        flags = ["--import", name.partition(":")[0], *flags]
    named = {"single": [], "simultaneous": [], "progressive": ["--progressive"]}.get(name, ["--strategy", name])
    recipe = "single" if name == "single" else "multi"
    words = [
        *_launcher(processes),
        "train",
        recipe,
        *named,
        *flags,
        "--epochs",
        str(epochs),
        *_settings_flags(settings),
    ]
    return shlex.join(words)


def _launcher(processes: int) -> list[str]:
    """The words that start as many processes on as many machines."""
    if processes == 1:
        return ["toolkit"]
    local = host.local_processes()
    machines = ["--nnodes", str(processes // local)] if processes > local else []
    return ["torchrun", *machines, "--nproc-per-node", str(local), "-m", "toolkit"]


def _settings_flags(settings: Settings) -> list[str]:
    """The flags of all settings that are not those of a plain run, but for the epochs."""
    plain = make_settings({"data_root": settings.data_root})
    given = {name: getattr(settings, name) for name in Settings.model_fields if name in settings.model_fields_set}
    usual = {"epochs", *(name for name, value in given.items() if value is None or value == getattr(plain, name))}
    if settings.data_root != SYNTHETIC:
        usual.discard("data_root")
    return [word for name, value in given.items() if name not in usual for word in _flag(name, value)]


def _flag(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    if isinstance(value, Mapping):
        return [flag, *(f"{key}={write_value(part)}" for key, part in value.items())]
    return [flag, _text(value)]


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    brief = f"{value:g}" if isinstance(value, float) else ""
    return brief if brief and float(brief) == value else str(value)


def _plain(value: Any) -> Any:
    return [*value] if isinstance(value, tuple) else value
