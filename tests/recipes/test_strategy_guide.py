"""The strategy that docs/strategies.md writes works on several processes; test_docs.py runs it on one."""

import re
import runpy
import subprocess
from pathlib import Path

from tests.conftest import ROOT, SLOW, TORCHRUN
from toolkit import Settings, Simultaneous, Strategy
from toolkit.training import device
from toolkit.training.parts import make_parts
from toolkit.training.run_plan import make_run_plan
from toolkit.training.train_state import build_train_state

FEW = Settings(synthetic_count=120, synthetic_size=32, batch_size=24, epochs=2, log_with="none")


def alternating() -> str:
    """The one block of Python of the page."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/strategies.md").read_text(), re.DOTALL)
    return block


def told_of_unused_parameters(strategy: Strategy) -> bool:
    """Whether DistributedDataParallel would be told that a step can leave some out."""
    accelerator = device.start(FEW)
    try:
        build_train_state(accelerator, make_run_plan(accelerator, *make_parts(FEW, strategy)))
        return accelerator.ddp_handler.find_unused_parameters
    finally:
        device.stop()


def test_unused_parameters_are_expected_when_a_step_leaves_out_a_scale_of_its_phase(tmp_path: Path):
    (tmp_path / "page.py").write_text(alternating())
    strategy = runpy.run_path(str(tmp_path / "page.py"))["Alternating"]
    assert told_of_unused_parameters(strategy((16, 32)))
    assert not told_of_unused_parameters(Simultaneous((16, 32)))  # control


@SLOW
def test_the_guides_strategy_trains_on_two_processes(tmp_path: Path):
    (tmp_path / "alternating.py").write_text(alternating())
    done = subprocess.run([*TORCHRUN, "alternating.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
