"""The Python of docs/ runs as it stands, and the strategy of the guide works on several processes."""

import re
import runpy
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, SLOW, TORCHRUN
from toolkit import Settings, Simultaneous, Strategy, device
from toolkit.learner import build_learner
from toolkit.prepare import prepare

FEW = Settings(synthetic_count=120, synthetic_size=32, batch_size=24, epochs=2, log_with="none")


def python_of(page: str) -> str:
    """The one block of Python of a page."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    return block


@pytest.mark.parametrize("page", ["api.md", "migration.md", "strategies.md"])
def test_the_python_of_a_page_trains_when_it_is_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.py").write_text(python_of(page))
    runpy.run_path("page.py", run_name="__main__")
    assert len(list(tmp_path.glob("runs/*/summary.json"))) == 1


def told_of_unused_parameters(strategy: Strategy) -> bool:
    """Whether DistributedDataParallel would be told that a step can leave some out."""
    accelerator = device.start(FEW)
    try:
        build_learner(accelerator, strategy, prepare(accelerator, FEW, strategy))
        return accelerator.ddp_handler.find_unused_parameters
    finally:
        device.stop()


def test_unused_parameters_are_expected_when_a_step_leaves_out_a_scale_of_its_phase(tmp_path: Path):
    (tmp_path / "page.py").write_text(python_of("strategies.md"))
    alternating = runpy.run_path(str(tmp_path / "page.py"))["Alternating"]
    assert told_of_unused_parameters(alternating((16, 32)))
    assert not told_of_unused_parameters(Simultaneous((16, 32)))  # control


@SLOW
def test_the_guides_strategy_trains_on_two_processes(tmp_path: Path):
    (tmp_path / "alternating.py").write_text(python_of("strategies.md"))
    done = subprocess.run([*TORCHRUN, "alternating.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
