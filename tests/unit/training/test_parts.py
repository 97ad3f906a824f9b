"""What a user passes, and the settings that name it."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from toolkit import Classification, InputError, Settings, SingleScale
from toolkit.config import tables
from toolkit.runs.run_config import config_of
from toolkit.strategies.base import Strategy
from toolkit.strategies.schedule import Schedule
from toolkit.tools.loaded_run import read_config
from toolkit.training.parts import make_parts
from toolkit.training.schedules import Cosine, make_schedule
from toolkit.training.tasks import make_task


@dataclass(frozen=True)
class Nested(SingleScale):
    stages: tuple[tuple[int, float], ...] = ((16, 1.0), (24, 2.0))


@dataclass(frozen=True)
class Drops(Schedule):
    at: tuple[float, ...] = (0.5, 0.75)

    def shape(self, progress: float) -> float:
        return 0.1 ** sum(progress >= place for place in self.at)


@dataclass(frozen=True)
class Picky(Schedule):
    least: float = 0.0

    def __post_init__(self) -> None:
        if self.least < 0:
            raise ValueError("least is below 0")

    def shape(self, progress: float) -> float:
        return 1.0


@dataclass(frozen=True)
class Ramps(SingleScale):
    ramp: float = 0.5  # a flag of this name is a switch


@dataclass(frozen=True)
class Focal(Classification):
    gamma: float = 2.0


def test_nested_fields_come_back_from_a_config():
    strategy = Nested(24)
    settings, parts = make_parts(Settings(), strategy, schedule=Drops(at=(0.25,)))
    config = config_of(settings, parts.strategy)
    assert config["stages"] == [[16, 1.0], [24, 2.0]]
    again, same = read_config(config)
    assert same == strategy
    assert make_schedule(again) == Drops(at=(0.25,))


def test_fields_of_an_own_classification_are_folded_into_the_settings():
    settings, _ = make_parts(Settings(), SingleScale(16), task=Focal(loss="bce", gamma=1.5))
    assert (settings.loss, settings.task_kwargs) == ("bce", {"gamma": 1.5})
    assert make_task(settings) == Focal(loss="bce", gamma=1.5)


@pytest.mark.parametrize(
    ("given", "parts", "told"),
    [
        ({"scheduler": "wsd"}, {"schedule": Cosine(0.1)}, "--scheduler wsd would be ignored: a schedule was passed"),
        ({"warmup_epochs": 2, "epochs": 10}, {"schedule": Cosine(0.1)}, "--warmup-epochs 2.0 would be ignored"),
        ({"loss": "bce"}, {"task": Classification()}, "--loss bce would be ignored: a task was passed"),
        ({"task_kwargs": {"gamma": 1}}, {"task": Focal()}, "--task-kwargs .* would be ignored"),
    ],
)
def test_a_setting_that_what_was_passed_contradicts_is_refused(given: dict, parts: dict, told: str):
    with pytest.raises(InputError, match=told):
        make_parts(Settings(**given), SingleScale(16), **parts)


def test_a_setting_that_agrees_with_what_was_passed_is_none():
    settings, parts = make_parts(Settings(loss="bce"), SingleScale(16), task=Classification(loss="bce"))
    assert parts.task == make_parts(settings, SingleScale(16), task=parts.task)[1].task


@pytest.mark.parametrize("strategy", [Ramps(16)])
def test_a_field_named_like_a_flag_of_another_type_is_refused(strategy: Strategy):
    with pytest.raises(
        InputError, match=r"Ramps: a flag has the name of a field and takes other values \(--ramp 0\.5: .*rename"
    ):
        make_parts(Settings(), strategy)


def test_what_an_own_class_raises_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(tables.TABLES["schedule"], "picky", Picky)
    with pytest.raises(InputError, match="--scheduler-kwargs do not fit picky: ValueError: least is below 0"):
        make_schedule(Settings(scheduler="picky", scheduler_kwargs={"least": -1}))


def test_a_file_in_the_working_directory_takes_no_package_s_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither when one of ours is looked up, nor after a module of the user's own was imported."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "picked_for_a_test.py").write_text("")
    tables.look_up("strategy", "--strategy", "single")
    assert str(tmp_path) not in sys.path
    tables.import_modules(["picked_for_a_test"])
    assert sys.path.index(str(tmp_path)) == len(sys.path) - 1
