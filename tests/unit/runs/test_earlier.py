"""Settings, strategies and progress of earlier versions: what they lack means what it meant then."""

from dataclasses import fields

import pytest

from tests.conftest import ROOT
from toolkit import Progressive, Settings, SingleScale
from toolkit.config.settings import NOT_LEARNED
from toolkit.config.tables import TABLES, look_up
from toolkit.config.yaml_values import read_yaml
from toolkit.runs.earlier import AS_BEFORE, progress_now, settings_now
from toolkit.runs.progress import Progress
from toolkit.runs.resume_rules import difference
from toolkit.runs.run_config import config_of
from toolkit.tools.loaded_run import read_config
from toolkit.training.parts import make_parts

EARLIER = read_yaml(ROOT / "tests" / "fixtures" / "runs-8909503" / "unfinished" / "config.yaml")


def test_a_setting_that_an_earlier_config_lacks_has_a_value_that_means_as_before():
    added = {*Settings.model_fields} - {*EARLIER, *NOT_LEARNED}
    assert added  # control
    assert added == {*AS_BEFORE}


def test_what_is_not_there_is_no_changed_setting():
    settings, parts = make_parts(Settings(data_root="photos"), SingleScale(32))
    now = config_of(settings, parts.strategy)
    then = {name: value for name, value in now.items() if name not in AS_BEFORE}
    assert difference(settings_now(then), now) == []
    assert difference(then, now)  # control


def test_a_field_that_an_earlier_strategy_lacks_is_no_changed_setting():
    settings, parts = make_parts(Settings(data_root="photos"), Progressive((16, 32)))
    now = config_of(settings, parts.strategy)
    then = {name: value for name, value in now.items() if name != "regularization_from"}
    assert difference(settings_now(then), now) == []
    assert read_config(settings_now(then))[1] == Progressive((16, 32))
    assert difference(then, now)  # control


def test_a_name_and_a_title_of_a_metric_are_the_same_setting():
    names = [make_parts(Settings(select_by=name), SingleScale(32))[0].select_by for name in (None, "top1", "top-1")]
    assert names == ["top1"] * 3


def test_progress_has_its_names_of_today():
    then = {"step": 3, "best_top1": 50.0, "reference_top1": 40.0}
    assert Progress(**progress_now(then)) == Progress(step=3, best_score=50.0, reference_score=40.0)


@pytest.mark.parametrize("name", TABLES["strategy"])
def test_no_field_of_a_strategy_is_called_like_a_setting(name: str):
    """config.yaml holds both."""
    assert not {field.name for field in fields(look_up("strategy", "", name))} & {*Settings.model_fields}
