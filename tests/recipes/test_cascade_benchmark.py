"""What benchmarks/cascade.py promises of the built-in data."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT, SLOW


@SLOW
def test_a_cascade_takes_half_of_the_compute_when_half_a_point_of_accuracy_may_be_lost(tmp_path: Path):
    """Five minutes on two cores; the benchmark tells by its exit code whether both were met on the test images."""
    command = [sys.executable, str(ROOT / "benchmarks/cascade.py"), "--seeds", "1", "--output-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
