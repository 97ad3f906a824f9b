"""The flags of `--dry-run` that measure a run and plan it for a budget. Imports no torch."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from toolkit.config.base import Section
from toolkit.config.settings import Settings
from toolkit.system.errors import InputError

Goal = Literal["one-size", "every-size"]

UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}  # seconds
DURATION = re.compile("".join(rf"(?:(?P<{unit}>\d+(?:\.\d+)?){unit})?" for unit in UNITS))


def parse_duration(value: Any) -> Any:
    """Seconds from text such as 90s, 30m, 2h, 1h30m or 1d; a plain number is hours, as in --hourly-cost."""
    text = str(value).strip()
    found = DURATION.fullmatch(text)
    if re.fullmatch(r"\d+(\.\d+)?", text):
        seconds = float(text) * UNITS["h"]
    elif found and text:
        seconds = sum(float(number or 0) * UNITS[unit] for unit, number in found.groupdict().items())
    else:
        seconds = 0.0
    if not seconds:
        raise ValueError("must be a time above 0, such as 90s, 30m, 2h, 1h30m or 1d; a plain number is hours")
    return seconds


class Planning(Section):
    """Planning; `time_budget` in seconds, `cost_budget` in the currency of `--hourly-cost`."""

    measure: bool = False
    goal: Goal | None = None
    time_budget: Annotated[float, BeforeValidator(parse_duration)] | None = None
    cost_budget: float | None = Field(None, gt=0)


def make_planning(given: dict[str, Any], settings: Settings, dry_run: bool) -> Planning:
    """The flags that were given, checked against each other; raises InputError with one line."""
    planning = Planning(**given)
    if planning.measure and not dry_run:
        raise InputError("--measure would be ignored without --dry-run: add --dry-run, or drop it")
    needs = [name for name in ("goal", "time_budget", "cost_budget") if getattr(planning, name) is not None]
    if needs and not planning.measure:
        flag = f"--{needs[0].replace('_', '-')} {given[needs[0]]}"
        raise InputError(f"{flag} would be ignored without --measure: add --dry-run --measure, or drop it")
    if planning.cost_budget is not None and settings.hourly_cost is None:
        raise InputError(
            f"--cost-budget {given['cost_budget']} needs --hourly-cost, the price of one machine per hour: add it"
        )
    return planning
