"""The study of the strategies: every case is a command that the recipes accept, and its verdicts are honest."""

import sys
from pathlib import Path

import pytest

from tests.conftest import recipe, write_folders

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def study():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import strategies
        import strategies_report

        yield strategies, strategies_report
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.mark.slow
def test_every_arm_is_a_command_that_its_recipe_accepts(study, tmp_path: Path, monkeypatch, capsys):
    module = study[0]
    write_folders(tmp_path / "images", {"train": 4, "val": 2, "test": 2}, size=(64, 64))
    monkeypatch.setattr(module, "folder", lambda name: tmp_path / "images")
    task = module.tasks()["characters"]
    for name, arm in module.ARMS.items():
        command = module.flags_of(task, arm, 0, tmp_path / "run")
        start = command.index(str(BENCHMARKS.parent / f"recipes/{arm.recipe}.py"))
        flags = [*command[start + 1 :], "--batch-size", "4", "--dry-run"]
        assert recipe(arm.recipe)(flags) == 0, (name, capsys.readouterr().err)


def test_every_part_names_tasks_and_arms_that_exist(study):
    module = study[0]
    for names, arms, seeds in module.PARTS.values():
        assert {*names} <= {*module.tasks()}
        assert {*arms} <= {*module.ARMS}
        assert len(seeds) >= 3


@pytest.mark.parametrize(
    ("differences", "word"),
    [
        ([1.0, 1.2, 0.8], "better"),
        ([0.1, -0.2, 0.15], "not worse"),
        ([-1.0, -1.2, -0.9], "worse"),
        ([4.0, -3.0, 2.0], "undecided"),
        ([5.0, 5.0], "undecided"),
    ],
)
def test_a_verdict_is_what_the_paired_interval_allows(study, differences: list[float], word: str):
    assert study[1].verdict(differences).split(", ")[-1] == word
