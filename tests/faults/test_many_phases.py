"""Twenty phases leave no more behind than one: threads, processes and descriptors constant, memory flat."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PATIENCE_S, ROOT, SLOW

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("phased.py")
PHASES, SETTLED = 20, 2  # after which every thread that stays was started: the writer of checkpoints, torch's own
# Most that resident memory may grow from the first settled phases to the last ones, MB. Where sizes repeat: less than a
# third of what phases that each leave a model (0.37 M parameters), an average or an optimizer behind would add, and
# twice what the allocator's pages go up and down. Where each phase brings a new size, torch keeps the kernels that it
# compiles for it: 0.5 MB a size here.
REPEATING_MB, GROWING_MB_PER_SIZE = 6.0, 1.0
BETWEEN = 13  # phases, from the middle of the first five settled to the middle of the last five


def measured(tmp_path: Path, *words: str) -> list[dict[str, Any]]:
    """A line for each phase."""
    notes = tmp_path / "notes"
    command = [sys.executable, str(SCRIPT), str(tmp_path / "run"), str(notes), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in notes.read_text().splitlines()]
    assert [line["phase"] for line in lines] == list(range(PHASES))
    return lines


def kinds(lines: list[dict[str, Any]], name: str) -> set[str]:
    """The different values of a count, from the third phase on."""
    return {json.dumps(line[name]) for line in lines[SETTLED:]}


def growth_mb(lines: list[dict[str, Any]]) -> float:
    """By the least of five phases: pages that the allocator has not given back yet show in some of them."""
    sizes = [line["bytes"] / 1e6 for line in lines[SETTLED:]]
    return min(sizes[-5:]) - min(sizes[:5])


@pytest.mark.parametrize(
    ("kind", "processes", "most_mb"),
    [
        pytest.param("repeating", 0, REPEATING_MB, marks=SLOW),
        pytest.param("growing", 2, GROWING_MB_PER_SIZE * BETWEEN, marks=SLOW),
    ],
)
def test_nothing_piles_up_when_there_are_twenty_phases(tmp_path: Path, kind: str, processes: int, most_mb: float):
    lines = measured(tmp_path, kind)
    for name in ("within", "after", "descriptors"):
        assert len(kinds(lines, name)) == 1, [line[name] for line in lines]
    assert lines[-1]["within"]["children"] == processes
    assert lines[-1]["after"]["children"] == 0
    assert lines[-1]["within"]["threads"] > lines[-1]["after"]["threads"]  # those of the loader, which end with it
    assert growth_mb(lines) < most_mb, [line["bytes"] for line in lines]
    print(f"{kind}: {lines[-1]}, {growth_mb(lines):.2f} MB more than at the start")


@SLOW
def test_every_measure_tells_when_phases_leave_something_behind(tmp_path: Path):
    """The control: a thread, a process, a descriptor and 2 MB are left in each phase."""
    lines = measured(tmp_path, "repeating", "leak")
    for name in ("within", "after", "descriptors"):
        assert len(kinds(lines, name)) == PHASES - SETTLED
    assert lines[-1]["after"]["children"] == PHASES
    assert growth_mb(lines) > 0.9 * 2.0 * BETWEEN
