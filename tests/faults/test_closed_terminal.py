"""A terminal that is closed while a bar is drawn on it: tqdm itself falls silent, and the run goes on."""

import json
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

from tests.conftest import PATIENCE_S, ROOT, SLOW, TINY

RECIPE = str(ROOT / "recipes" / "single_scale.py")


@SLOW
def test_a_run_ends_well_when_the_terminal_of_its_bar_is_closed(tmp_path: Path):
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 80))  # a bar needs columns
    words = [*TINY, "--batch-size", "4", "--img-size", "16", "--epochs", "2", "--output-dir", str(tmp_path / "run")]
    command = [sys.executable, RECIPE, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=end, text=True, start_new_session=True) as process:
        os.close(end)
        drawn = b""
        while b"epoch 1: " not in drawn:
            drawn += os.read(terminal, 1000)
        os.close(terminal)
        out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, out
    assert "epoch   2" in out
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["exit_reason"] == "done"
