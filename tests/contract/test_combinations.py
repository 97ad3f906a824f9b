"""Every strategy with every task, on one process and on two: trained to the end, and continued bit for bit.

`python tests/contract/test_combinations.py` writes the table of docs/reliability.md anew.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from combinations import ALL, AROUND, MIDDLE, STEPS, WITH, Combination, interrupted, make_data, representatives
from safetensors.torch import load_file

from tests.conftest import ALL as EVERYTHING
from tests.conftest import PATIENCE_S, ROOT, SLOW, TIMES
from tests.forkserver import run_ranks
from toolkit.config.tables import TABLES
from toolkit.runs.directory import RunDirectory
from toolkit.training import run as running

PAGE = ROOT / "docs" / "reliability.md"
TABLE = re.compile(r"<!-- combinations -->\n(.*?)<!-- end -->", re.DOTALL)
QUICK = representatives()
# Of these, one per task; two processes take longer to start than to train.
FROZEN = next(name for name in QUICK if ALL[name].more == "frozen BatchNorm")
ON_TWO = [FROZEN, next(name for name in QUICK if ALL[name].task != ALL[FROZEN].task)]
PROBLEMS = {"classification": "one class", "multilabel": "several labels"}


def params(quick: list[str]) -> list[Any]:
    return [pytest.param(name, marks=() if name in quick else SLOW) for name in ALL]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("colors"))


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run of a combination on one process, which is trained once."""
    folder = tmp_path_factory.mktemp("alone")

    @cache
    def trained(name: str) -> Path:
        ALL[name].train(data, folder / name)
        return folder / name

    return trained


@pytest.fixture(scope="module")
def pairs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs on two processes, all in one start of them."""
    folder = tmp_path_factory.mktemp("pairs")
    script = str(Path(__file__).with_name("combinations.py"))
    names = [*ALL] if EVERYTHING else ON_TWO
    done = run_ranks([script, str(data), str(folder), *names], cwd=ROOT, timeout=20 * PATIENCE_S)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Weights, buffers and optimizer state at the end, and the best model."""
    files = [run / f"checkpoints/step-{STEPS:09d}/{name}.safetensors" for name in ("model", "optimizer")]
    return {
        f"{file.parent.name}/{file.name}: {key}": t
        for file in (*files, best(run))
        for key, t in load_file(file).items()
    }


def best(run: Path) -> Path:
    return run / "best" / "model.safetensors"


def different(first: Path, second: Path) -> list[str]:
    mine, theirs = tensors(first), tensors(second)
    assert mine.keys() == theirs.keys()
    return [name for name, tensor in mine.items() if not torch.equal(tensor, theirs[name])]


def delivered(run: Path) -> dict[int, list[tuple[int, int]]]:
    """Of each step the image ids and checksums, whichever process they went to."""
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    steps: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for line in sorted(lines, key=lambda line: (line["step"], line["rank"])):
        steps[line["step"]] += zip(line["ids"], line["digests"], strict=True)
    return dict(steps)


def results(run: Path) -> list[dict[str, Any]]:
    rows = [row.columns() for row in RunDirectory(run).metrics()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def check_whole(run: Path, combination: Combination, processes: int) -> None:
    """A run that ended well, with the metrics of its task at every size."""
    summary = RunDirectory(run).summary()
    assert (summary["exit_reason"], summary["steps"], summary["processes"]) == ("done", STEPS, processes)
    metric = {"classification": "macro_f1", "multilabel": "map"}[combination.task]
    assert all(0 <= scores[metric] <= 100 for scores in summary["test"].values())
    assert [*delivered(run)] == [*range(STEPS)]


def check_continued(resumed: Path, whole: Path) -> None:
    assert different(resumed, whole) == []
    assert delivered(resumed) == delivered(whole)
    assert results(resumed) == results(whole)


@pytest.mark.parametrize("name", params(QUICK))
def test_on_one_process(name: str, alone: Callable[[str], Path], data: Path, tmp_path: Path, capsys: Any):
    whole = alone(name)
    check_whole(whole, ALL[name], 1)
    resumed = interrupted(whole, tmp_path / "resumed")
    ALL[name].train(data, resumed)
    assert f"continuing from {resumed / f'checkpoints/step-{MIDDLE:09d}'}" in capsys.readouterr().out
    check_continued(resumed, whole)


@pytest.mark.parametrize("name", params(ON_TWO))
def test_on_two_processes(name: str, pairs: Path, alone: Callable[[str], Path]):
    whole = pairs / name / "whole"
    check_whole(whole, ALL[name], 2)
    check_continued(pairs / name / "resumed", whole)
    assert delivered(whole) == delivered(alone(name))
    normalizing = {key: tensor for key, tensor in load_file(best(whole)).items() if "running_" in key}
    if "--freeze-bn" in WITH[ALL[name].more]:
        assert normalizing
        fresh = {"running_mean": 0.0, "running_var": 1.0}
        assert all(bool((tensor == fresh[key.rpartition(".")[2]]).all()) for key, tensor in normalizing.items())


def test_one_that_does_not_seed_its_generators_ends_elsewhere(
    alone: Callable[[str], Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The control of all comparisons: dropout draws from a generator that starts anew for each step."""
    monkeypatch.setattr(running, "seed_generators", lambda *key: None)
    resumed = interrupted(alone(QUICK[0]), tmp_path / "resumed")
    ALL[QUICK[0]].train(data, resumed)
    assert different(resumed, alone(QUICK[0]))
    assert delivered(resumed) == delivered(alone(QUICK[0]))


def test_the_combinations_have_all_there_is_and_so_has_the_quick_part():
    wanted = {*TABLES["strategy"], *TABLES["task"], *AROUND, *WITH}
    assert {part for combination in ALL.values() for part in combination} == wanted
    assert {part for name in QUICK for part in ALL[name]} == wanted
    assert {ALL[name].task for name in ON_TWO} == {*TABLES["task"]}
    pairs = {(c.strategy, c.around, c.task) for c in ALL.values()}
    assert len(pairs) == len(TABLES["strategy"]) * len(AROUND) * len(TABLES["task"]) == len(ALL)


def table() -> str:
    """The table of the page: a row for each strategy and what is around it, with what else is on for each task."""
    lines = [
        f"| strategy | | {' | '.join(PROBLEMS[task] for task in TABLES['task'])} |",
        "|---|---|" + "---|" * len(PROBLEMS),
    ]
    for strategy in TABLES["strategy"]:
        for around in AROUND:
            found = [c for c in ALL.values() if (c.strategy, c.around) == (strategy, around)]
            cells = [f"{c.more} {marks(c.name)}".rstrip() for c in found]
            lines.append(f"| {strategy} | {around} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def marks(name: str) -> str:
    """Where `make test` runs it: on one process, or on both."""
    return "(12)" if name in ON_TWO else "(1)" if name in QUICK else ""


def renewed(text: str) -> str:
    return TABLE.sub(lambda found: f"<!-- combinations -->\n{table()}<!-- end -->", text)


def test_the_table_of_the_page_is_that_of_the_combinations():
    text = PAGE.read_text()
    assert TABLE.search(text)
    assert renewed(text) == text


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
