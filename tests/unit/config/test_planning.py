"""The flags of `--dry-run --measure`: durations, and flags that need another one."""

from typing import Any

import pytest

from toolkit import InputError, Settings
from toolkit.config.planning import make_planning


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("30m", 1_800),
        ("2h", 7_200),
        ("1h30m", 5_400),
        ("1d", 86_400),
        ("1d2h3m4s", 93_784),
        ("1.5h", 5_400),
        ("2", 7_200),  # hours
        ("0.5", 1_800),
    ],
)
def test_a_time_budget_is_read_in_seconds(text: str, seconds: float):
    assert make_planning({"measure": True, "time_budget": text}, Settings(), True).time_budget == seconds


@pytest.mark.parametrize("text", ["", "2x", "h", "30m2h", "2 h", "-5", "0", "0s", "nan", "inf", "1e3"])
def test_another_form_of_a_time_budget_is_refused(text: str):
    with pytest.raises(InputError, match=rf"^--time-budget {text}: must be a time above 0, such as 90s, 30m, 2h"):
        make_planning({"measure": True, "time_budget": text}, Settings(), True)


@pytest.mark.parametrize(
    ("given", "dry_run", "told"),
    [
        ({"measure": True}, False, "--measure would be ignored without --dry-run"),
        ({"goal": "one-size"}, True, "--goal one-size would be ignored without --measure"),
        ({"time_budget": "2h"}, True, "--time-budget 2h would be ignored without --measure"),
        ({"cost_budget": "5"}, False, "--cost-budget 5 would be ignored without --measure"),
        ({"measure": True, "cost_budget": "5"}, True, "--cost-budget 5 needs --hourly-cost"),
        ({"measure": True, "cost_budget": "0"}, True, "--cost-budget 0: must be above 0"),
        ({"measure": True, "goal": "both"}, True, "--goal both: must be one of 'one-size' or 'every-size'"),
    ],
)
def test_a_flag_that_would_be_ignored_is_refused(given: dict[str, Any], dry_run: bool, told: str):
    with pytest.raises(InputError) as caught:
        make_planning(given, Settings(), dry_run)
    assert str(caught.value).startswith(told)


def test_a_cost_budget_is_taken_when_the_machine_has_a_price():
    planning = make_planning({"measure": True, "cost_budget": "12.5"}, Settings(hourly_cost=2), True)
    assert planning.cost_budget == 12.5
