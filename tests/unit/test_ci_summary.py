"""The last line of CI counts the tests of all parts, and fails where one of them did."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SUITE = '<testsuites><testsuite name="pytest" tests="{}" failures="{}" errors="{}" skipped="{}"/></testsuites>'


@pytest.mark.parametrize(
    ("parts", "line", "code"),
    [
        ([(10, 0, 0, 2), (5, 0, 0, 1)], "12 passed, 0 failed, 3 skipped\n", 0),
        ([(10, 0, 0, 2), (5, 1, 0, 1)], "11 passed, 1 failed, 3 skipped\n", 1),
        ([(10, 0, 1, 2), (5, 0, 0, 0)], "12 passed, 0 failed, 2 skipped, 1 errors\n", 1),
        ([(10, 0, 0, 2), None], "8 passed, 0 failed, 2 skipped, 1 errors\n", 1),
    ],
)
def test_the_last_line_counts_all_parts(tmp_path: Path, parts, line: str, code: int):
    reports = [tmp_path / f"{i}.xml" for i in range(len(parts))]
    for report, numbers in zip(reports, parts, strict=True):
        if numbers is not None:
            report.write_text(SUITE.format(*numbers))
    command = [sys.executable, str(ROOT / ".ci" / "summary.py"), *map(str, reports)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == (line, code)
