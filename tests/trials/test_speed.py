"""Speed that is lost in silence: to OpenMP threads that spin, to bfloat16 where float32 is faster."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TINY, recipe
from toolkit.training import device

SHOW = """
import os, sys
from toolkit.system.exit_codes import exit_code
exit_code(lambda: print(os.environ.get("OMP_WAIT_POLICY"), "torch" in sys.modules))
"""


def policy(**chosen: str) -> str:
    """The wait policy that a recipe's work has, started in an environment of such choices."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP", "GOMP", "KMP"))}
    command = [sys.executable, "-c", SHOW]
    return subprocess.run(command, env={**kept, **chosen}, capture_output=True, text=True, check=True).stdout.strip()


def test_waiting_threads_sleep_unless_the_user_chose_otherwise():
    assert policy() == "PASSIVE False"
    assert policy(OMP_WAIT_POLICY="ACTIVE") == "ACTIVE False"
    assert policy(GOMP_SPINCOUNT="1000") == "None False"
    assert policy(KMP_BLOCKTIME="1") == "PASSIVE False"  # of Intel's library; accelerate launch sets it on CPUs


@pytest.mark.skipif(device.best_precision() != "bf16", reason="needs a CPU with bfloat16")
def test_bfloat16_slower_than_float32_is_a_warning_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = (*TINY, "--img-size", "32", "--dry-run")

    def line(*more: str) -> str:
        assert recipe("single_scale")([*words, *more]) == 0
        shown = capsys.readouterr()
        return next((line for line in (shown.out + shown.err).splitlines() if "times as fast" in line), "")

    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path))
    measured = line("--amp")
    assert re.fullmatch(
        r"precision bfloat16 trains \d+\.\d\d times as fast as float32 here \(test_resnet, 32 px\).*", measured
    )
    (stored,) = (tmp_path / "precision").iterdir()
    stored.write_text(json.dumps({"bf16": 0.34}))
    assert line("--amp").endswith("trains 0.34 times as fast as float32 here (test_resnet, 32 px): --no-amp is faster")
    assert line("--no-amp") == ""
