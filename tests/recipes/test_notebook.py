"""docs/notebook.ipynb runs as it stands, made smaller, and shows what each cell gave."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT

PAGE = ROOT / "docs" / "notebook.ipynb"
SMALLER = ((r'"synthetic_count": \d+', '"synthetic_count": 320'), (r"epochs=\d+", "epochs=3"))


def shown(page: nbformat.NotebookNode) -> list[list[str]]:
    """The kinds of output of each code cell, in order."""
    return [[output.output_type for output in cell.outputs] for cell in page.cells if cell.cell_type == "code"]


def test_each_cell_shows_what_it_gave_and_nothing_of_the_machine_that_ran_it():
    text = PAGE.read_text()
    page = nbformat.reads(text, as_version=4)
    nbformat.validate(page)
    assert all(shown(page))
    assert not re.search(r"site-packages|/home/|/root/|/tmp/|Warning|stderr", text)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Jupyter's own packages
def test_the_notebook_runs(tmp_path: Path):
    page = nbformat.read(PAGE, as_version=4)
    before = shown(page)
    for cell in page.cells:
        for pattern, small in SMALLER:
            cell.source = re.sub(pattern, small, cell.source)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(page, timeout=600, coalesce_streams=True, resources=resources).execute()
    outputs = [output for cell in page.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert [{*kinds} for kinds in shown(page)] == [{*kinds} for kinds in before]
    tables = [output.data for output in outputs if output.output_type == "execute_result"]
    assert sum("text/html" in data for data in tables) == 2  # of evaluate and of compare
    assert (tmp_path / "runs/three/summary.json").exists()
