"""The promises of `toolkit.Schedule`, for every entry of the table, and that a run learns at its rates."""

import json
from pathlib import Path

import pytest

from toolkit import Schedule, Settings, SingleScale, train
from toolkit.config.tables import TABLES, look_up
from toolkit.training.schedules import make_schedule

every_schedule = pytest.mark.parametrize("name", TABLES["schedule"])


@every_schedule
@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_the_rate_rises_in_the_warmup_and_is_a_share_of_its_peak(name: str, warmup: float):
    schedule: Schedule = look_up("schedule", "", name)(warmup=warmup)
    rates = [schedule.factor((step + 0.5) / 40) for step in range(40)]
    rising = rates[: round(40 * warmup)]
    assert rising == pytest.approx([(step + 0.5) / 10 for step in range(len(rising))])
    assert all(0 <= rate <= 1 for rate in rates)
    assert max(rates) == pytest.approx(1, abs=0.01)


@every_schedule
def test_a_run_learns_at_the_rates_of_its_schedule(name: str, tmp_path: Path):
    settings = Settings(
        synthetic_count=60,
        synthetic_size=16,
        batch_size=12,
        epochs=2,
        scheduler=name,
        record_samples=True,
        log_with="none",
        output_dir=tmp_path,
    )
    summary = train(settings, SingleScale(16))
    rates = [json.loads(line)["lr"] for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    schedule, steps = make_schedule(settings), summary["steps"]
    assert rates == [settings.learning_rate * schedule.factor((step + 0.5) / steps) for step in range(steps)]
