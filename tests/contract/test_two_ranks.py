"""Promises of `toolkit.strategies.base` that need two ranks: a pair of gloo processes goes through all strategies."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import EPOCHS, EXAMPLES
from safetensors.torch import load_file

from tests.conftest import PATIENCE_S
from tests.forkserver import run_ranks
from toolkit.strategies.base import Budget, Step

WORKER = Path(__file__).with_name("worker.py")
Ranks = list[dict[str, Any]]  # what each rank recorded of one strategy
every_name = pytest.mark.parametrize("name", EXAMPLES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the two processes left what they recorded."""
    folder = tmp_path_factory.mktemp("ranks")
    done = run_ranks([str(WORKER), str(folder)], timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture
def ranks(records: list[dict[str, Any]], name: str) -> Ranks:
    return [record[name] for record in records]


def steps(name: str) -> list[Step]:
    """Every step of an example's run."""
    strategy = EXAMPLES[name]
    phases = strategy.phases(Budget(EPOCHS, 80, 40))
    return [strategy.step(phase, i) for phase in phases for i in range(phase.steps)]


@every_name
def test_two_ranks_are_two_processes_of_one_run_that_share_each_step(ranks: Ranks, name: str):
    assert [rank["processes"] for rank in ranks] == [2, 2]
    expected = steps(name)
    assert [len(rank["ids"]) for rank in ranks] == [len(expected)] * 2
    for step, own, other in zip(expected, *(rank["ids"] for rank in ranks), strict=True):
        assert len(own) == len(other) == step.batch_size // 2
        assert not set(own) & set(other)


@every_name
def test_sizes_agree_on_both_ranks_at_every_step(ranks: Ranks, name: str):
    expected = [list(step.sizes) for step in steps(name)]
    assert ranks[0]["sizes"] == ranks[1]["sizes"] == expected


@every_name
def test_the_same_step_gives_the_same_views_whichever_rank_asks(ranks: Ranks):
    first, second = (rank["views"] for rank in ranks)
    assert len(first) == EPOCHS * 2  # the first step of each epoch, the share of each rank
    assert first == second
    digests = [digest for views in first.values() for digest in views]
    assert len(set(digests)) == len(digests)  # control: no two steps, ranks or sizes look alike


@every_name
def test_parameters_are_identical_across_ranks_after_every_step(ranks: Ranks, name: str):
    assert ranks[0]["finite"]
    assert ranks[1]["finite"]
    assert ranks[0]["initial"] == ranks[1]["initial"]
    assert len(ranks[0]["parameters"]) == len(steps(name))
    assert ranks[0]["parameters"] == ranks[1]["parameters"]


@every_name
def test_parameters_move_at_every_step_and_all_of_them_within_the_run(ranks: Ranks):
    history = [ranks[0]["initial"], *ranks[0]["parameters"]]
    assert all(before != after for before, after in pairwise(history))
    still = [name for name, digest in history[0].items() if digest == history[-1][name]]
    assert still == []


HEAD_FIRST = [name for name in EXAMPLES if name == "phased" or name.startswith("head-first")]


@pytest.mark.parametrize("name", HEAD_FIRST)
def test_only_the_head_moves_in_a_phase_that_trains_only_it(records: list[dict[str, Any]], name: str):
    phases = EXAMPLES[name].phases(Budget(EPOCHS, 80, 40))
    record, alone = records[0][name], sum(p.steps for p in phases[:2] if p.trainable)  # one example has two such phases

    def moved(after: int) -> set[str]:
        now = record["parameters"][after - 1]
        return {name.split(".")[2] for name, digest in record["initial"].items() if now[name] != digest}

    assert moved(alone) == {"fc"}
    assert len(moved(alone + 1)) > 1  # control: the next step moves the rest


@every_name
def test_parameters_come_apart_when_gradients_are_not_shared(ranks: Ranks):
    """The control of the bitwise comparison above."""
    assert ranks[0]["apart"] != ranks[1]["apart"]


def different(first: Path, second: Path) -> list[str]:
    """Names of the tensors of the final checkpoint that are not the same, bit for bit."""
    tensors = [
        {f"{path.name}: {name}": tensor for path in paths for name, tensor in load_file(path).items()}
        for paths in (sorted(run.glob("checkpoints/step-000000004/*.safetensors")) for run in (first, second))
    ]
    assert tensors[0].keys() == tensors[1].keys()
    assert any(name.startswith("optimizer") for name in tensors[0])
    return [name for name, tensor in tensors[0].items() if not torch.equal(tensor, tensors[1][name])]


def delivered(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    return sorted(lines, key=lambda line: (line["step"], line["rank"]))


def test_two_ranks_go_on_to_the_same_end_when_started_again_from_a_checkpoint(folder: Path):
    assert delivered(folder / "resumed") == delivered(folder / "whole")
    assert different(folder / "resumed", folder / "whole") == []


def test_only_rank_0_opens_a_file_of_a_checkpoint_when_two_ranks_are_resumed(folder: Path):
    opened = [json.loads((folder / f"opened-{rank}.json").read_text()) for rank in (0, 1)]
    assert "step-000000002/MANIFEST.json" in opened[0]  # control
    assert opened[1] == []


def test_two_ranks_end_elsewhere_when_one_of_them_does_not_seed_its_generators(folder: Path):
    """The control: each rank draws its own dropout, in each step from a start of its own."""
    assert delivered(folder / "forgetful") == delivered(folder / "whole")
    assert different(folder / "forgetful", folder / "whole")
