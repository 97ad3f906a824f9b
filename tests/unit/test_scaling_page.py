"""The tables of docs/scaling.md are what benchmarks/scaling_model.py prints, and its inputs can be changed.

`python tests/unit/test_scaling_page.py` renews them.
"""

import functools
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "scaling.md"
TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)
MEASURED = re.compile(r"^## Checked against runs\n.*?(?=^## )", re.MULTILINE | re.DOTALL)  # no output of the model


def started(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "scaling_model.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@functools.cache
def printed(*words: str) -> str:
    done = started(*words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def renewed(page: str) -> str:
    """The page with the tables that the program prints now."""
    (measured,) = MEASURED.findall(page)
    tables = itertools.chain([TABLE.findall(measured)[0]], TABLE.findall(printed()))
    assert len(TABLE.findall(page)) == 1 + len(TABLE.findall(printed()))
    return TABLE.sub(lambda _: next(tables), page)


def test_the_tables_of_the_page_are_what_the_program_prints():
    assert PAGE.read_text() == renewed(PAGE.read_text()), "python tests/unit/test_scaling_page.py renews them"


def test_a_table_is_renewed_when_it_is_stale():
    page = PAGE.read_text()
    stale = page.replace("| ViT-L/16, continued | 4.9 |", "| ViT-L/16, continued | 5.9 |")
    assert stale != page
    assert renewed(stale) == page


def test_the_step_with_local_disks_takes_what_a_sentence_of_the_page_says():
    (words,) = re.findall(r"`--set (node_storage_bytes_s=\S+ store_bytes_s=\S+)`", page := PAGE.read_text())
    steps = printed("--set", *words.split()).split("Milliseconds of a step")[1]
    row = r"\| ResNet-50, {} px \| [\d.]+ \| [\d.*]+ \| \**([\d.]+)"  # computing, on 8 GPUs, on 64
    large, small = (re.findall(row.format(size), steps)[0] for size in (224, 112))
    assert f"({large} ms on 64 GPUs)" in page
    assert f"({small} ms)" in page


CHANGES = {
    "inter_bytes_s": 1e9,
    "image_bytes": 5e5,
    "imports_s": 60.0,
    "storage_bytes_s": 1e8,
    "mtbf_hours": 1000.0,
    "notice_share": 0.5,
    "restart_s": 900.0,
    "node_storage_bytes_s": 1e8,
    "ViT-L/16.batch": 128,
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_input_of_the_command_line_changes_the_tables(name: str):
    assert printed("--set", f"{name}={CHANGES[name]}") != printed()


def test_inputs_of_the_command_line_change_and_all_others_stay():
    words = [f"{name}={value}" for name, value in CHANGES.items()]
    expected = json.loads(printed("--inputs"))
    expected |= {name: value for name, value in CHANGES.items() if "." not in name}
    expected["ViT-L/16"]["batch"] = CHANGES["ViT-L/16.batch"]
    assert json.loads(printed("--set", *words, "--inputs")) == expected


def test_an_unknown_input_is_refused_with_the_names_of_all():
    refused = started("--set", "bandwidth=1")
    assert refused.returncode == 1
    assert "must be one of gpus_per_node, gpu_flops" in refused.stderr


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
